"""The comparison behind `penname demo`: what is held out, which arms there are, what they may see."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cli_helpers import Cli
from models import ToldModel, flat
from penname.errors import BadInputError
from penname.evaluate.demo import CONTROL, GROUP, NONE, ONE, arms, compare, held_out, load_sample
from penname.records import Authored, Document, Request
from penname.store import Store


class Letters:
    """Embeds a text as how often it uses each letter."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts = np.array([[text.lower().count(chr(97 + i)) + 1e-3 for i in range(26)] for text in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "test.db") as opened:
        yield opened


def day(number: int) -> datetime:
    return datetime(2025, 1, number, tzinfo=UTC)


def write(store: Store, users: tuple[str, ...], number: int) -> None:
    for place, user in enumerate(users):
        document = Document(
            id=f"{'-'.join(users)}-{number}",
            title=f"Title {number}",
            text=f"Text {number} of {' and '.join(users)}.",
            written_at=day(number),
            position=place,
            n_authors=len(users),
        )
        store.add([Authored(user=user, document=document)])


def test_the_sample_brings_its_own_requests(store: Store) -> None:
    load_sample(store)
    load_sample(store)  # again: nothing changes
    requests = held_out(store, "write", 12)
    assert store.n_users == 8
    assert len(requests) == 2 * (8 + 2)
    assert {len(request.users) for request in requests} == {1, 2}
    assert all(request.gold for request in requests)
    some = {request.users for request in held_out(store, "write", 3)}
    assert some == {("alice",), ("alice", "freya"), ("bruno",), ("chiyo",)}


def test_without_requests_the_latest_documents_are_held_out(store: Store) -> None:
    for number in range(1, 6):
        write(store, ("ann",), number)
        write(store, ("ben", "ann"), number + 10)
    write(store, ("new",), 1)
    requests = held_out(store, "post", 12)
    assert [(request.users, request.input, request.before) for request in requests] == [
        (("ann",), "Title 5", day(5)),
        (("ben", "ann"), "Title 15", day(15)),
    ]
    assert requests[0].gold == "Text 5 of ann."
    assert {request.task for request in requests} == {"post"}


def test_with_nothing_to_hold_out_it_says_so(store: Store) -> None:
    write(store, ("new",), 1)
    with pytest.raises(BadInputError, match="nothing to hold out"):
        held_out(store, "write", 12)


def test_every_arm_asks_for_its_own_users(store: Store) -> None:
    for user in ("ann", "ben", "eve"):
        write(store, (user,), 1)
    store.add_user("new")
    together = Request(input="x", users=("ann", "ben"))
    alone = Request(input="y", users=("eve",))
    nobody = Request(input="z", users=("new",))
    found = arms(store, [together, alone, nobody])
    asked = {arm: [request.users for _, request in pairs] for arm, pairs in found.items()}
    assert asked == {
        NONE: [("ann", "ben"), ("eve",), ("new",)],
        CONTROL: [("eve",), ("ann",), ("ann",)],
        ONE: [("ann",), ("eve",)],
        GROUP: [("ann", "ben")],
    }


def test_no_arm_sees_the_held_out_text_or_what_came_later(store: Store) -> None:
    for number in range(1, 9):
        write(store, ("ann",), number)
        write(store, ("ben",), number)
    model = ToldModel(lambda _: " text")
    request = Request(
        input="Title 5", users=("ann",), before=day(5), exclude=("ann-5",), gold="Text 5 of ann."
    )
    results = compare(
        store, model, Letters(), [request, request.model_copy(update={"id": "b", "users": ("ben",)})]
    )
    for row in results.rows:
        for number in (5, 6, 7, 8):
            assert f"Text {number} of" not in flat(row.draft.prompt)
    assert results.arms == [NONE, CONTROL, ONE]
    assert set(results.metrics) == {"rouge1", "rougeL", "chrf", "similarity", "bits_per_byte"}
    assert not any("Text 5" in prompt for prompt in model.asked)


def test_the_command_runs_on_the_sample_and_writes_its_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("penname.lm.load_model", lambda spec=None: ToldModel(lambda _: " a text"))
    monkeypatch.setattr("penname.lm.load_embedder", Letters)
    cli = Cli(capsys, monkeypatch, tmp_path)
    monkeypatch.delenv("PENNAME_DB")  # or it would be the store that is named
    outcome = cli("demo", "--out", str(tmp_path / "out"), "--limit", "2")
    assert outcome.status == 0
    assert "another user" in outcome.out
    assert f"The report: {tmp_path / 'out' / 'report.html'}" in outcome.out.replace("\n", "")
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text("utf-8").splitlines()]
    assert {row["arm"] for row in rows} == {NONE, CONTROL, ONE, GROUP}
    assert "<script" not in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_the_command_uses_imported_users(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("penname.lm.load_model", lambda spec=None: ToldModel(lambda _: " a text"))
    monkeypatch.setattr("penname.lm.load_embedder", Letters)
    with Store(tmp_path / "mine.db") as mine:
        for number in range(1, 6):
            write(mine, ("ann",), number)
    cli = Cli(capsys, monkeypatch, tmp_path)
    outcome = cli("demo", "--db", str(tmp_path / "mine.db"), "--out", str(tmp_path / "out"), "--task", "post")
    assert outcome.status == 0
    assert not (tmp_path / "out" / "demo.db").exists()
    assert "ann" in outcome.out
    mistyped = cli("demo", "--db", str(tmp_path / "mine.db"), "--task", "pots")
    assert "did you mean 'post'" in mistyped.err
