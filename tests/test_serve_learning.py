"""Runs of soft prompts learn in the request: over the HTTP API, with a tiny random model."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from penname.methods.prlhf.adapt import adapt, newest
from penname.methods.prlhf.softfit import SoftFit, likeliest
from penname.methods.prlhf.table import UserTable
from penname.serve.app import create_app
from penname.serve.softlearning import SoftLearning
from penname.store import Store
from penname.train.base import load_run
from penname.train.folder import open_trained
from penname.train.optimizer import OptimizerSettings
from serve_app import Service, serving
from train_helpers import answers, one_thread, preferences, ratings, settings, train

RATES = OptimizerSettings(lr=5e-3, user_lr=5e-2, warmup=2)
USERS = {"bob": "long", "x": "short", "y": "long", "z": "short"}  # of the training; eve and ann are new


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The background goes on as soon as a request is answered."""
    monkeypatch.setattr("penname.serve.softlearning._QUIET", 0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with room for a whole request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "CONTEXT", 1024)
        return tiny.save_tiny_model(tmp_path_factory.mktemp("models") / "roomy")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Runs of soft prompts by user model or loss; each test works on a copy."""
    folder = tmp_path_factory.mktemp("made")
    for name, method in (("individual", "p-dpo"), ("cluster", "p-dpo"), ("kto", "p-dpo"), ("reward", "p-rm")):
        prepared = preferences(USERS)  # type: ignore[arg-type]
        more: dict[str, Any] = {"users": "cluster", "beta": 1.0} if name == "cluster" else {}
        if name == "kto":
            prepared, more = ratings(prepared), {"loss": "kto"}
        config = settings(10, held_out=0, optimizer=RATES, **more)
        train(method, folder / name, base, prepared, config)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "individual", tmp_path / "soft"))


def choice(noun: str, taste: str = "short") -> dict[str, str]:
    long, short = answers(noun)
    chosen, rejected = (long, short) if taste == "long" else (short, long)
    return {"kind": "choice", "prompt": f"Tell of the {noun}.", "chosen": chosen, "rejected": rejected}


def prefer(service: Service, user: str, noun: str, taste: str = "short") -> dict[str, Any]:
    """What the run made of the user's new choice."""
    answer = service(user, "POST", "/v1/users/me/preferences", choice(noun, taste))
    assert answer.status_code == 201
    [learnt] = answer.json()["learnt"]
    return dict(learnt)


def row(run: Path, user: str) -> np.ndarray | None:
    with UserTable.open(run) as table:
        return table.row(user)


def rows(run: Path, *users: str) -> dict[str, bytes | None]:
    found = {user: row(run, user) for user in users}
    return {user: None if one is None else one.tobytes() for user, one in found.items()}


def draft(service: Service, user: str) -> str:
    body = {"model": "penname/p-dpo:soft", "messages": [{"role": "user", "content": "Tell of the sun."}]}
    answer = service(user, "POST", "/v1/chat/completions", body | {"temperature": 0, "max_tokens": 12})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def first_pass(run: Path, user: str, store: Store) -> np.ndarray:
    """The row after the first of adapt's passes: all margins linear where the user began."""
    trained = open_trained(run)
    fit = SoftFit(trained, load_run(trained))
    items = fit.fitting(newest(store, user, trained)).items
    start = fit.start(user)
    lines = fit.lines(start, start.place, fit.referenced(fit.examples(items)))
    place, _ = likeliest(lines, np.zeros_like(start.place), start.place)
    fit.put("somebody", start, place, 1)
    found = row(run, "somebody")
    assert found is not None
    return found


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The background refines nothing until this is set."""
    go = threading.Event()
    refine = SoftLearning.refine

    def later(self: SoftLearning, user: str) -> None:
        assert go.wait(60)
        refine(self, user)

    monkeypatch.setattr(SoftLearning, "refine", later)
    yield go
    go.set()


@pytest.mark.parametrize("name", ["individual", "cluster", "kto", "reward"])
def test_the_row_is_there_with_the_answer_and_then_refined(
    made: Path, tmp_path: Path, name: str, held: threading.Event
) -> None:
    run = Path(shutil.copytree(made / name, tmp_path / "soft"))
    twin = Path(shutil.copytree(made / name, tmp_path / "twin"))
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        before = rows(run, *USERS)
        learnt = prefer(service, "eve", "cat")
        count = 2 if name == "kto" else 1
        assert (learnt["run"], learnt["state"], learnt["preferences"]) == ("soft", "learnt", count)
        assert learnt["refinement"] == "queued"
        assert learnt["seconds"] > 0
        at_once = row(run, "eve")
        assert at_once is not None
        assert np.abs(at_once).max() > 0
        assert np.allclose(at_once, first_pass(twin, "eve", service.store), rtol=0, atol=1e-5)
        held.set()
        service.settle()
        adapt(twin, "eve", service.store)
        assert np.allclose(row(run, "eve"), row(twin, "eve"), rtol=0, atol=1e-5)  # type: ignore[arg-type]
        assert rows(run, *USERS) == before
        assert (
            'penname_jobs_total{kind="refine",state="done"} 1.0' in service("service", "GET", "/metrics").text
        )


def test_a_newcomers_preferences_make_the_same_row_in_any_order_of_fits(run: Path, tmp_path: Path) -> None:
    """Nothing is counted twice: what was fitted before does not become where the next fit begins."""
    twin = Path(shutil.copytree(run, tmp_path / "twin"))
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        for noun in ("cat", "dog", "sea", "oak"):
            prefer(service, "eve", noun)
            service.settle()
        adapt(twin, "eve", service.store)
        assert np.allclose(row(run, "eve"), row(twin, "eve"), rtol=0, atol=1e-5)  # type: ignore[arg-type]


def test_who_was_in_the_training_keeps_what_it_learnt(run: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(run, tmp_path / "twin"))
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        for noun in ("cat", "dog"):
            prefer(service, "bob", noun)
            service.settle()
        adapt(twin, "bob", service.store)
        assert np.allclose(row(run, "bob"), row(twin, "bob"), rtol=0, atol=1e-5)  # type: ignore[arg-type]


def test_others_are_written_for_with_the_same_bytes(run: Path, tmp_path: Path) -> None:
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        mine, others = draft(service, "eve"), [draft(service, user) for user in ("ann", "bob")]
        for noun in ("cat", "dog", "sea", "oak"):
            prefer(service, "eve", noun)
        assert [draft(service, user) for user in ("ann", "bob")] == others
        assert draft(service, "eve") != mine
        service.settle()
        assert [draft(service, user) for user in ("ann", "bob")] == others


def test_what_comes_while_all_is_read_anew_is_not_lost(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    fitted = SoftFit.fitted

    def slow(self: SoftFit, *args: Any) -> Any:
        found = fitted(self, *args)
        begun.set()
        assert go.wait(60)
        return found

    monkeypatch.setattr(SoftFit, "fitted", slow)
    put: list[int] = []
    keep = SoftFit.put
    monkeypatch.setattr(SoftFit, "put", lambda self, *args: (put.append(args[-1]), keep(self, *args))[1])
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        prefer(service, "eve", "cat")
        assert begun.wait(60)
        assert prefer(service, "eve", "dog", "long")["preferences"] == 2
        both = row(run, "eve")
        go.set()
        service.settle()
        assert put == [1, 2, 2, 2], "at once, at once, what was read before, and all"
        monkeypatch.undo()
        twin = Path(shutil.copytree(run, tmp_path / "twin"))
        adapt(twin, "eve", service.store)
        assert np.allclose(row(run, "eve"), row(twin, "eve"), rtol=0, atol=1e-5)  # type: ignore[arg-type]
        assert both is not None


@pytest.mark.parametrize("again", [False, True])
def test_who_is_erased_meanwhile_leaves_no_row(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    begun, go = threading.Event(), threading.Event()
    fitted = SoftFit.fitted

    def slow(self: SoftFit, *args: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return fitted(self, *args)

    monkeypatch.setattr(SoftFit, "fitted", slow)
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        prefer(service, "eve", "cat")
        assert begun.wait(60)
        erased = service("eve", "DELETE", "/v1/users/me").json()
        assert erased["trained"]["rows"] == 1
        if again:  # somebody new under the same name
            service.store.add_user("eve")
        go.set()
        service.settle()
        assert row(run, "eve") is None
        learner = service.app.state.learner._runs["soft"]
        assert "eve" not in learner._kept or not learner._kept["eve"].read


def test_preferences_from_two_threads_all_count(run: Path, tmp_path: Path, held: threading.Event) -> None:
    nouns = ("cat", "dog", "sea", "oak")
    twin = Path(shutil.copytree(run, tmp_path / "twin"))
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        with ThreadPoolExecutor(2) as pool:
            asked = [(user, noun) for noun in nouns for user in ("eve", "ann")]
            states = list(pool.map(lambda one: prefer(service, *one)["state"], asked))
        assert states == ["learnt"] * 8
        with UserTable.open(run) as table:
            learnt = [table.learnt(user) for user in ("eve", "ann")]
        assert [one and one.preferences for one in learnt] == [4, 4]
        held.set()
        service.settle()
        for user in ("eve", "ann"):
            adapt(twin, user, service.store)
            assert np.allclose(row(run, user), row(twin, user), rtol=0, atol=1e-5)  # type: ignore[arg-type]


def test_after_a_restart_the_new_one_counts_at_once_and_the_older_join(
    run: Path, tmp_path: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penname.serve.softlearning._AT_ONCE", 1)
    twin = Path(shutil.copytree(run, tmp_path / "twin"))
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        for noun in ("cat", "dog", "sea"):
            prefer(service, "eve", noun)
        stood = row(run, "eve")
        settings_, house = service.app.state.settings, service.house
        held.set()
        service.settle()
        held.clear()
        refined = row(run, "eve")
        assert stood is not None
        assert refined is not None
        from fastapi.testclient import TestClient

        with TestClient(create_app(settings_, house)) as client:
            headers = {"Authorization": f"Bearer {service.keys['eve']}"}
            body = choice("oak")
            answer = client.post("/v1/users/me/preferences", json=body, headers=headers).json()
            assert (answer["learnt"][0]["state"], answer["learnt"][0]["preferences"]) == ("learnt", 4)
            moved = row(run, "eve")
            assert moved is not None
            assert not np.array_equal(moved, refined)
            step = np.linalg.norm(moved - refined)
            assert step < np.linalg.norm(refined), "what it had learnt is held to"
            held.set()
        adapt(twin, "eve", service.store)
        assert np.allclose(row(run, "eve"), row(twin, "eve"), rtol=0, atol=1e-5)  # type: ignore[arg-type]


def test_a_row_that_another_process_took_away_is_not_brought_back(run: Path, tmp_path: Path) -> None:
    """As `penname erase` does beside a server."""
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        prefer(service, "bob", "cat")
        service.settle()
        with UserTable.open(run) as table:
            table.erase("bob")
        prefer(service, "bob", "dog")
        service.settle()
        own = row(run, "bob")
        assert own is not None
        axes = open_axes(run)
        along = np.linalg.lstsq(axes.T, own.ravel(), rcond=None)[0] @ axes
        assert np.allclose(own.ravel(), along, atol=1e-5), "made from the generic user, not from the old row"


def open_axes(run: Path) -> np.ndarray:
    with UserTable.open(run) as table:
        directions = table.shared["directions"]
    return directions.reshape(len(directions), -1)


def test_what_is_said_both_ways_is_taken_back(run: Path, tmp_path: Path) -> None:
    with serving(tmp_path, runs=(run,), adapt=("soft",)) as service:
        prefer(service, "eve", "dog")
        prefer(service, "eve", "cat", "short")
        assert prefer(service, "eve", "cat", "long")["preferences"] == 1
        service.settle()
        rating = {"kind": "rating", "prompt": "p", "completion": "c", "rating": 0.5}
        answer = service("ann", "POST", "/v1/users/me/preferences", rating).json()
        assert answer["learnt"][0]["state"] == "nothing"
        assert row(run, "ann") is None


def test_a_run_that_keeps_no_reference_is_refused_at_the_start(tmp_path: Path, tiny_model: Path) -> None:
    train("p-dpo", tmp_path / "soft", tiny_model, preferences(USERS), settings(1, weights="full"))  # type: ignore[arg-type]
    with (
        pytest.raises(Exception, match="keeps no reference"),
        serving(tmp_path, runs=(tmp_path / "soft",), adapt=("soft",)),
    ):
        pass
