"""`penname improve`, and what `penname write` tells of the rounds of `pit`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli
from models import ToldModel
from penname.methods.pit.form import Form
from penname.methods.pit.improve import Improver
from penname.records import Profile
from penname.store import Store
from penname.tasks import PromptTexts
from test_pit_improve import Rounds, Values


class Opened:
    """Stands in for `open_improver`, and remembers what was opened."""

    def __init__(self, *script: str) -> None:
        self.script = script
        self.folders: list[Path] = []
        self.models: list[Rounds] = []

    def __call__(self, folder: Path, device: str | None = None) -> Improver:
        self.folders.append(Path(folder))
        self.models.append(Rounds(*self.script))
        return Improver(self.models[-1], Values(), Form("completion", PromptTexts.load()), Path(folder))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    found = Opened("Thank you all, truly.", "Thanks.")
    monkeypatch.setattr("penname.methods.pit.improve.open_improver", found)
    return found


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: Opened
) -> Cli:
    run = Cli(capsys, monkeypatch, tmp_path)
    monkeypatch.setattr("penname.paths.data_dir", lambda: tmp_path / "data")
    monkeypatch.setattr("penname.lm.load_model", lambda spec=None: ToldModel(lambda _: "Thanks all."))
    with Store(run.db) as store:
        store.add_user("ann").add_profile(Profile(user="ann", text="ann is warm"))
        store.add_user("new")
    return run


def test_only_the_improved_text_is_on_stdout(cli: Cli, opened: Opened, tmp_path: Path) -> None:
    outcome = cli("improve", "--user", "ann", "--request", "Thank the team", "Thanks all.")
    assert (outcome.status, outcome.out) == (0, "Thank you all, truly.\n")
    assert outcome.err == "stopped: round 2 gained -3.000, and more than 0 is asked\n"
    assert opened.folders == [tmp_path / "data" / "trained" / "pit"]
    assert "About the writer. ann is warm\n" in opened.models[0].asked[0]
    assert "Request: Thank the team\n" in opened.models[0].asked[0]


def test_explain_shows_each_round_on_stderr(cli: Cli) -> None:
    outcome = cli("improve", "--user", "ann", "--explain", "-", stdin="Thanks all.\n")
    assert outcome.out == "Thank you all, truly.\n"
    assert "round 1: taken, gain +2.000, better with a probability of 88%" in outcome.err
    assert "[-Thanks-]{+Thank you+} all{+, truly+}." in outcome.err
    assert "round 2: left out, gain -3.000" in outcome.err


def test_json_tells_all(cli: Cli) -> None:
    [found] = cli("improve", "--user", "ann", "--run", "runs/x", "--json", "--seed", "3", "Thanks all.").rows
    assert (found["first"], found["text"]) == ("Thanks all.", "Thank you all, truly.")
    assert [(made["taken"], made["gain"]) for made in found["rounds"]] == [(True, 2.0), (False, -3.0)]
    assert found["rounds"][0]["probability"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert (found["user"], found["run"], found["seed"]) == ("ann", "runs/x", 3)
    assert found["stopped"].startswith("round 2 gained")


def test_settings_reach_the_improver(cli: Cli, opened: Opened) -> None:
    options = [
        "--rounds",
        "2",
        "--threshold",
        "-inf",
        "--temperature",
        "0.1",
        "--max-tokens",
        "9",
        "--seed",
        "4",
    ]
    outcome = cli("improve", "--user", "ann", *options, stdin="Thanks all.")
    assert outcome.out == "Thanks.\n"
    assert "all 2 rounds are done" in outcome.err
    sampling = opened.models[0].samplings[0]
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.1, 9, 4)
    several = ["--rounds", "1", "--candidates", "2"]
    assert cli("improve", "--user", "ann", *several, "Thanks.").out == "Thank you all, truly.\n"


def test_nothing_is_lost_and_a_missing_profile_is_told(cli: Cli, opened: Opened) -> None:
    opened.script = ("",)
    outcome = cli("improve", "--user", "new", "Thanks \x1b all.\n\n")
    assert outcome.out == "Thanks \\x1b all.\n"
    assert "there is no profile of 'new' to go by" in outcome.err
    assert "the text of round 1 came out blank" in outcome.err
    assert "About the writer" not in opened.models[0].asked[0]


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("--user", "anm", "x"), 1, "unknown user 'anm' (did you mean 'ann'?)"),
        (("--user", "ann", "  "), 1, "the text is empty"),
        (("--user", "ann"), 1, "the text is empty"),
        (("--user", "ann", "a\udcff"), 1, "surrogate"),
        (("x",), 2, "--user"),
        (("--user", "ann", "--rounds", "0", "x"), 2, "--rounds"),
        (("--user", "ann", "--temperature", "inf", "x"), 2, "finite"),
        (("--user", "ann", "--threshold", "nan", "x"), 1, "threshold"),
        (("--user", "ann", "--temperature", "0", "--candidates", "2", "x"), 1, "all the same"),
    ],
)
def test_errors(cli: Cli, opened: Opened, args: tuple[str, ...], status: int, told: str) -> None:
    outcome = cli("improve", *args)
    assert (outcome.status, outcome.out) == (status, "")
    assert told in outcome.err
    assert not opened.folders, "told before a model is loaded"


def test_a_run_that_is_not_there_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Cli(capsys, monkeypatch, tmp_path)
    with Store(run.db) as store:
        store.add_user("ann")
    outcome = run("improve", "--user", "ann", "--run", str(tmp_path / "nowhere"), "x")
    assert (outcome.status, outcome.out) == (1, "")
    assert "no result of training at" in outcome.err


def test_the_defaults_are_the_improver_s() -> None:
    import inspect

    from penname.cli.improve import improve
    from penname.methods.pit.improve import ImproveConfig

    ours = inspect.signature(improve).parameters
    for name in ("rounds", "threshold", "candidates", "temperature", "max_tokens"):
        assert ours[name].default == getattr(ImproveConfig(), name)


@pytest.mark.parametrize("terminal", [False, True])
def test_write_improves_its_draft(cli: Cli, opened: Opened, terminal: bool) -> None:
    options: list[Any] = ["write", "--user", "ann", "--method", "pit:runs/x", "About thanks"]
    outcome = cli(*options, terminal=terminal)
    assert (outcome.status, outcome.out) == (0, "Thank you all, truly.\n")
    assert "pit: round 2 gained -3.000" in outcome.err
    assert opened.folders == [Path("runs/x")]
    shown = cli(*options, "--explain").err
    assert "── draft, before it was improved ──\nThanks all." in shown
    assert "[-Thanks-]{+Thank you+} all{+, truly+}." in shown
    [row] = cli(*options, "--json").rows
    assert (row["first"], row["text"]) == ("Thanks all.", "Thank you all, truly.")
    assert [made["taken"] for made in row["rounds"]] == [True, False]
