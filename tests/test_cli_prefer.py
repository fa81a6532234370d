"""`prefer`: recording and listing; and `erase`, where it reaches what was trained."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cli_helpers import Cli
from penname.errors import TrainedError
from penname.methods.prlhf.table import UserTable
from penname.store import Store
from penname.train.index import create_index

PROMPT = ("--prompt", "Thank the team")


@dataclass(frozen=True)
class Adapted:
    preferences: int
    seconds: float


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.delenv("PENNAME_ADAPT", raising=False)
    made = Cli(capsys, monkeypatch, tmp_path)
    with Store(made.db) as store:
        store.add_user("ann")
    return made


@pytest.fixture
def texts(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "good.txt").write_text("Thanks, all!\n", encoding="utf-8")
    (tmp_path / "bad.txt").write_text("Dear team,\nI thank you.\n\n", encoding="utf-8")
    return str(tmp_path / "good.txt"), str(tmp_path / "bad.txt")


def test_a_choice(cli: Cli, texts: tuple[str, str]) -> None:
    good, bad = texts
    before = datetime.now(UTC)
    outcome = cli("prefer", "ann", *PROMPT, "--chosen", good, "--rejected", bad)
    assert (outcome.status, outcome.err) == (0, "")
    with Store(cli.db) as store:
        [kept] = store.user("ann").preferences()
    assert outcome.out == f"{kept.id}\n"
    assert (kept.kind, kept.prompt) == ("choice", "Thank the team")
    assert (kept.chosen, kept.rejected) == ("Thanks, all!", "Dear team,\nI thank you.")
    assert kept.made_at is not None
    assert before <= kept.made_at <= datetime.now(UTC)


def test_an_edit_prefers_the_revision(cli: Cli, texts: tuple[str, str]) -> None:
    good, bad = texts
    [told] = cli("prefer", "ann", *PROMPT, "--draft", bad, "--revision", good, "--json").rows
    with Store(cli.db) as store:
        [kept] = store.user("ann").preferences()
    assert told == {"id": kept.id, "kind": "edit", "adapted": None}
    assert (kept.kind, kept.chosen) == ("edit", "Thanks, all!")


@pytest.mark.parametrize("rating", ["-1", "0.25", "1"])
def test_a_rating_of_what_stdin_holds(cli: Cli, rating: str) -> None:
    outcome = cli("prefer", "ann", *PROMPT, "--completion", "-", "--rating", rating, stdin="A text.\n")
    assert outcome.status == 0
    with Store(cli.db) as store:
        [kept] = store.user("ann").preferences()
    assert (kept.kind, kept.completion, kept.rating) == ("rating", "A text.", float(rating))


def test_without_texts_what_was_recorded_is_listed(
    cli: Cli, texts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENNAME_ADAPT", "run")
    assert cli("prefer", "ann").out == "id\tkind\tdate\tprompt\n"
    monkeypatch.delenv("PENNAME_ADAPT")
    first = cli("prefer", "ann", *PROMPT, "--chosen", texts[0], "--rejected", texts[1]).out.strip()
    second = cli("prefer", "ann", *PROMPT, "--completion", texts[0], "--rating", "1").out.strip()
    today = datetime.now(UTC).date().isoformat()
    assert cli("prefer", "ann").out.splitlines()[1:] == [
        f"{first}\tchoice\t{today}\tThank the team",
        f"{second}\trating\t{today}\tThank the team",
    ]
    one, two = cli("prefer", "ann", "--json").rows
    assert (one["id"], one["chosen"], two["rating"]) == (first, "Thanks, all!", 1.0)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (PROMPT, "--prompt alone records nothing"),
        (("--chosen", "a", "--rejected", "b"), "a choice needs --prompt"),
        ((*PROMPT, "--chosen", "a"), "--chosen: give --chosen and --rejected, or"),
        ((*PROMPT, "--chosen", "a", "--draft", "b"), "--chosen and --draft: give"),
        ((*PROMPT, "--chosen", "a", "--rejected", "b", "--rating", "1"), "and --rating"),
        ((*PROMPT, "--chosen", "-", "--rejected", "-"), "stdin (-) holds one text"),
        ((*PROMPT, "--completion", "a", "--rating", "2"), "--rating"),
        (("--adapt", "run"), "--adapt goes with a recording"),
    ],
)
def test_what_does_not_go_together_is_refused(cli: Cli, args: tuple[str, ...], why: str) -> None:
    outcome = cli("prefer", "ann", *args)
    assert outcome.status == 2
    assert why in " ".join(outcome.err.replace("│", " ").split())
    assert cli("prefer", "ann", "--json").rows == []


def test_bad_texts_are_told_and_nothing_is_recorded(cli: Cli, texts: tuple[str, str], tmp_path: Path) -> None:
    good, _ = texts
    for name, content in (("empty", b" \n"), ("binary", b"\xff\xfe"), ("nul", b"a\0b")):
        (tmp_path / name).write_bytes(content)
    for other, why in (
        ("empty", "there is no text in it"),
        ("binary", "no UTF-8 text"),
        ("nul", "NUL"),
        ("absent", "absent"),
        ("good.txt", "both texts are the same"),
    ):
        outcome = cli("prefer", "ann", *PROMPT, "--chosen", good, "--rejected", str(tmp_path / other))
        assert (outcome.status, outcome.out) == (1, "")
        assert why in outcome.err
        assert "unexpected" not in outcome.err
    nan = cli("prefer", "ann", *PROMPT, "--completion", good, "--rating", "nan")
    assert nan.status != 0
    assert "unexpected" not in nan.err
    assert cli("prefer", "ann", "--json").rows == []


def test_a_mistyped_user_gets_the_nearest(cli: Cli, texts: tuple[str, str]) -> None:
    outcome = cli("prefer", "anne", *PROMPT, "--chosen", texts[0], "--rejected", texts[1])
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == "penname: unknown user 'anne' (did you mean 'ann'?)\n"


# --- fitting at once


def fake_adapt(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None = None
) -> list[tuple[Path, str, int]]:
    """In the place of the module that fits: notes what it is asked, and how many preferences it finds."""
    asked: list[tuple[Path, str, int]] = []

    def adapt(folder: Path, user: str, store: Store) -> Adapted:
        asked.append((folder, user, len(store.user(user).preferences())))
        if error is not None:
            raise error
        return Adapted(asked[-1][2], 1.25)

    module = ModuleType("penname.methods.prlhf.adapt")
    module.adapt = adapt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


@pytest.mark.parametrize("by_variable", [False, True])
def test_the_vector_is_fitted_at_once_where_asked(
    cli: Cli, texts: tuple[str, str], monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    asked = fake_adapt(monkeypatch)
    if by_variable:
        monkeypatch.setenv("PENNAME_ADAPT", "run")
    named = () if by_variable else ("--adapt", "run")
    outcome = cli("prefer", "ann", *PROMPT, "--chosen", texts[0], "--rejected", texts[1], *named)
    assert asked == [(Path("run"), "ann", 1)], "after the preference was kept"
    assert outcome.status == 0
    assert outcome.err == "fitted ann to 1 preference in 1.2 s\n"
    [told] = cli("prefer", "ann", *PROMPT, "--completion", texts[0], "--rating", "1", "--json", *named).rows
    assert told["adapted"] == {"preferences": 2, "seconds": 1.25}


def test_what_was_recorded_is_kept_where_the_fit_fails(
    cli: Cli, texts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_adapt(monkeypatch, TrainedError("run is cut short"))
    outcome = cli(
        "prefer", "ann", *PROMPT, "--chosen", texts[0], "--rejected", texts[1], "--adapt", "run", "--json"
    )
    [kept] = cli("prefer", "ann", "--json").rows
    assert outcome.status == 1
    assert outcome.out == ""
    assert outcome.err.splitlines() == [
        f"recorded as {kept['id']}; the vector in run was not fitted",
        "penname: run is cut short",
    ]


# --- erasing what was trained


def runs(folder: Path) -> tuple[Path, Path]:
    personal, pooled = folder / "personal", folder / "pooled"
    for run in (personal, pooled):
        run.mkdir()
    row = np.ones(3, np.float32)
    UserTable.create(personal, {}, [("ann", row, 1), ("bob", 2 * row, 1)], (3,)).close()
    create_index(pooled, ["ann"])
    return personal, pooled


def test_erase_reaches_trained_runs_and_names_weights(cli: Cli, tmp_path: Path) -> None:
    personal, pooled = runs(tmp_path)
    with Store(cli.db) as store:
        for run in (personal, tmp_path / "gone"):
            store.add_trained(run, "p-dpo")
    outcome = cli("erase", "ann", "--yes", "--trained", str(pooled))
    assert outcome.status == 0
    first, *named = outcome.out.splitlines()
    assert first.startswith("erased ann: 0 documents")
    assert first.endswith(", 1 row in trained tables")
    assert named[1:] == [f"  {personal}", f"  {pooled}"]
    assert f"{tmp_path / 'gone'}: " in outcome.err
    assert cli("show", "ann").status == 1
    with UserTable.open(personal) as table:
        assert "ann" not in table
        np.testing.assert_array_equal(table.row("bob"), np.full(3, 2, np.float32))


def test_erase_as_json_names_the_folders(cli: Cli, tmp_path: Path) -> None:
    personal, pooled = runs(tmp_path)
    [told] = cli("erase", "ann", "--yes", "--json", "--trained", str(personal), "--trained", str(pooled)).rows
    assert told["documents"] == 0
    assert told["trained"] == {
        "rows": [str(personal)],
        "weights": [str(personal), str(pooled)],
        "gone": [],
        "lines": 0,
    }


def test_a_user_whom_only_a_run_knows_is_erased_from_it(cli: Cli, tmp_path: Path) -> None:
    personal, _ = runs(tmp_path)
    assert cli("erase", "bob", "--yes").status == 1
    outcome = cli("erase", "bob", "--yes", "--trained", str(personal))
    assert outcome.status == 0
    assert outcome.out.startswith("erased bob: 1 row in trained tables\n")
    mistyped = cli("erase", "bbo", "--yes", "--trained", str(personal))
    assert (mistyped.status, mistyped.err) == (1, "penname: unknown user 'bbo'\n")


def test_a_user_stays_in_the_store_while_a_run_cannot_be_cleaned(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    with Store(cli.db) as store:
        store.add_trained(tmp_path / "unfinished", "p-dpo")
    outcome = cli("erase", "ann", "--yes")
    assert outcome.status == 1
    assert str(tmp_path / "unfinished") in outcome.err
    assert cli("show", "ann").status == 0
    (tmp_path / "unfinished").rmdir()
    assert cli("erase", "ann", "--yes").status == 0


def test_a_mistyped_run_erases_nothing(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("erase", "ann", "--yes", "--trained", str(tmp_path / "absent"))
    assert outcome.status == 1
    assert "nothing was erased" in outcome.err
    assert cli("show", "ann").status == 0
