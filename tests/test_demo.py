"""`penname demo`: what is held out, what its arms may see, and the folder that it leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cli_helpers import Cli
from models import ToldModel
from penname.errors import BadInputError
from penname.evaluate import Settings, evaluate, load, load_results
from penname.evaluate.demo import ARMS, held_out, load_demo, load_sample
from penname.records import Authored, Document
from penname.store import Store


class Letters:
    """Embeds a text as how often it uses each letter."""

    fingerprint = "letters"

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


def test_the_arms_are_none_one_author_and_all_each_beside_its_control() -> None:
    assert [(arm.name, arm.users, arm.of) for arm in ARMS] == [
        ("none", "one", ""),
        ("step-back+retrieval · one", "one", ""),
        ("step-back+retrieval · one · swap-user", "one", "step-back+retrieval · one"),
        ("step-back+retrieval", "all", ""),
        ("step-back+retrieval · swap-user", "all", "step-back+retrieval"),
    ]


def test_what_is_held_out_says_which_data_it_is_of(store: Store, tmp_path: Path) -> None:
    sample = load_demo(store, "write", 3, sample=True)
    assert (sample.name, sample.split, len(sample.requests)) == ("sample", "", 8)
    with Store(tmp_path / "other.db") as other:
        assert load("sample", other).version == sample.version
    own = load_demo(store, "write", 3, sample=False)
    assert (own.name, own.requests) == ("store", sample.requests)
    assert load_demo(store, "write", 2, sample=False).version != own.version


def test_no_arm_sees_the_held_out_text_or_what_came_later(store: Store, tmp_path: Path) -> None:
    for number in range(1, 9):
        write(store, ("ann",), number)
        write(store, ("ben",), number)
    model = ToldModel(lambda _: " a text")
    found = load_demo(store, "post", 12, sample=False)
    assert [(one.users, one.before) for one in found.requests] == [(("ann",), day(8)), (("ben",), day(8))]
    early = [one.model_copy(update={"before": day(5), "gold": "Text 5"}) for one in found.requests]
    results = evaluate(
        replace(found, requests=tuple(early)),
        store,
        model,
        ARMS,
        tmp_path / "run",
        settings=Settings(k=3),
        embedder=Letters(),
    )
    assert {row.arm for row in results.rows} == {arm.name for arm in ARMS}
    assert any("Text 4 of" in prompt for prompt in model.asked)
    for number in (5, 6, 7, 8):
        assert not any(f"Text {number} of" in prompt for prompt in model.asked)
    # Texts that differ in nothing but a number and a name: that costs two scores, not the run.
    assert any("post: style and authorship are left out" in remark for remark in results.remarks)
    assert all("bits_per_byte" in row.scores and "style" not in row.scores for row in results.rows)


def test_the_command_runs_on_the_sample_and_writes_its_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("penname.lm.load_model", lambda spec=None: ToldModel(lambda _: " a text"))
    monkeypatch.setattr("penname.lm.load_embedder", Letters)
    cli = Cli(capsys, monkeypatch, tmp_path)
    monkeypatch.delenv("PENNAME_DB")  # or it would be the store that is named
    outcome = cli("demo", "--out", str(tmp_path / "out"), "--limit", "2")
    assert outcome.status == 0
    assert "What makes the difference" in outcome.out
    assert "the real text" in outcome.out  # drafts, side by side
    assert f"The report: {tmp_path / 'out' / 'report.html'}" in outcome.out.replace("\n", "")
    rows = (tmp_path / "out" / "rows.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(row)["arm"] for row in rows} == {arm.name for arm in ARMS}
    assert "<script" not in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_second_demo_goes_on_and_report_reads_its_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = ToldModel(lambda _: " a text")
    monkeypatch.setattr("penname.lm.load_model", lambda spec=None: model)
    monkeypatch.setattr("penname.lm.load_embedder", Letters)
    cli = Cli(capsys, monkeypatch, tmp_path)
    monkeypatch.delenv("PENNAME_DB")
    out = tmp_path / "out"
    assert cli("demo", "--out", str(out), "--limit", "1").status == 0
    first = load_results(out)
    model.asked.clear()
    assert cli("demo", "--out", str(out), "--limit", "1").status == 0
    assert model.asked == []
    assert cli("demo", "--out", str(out), "--limit", "2").status == 0
    assert len(load_results(out).rows) > len(first.rows)
    page = (out / "report.html").read_text("utf-8")
    assert cli("report", str(out)).status == 0
    assert (out / "report.html").read_text("utf-8") == page
    other = cli("demo", "--out", str(out), "--seed", "1")
    assert other.status == 1
    assert "seed was 0 and is 1" in other.err


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
