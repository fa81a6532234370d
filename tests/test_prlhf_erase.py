"""Erasing a user from trained runs: rows go, shared weights are named, and nothing stops half-way unseen."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import stores
from penname.errors import ErasureError, TrainedError
from penname.methods.erase import Forgotten, forget
from penname.methods.prlhf.table import UserTable
from penname.store import Store
from penname.train.index import INDEX, create_index


def personal(folder: Path, *users: str) -> Path:
    folder.mkdir()
    rows = [(user, np.full(3, n + 1, np.float32), 1) for n, user in enumerate(users)]
    UserTable.create(folder, {}, rows, (3,)).close()
    return folder


def vanilla(folder: Path, *users: str) -> Path:
    folder.mkdir()
    create_index(folder, users)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(stores.fresh("sqlite", tmp_path))


def test_rows_go_everywhere_and_weights_are_named(store: Store, tmp_path: Path) -> None:
    both = personal(tmp_path / "both", "ann", "bob")
    others = personal(tmp_path / "others", "bob")
    pooled = vanilla(tmp_path / "pooled", "ann")
    adapted = personal(tmp_path / "adapted", "bob")
    with UserTable.open(adapted) as table:
        table.put("ann", np.full(3, 9, np.float32), 2)
        bobs = table.row("bob")
    for folder in (both, others, tmp_path / "deleted", pooled):
        store.add_trained(folder, "p-dpo")

    done = forget(store, "ann", [adapted, both])
    assert done == Forgotten((both, adapted), (both, pooled), (tmp_path / "deleted",))
    for folder in (both, adapted):
        with UserTable.open(folder) as table:
            assert "ann" not in table
    with UserTable.open(adapted) as table:
        np.testing.assert_array_equal(table.row("bob"), bobs)

    again = forget(store, "ann", [adapted, both])
    assert again == Forgotten((), (both, pooled), (tmp_path / "deleted",))


def test_a_mistyped_folder_stops_it_before_anything_is_done(store: Store, tmp_path: Path) -> None:
    run = personal(tmp_path / "run", "ann")
    store.add_trained(run, "p-dpo")
    with pytest.raises(TrainedError, match="nothing was erased"):
        forget(store, "ann", [tmp_path / "rnu"])
    with UserTable.open(run) as table:
        assert "ann" in table


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_cleaned(store: Store, tmp_path: Path) -> None:
    broken, run = personal(tmp_path / "broken", "ann"), personal(tmp_path / "run", "ann")
    (broken / INDEX).write_bytes(b"damaged" * 100)
    for folder in (broken, run):
        store.add_trained(folder, "p-dpo")
    with pytest.raises(ErasureError, match=r"'ann' could not be erased from .*broken") as raised:
        forget(store, "ann")
    assert f"{run} " not in str(raised.value)
    with UserTable.open(run) as table:
        assert "ann" not in table
    shutil.rmtree(broken)
    assert forget(store, "ann") == Forgotten((), (run,), (broken,))


def test_an_unfinished_run_is_not_passed_over(store: Store, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    store.add_trained(tmp_path / "run", "p-dpo")
    with pytest.raises(TrainedError, match="no finished run"):
        forget(store, "ann")
