"""The store's list of what was trained from it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

import stores
from penname.errors import BadInputError
from penname.store import Store


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_folders_are_listed_in_the_order_in_which_they_came(backend: str, tmp_path: Path) -> None:
    with Store(stores.fresh(backend, tmp_path)) as store:
        assert store.trained() == []
        before = datetime.now(UTC)
        store.add_trained(tmp_path / "b'; DROP TABLE trained", "p-dpo")
        store.add_trained(tmp_path / "a", "p-rm")
        first, second = store.trained()
        assert (first.path, first.method) == (tmp_path / "b'; DROP TABLE trained", "p-dpo")
        assert (second.path, second.method) == (tmp_path / "a", "p-rm")
        assert before.replace(microsecond=0) <= first.added_at <= second.added_at <= datetime.now(UTC)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_folder_stands_once_by_its_absolute_path(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store(stores.fresh(backend, tmp_path)) as store:
        store.add_trained("run", "p-dpo")
        store.add_trained(tmp_path / "other", "p-dpo")
        store.add_trained(tmp_path / "run" / ".." / "run", "p-rm")
        assert [(one.path, one.method) for one in store.trained()] == [
            (tmp_path / "run", "p-rm"),
            (tmp_path / "other", "p-dpo"),
        ]


def test_a_path_that_no_database_keeps_is_refused(tmp_path: Path) -> None:
    with Store(stores.fresh("sqlite", tmp_path)) as store, pytest.raises(BadInputError, match="surrogate"):
        store.add_trained(tmp_path / "\udcff", "p-dpo")


def test_an_erase_of_a_user_leaves_the_list(tmp_path: Path) -> None:
    with Store(stores.fresh("sqlite", tmp_path)) as store:
        store.add_trained(tmp_path / "run", "p-dpo")
        store.add_user("ann").erase()
        assert len(store.trained()) == 1
