"""A secret planted for one user appears nowhere else, and nowhere at all once that user is erased."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from cli_helpers import Cli
from models import ToldModel
from penname.records import Document, Request
from penname.serve.auth import Caller
from penname.serve.drafts import Drafts
from penname.serve.writing import Drafting
from penname.store import Store, reading
from penname.store.schema import documents
from serve_app import Service, serving
from serve_lives import Lives
from serve_models import PLENTY

Lives.TestCase.settings = settings(
    max_examples=8,
    stateful_step_count=25,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # the steps are told; making them fewer takes minutes
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
TestLives = Lives.TestCase


# --- and the lives above would find it out


def everybodys_history(patch: pytest.MonkeyPatch) -> None:
    query = documents.select()
    patch.setattr(reading, "history", lambda user_pk: query.order_by(documents.c.pk))


def any_user(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Caller, "users", lambda caller, house, named: tuple(named or (caller.user,)))


def drafts_for_anybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Drafts, "get", lambda drafts, id, users: drafts._kept.get(id, [None])[0])  # noqa: A006


def drafts_for_namesakes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Drafts, "_there", lambda drafts, found: list(found))


def bytes_left_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("penname.store.user.scrub", lambda database, user: None)


def texts_in_the_log(patch: pytest.MonkeyPatch) -> None:
    keep = Drafts.keep

    def told(drafts: Drafts, kept: Any) -> None:
        logging.getLogger("penname.serve").debug("kept %s", kept.drafts[0].text)
        keep(drafts, kept)

    patch.setattr(Drafts, "keep", told)


LEAKS = [
    everybodys_history,
    any_user,
    drafts_for_anybody,
    drafts_for_namesakes,
    bytes_left_behind,
    texts_in_the_log,
]


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_found(leak: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    leak(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Lives, settings=Lives.TestCase.settings)


# --- erased by another process, while the server runs


def with_title(store: Store) -> None:
    """A document that shows the task done."""
    store.user("ann").add([Document(id="titled", title="Thanks", text="Dear all, thank you!")])


def written(service: Service, **more: Any) -> str:
    """The id of an answer for ann and bob."""
    body = {"model": "penname/retrieval", "prompt": "Thank them", "metadata": {"users": "ann,bob"}}
    answer = service("service", "POST", "/v1/completions", body | more)
    assert answer.status_code == 200
    return str(answer.json()["id"])


def test_the_command_line_erases_what_a_server_remembers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, ToldModel(lambda prompt: prompt), before=with_title) as service:
        alone, together = written(service, metadata={"users": "ann"}), written(service)
        assert "Dear all" in service("service", "GET", f"/v1/explanations/{alone}").text
        assert Cli(capsys, monkeypatch, tmp_path)("erase", "ann", "--yes").status == 0
        for added in (False, True):
            if added:
                service("service", "PUT", "/v1/users/ann", {})
                assert service("service", "GET", "/v1/users/ann/drafts").json()["data"] == []
            for draft in (alone, together):
                for path in ("explanations", "users/ann/drafts", "users/bob/drafts"):
                    assert service("service", "GET", f"/v1/{path}/{draft}").status_code == 404
        assert service("service", "GET", "/v1/users/bob/drafts").json()["data"] == []
        assert service.house.drafts.size == 0
        written(service, metadata={"users": "bob"})
        assert "Dear all" not in service.model.asked[-1]


def test_memory_is_swept_of_who_was_erased_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penname.serve.background.SWEEP", 0.01)
    with serving(tmp_path) as service:
        written(service)
        kept = written(service, metadata={"users": "bob"})
        with Store(service.house.settings.db) as other:
            other.user("ann").erase()
        swept = threading.Event()
        sweeps = service.app.state.background.sweeps
        # Behind the one that may be at work now, so that the first whole round is over.
        sweeps.append(lambda: sweeps.append(swept.set) if swept.set not in sweeps else None)
        assert swept.wait(PLENTY)
        assert [one.id for one, _ in service.house.drafts._kept.values()] == [kept]
        histories = service.house._retriever("lexical")._histories
        assert [user for _, user in histories._kept] == ["bob"]


def test_a_draft_that_was_begun_for_another_of_the_same_id_is_not_kept(tmp_path: Path) -> None:
    with serving(tmp_path, ToldModel(lambda prompt: prompt)) as service:
        house = service.house
        drafting = Drafting(house.writer("retrieval"), Request(input="Thank them", users=("ann",)))
        drafting.write()
        house.store.user("ann").erase()
        house.store.add_user("ann")
        house.keep("1", "retrieval", [drafting.draft], drafting.numbers)
        assert house.drafts.get("1", ["ann"]) is None
        assert house.drafts.size == 0
