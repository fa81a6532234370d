"""`score`: what trained rewards make of texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_helpers import Cli
from penname.methods.prlhf import featured
from penname.methods.prlhf.featured import train_featured
from penname.methods.prlhf.lowrank import LowRankConfig
from penname.methods.prlhf.reward import open_reward
from train_helpers import FakeEmbedder, answers, one_thread, preferences, settings, train

PROMPT = ("--prompt", "Tell of the owl.")


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(featured, "load_embedder", FakeEmbedder)
    for name, text in zip(("long.txt", "short.txt"), answers("owl"), strict=True):
        Path(name).write_text(text + "\n")
    return Cli(capsys, monkeypatch, tmp_path)


@pytest.fixture
def run(cli: Cli) -> str:
    tastes = {f"{name}{n}": taste for name, taste in (("ann", "long"), ("bob", "short")) for n in range(3)}
    config = LowRankConfig(rank=2)
    train_featured(preferences(tastes), Path("taste"), config=config, held_out=0)  # type: ignore[arg-type]
    return "taste"


def test_each_text_for_each_user(cli: Cli, run: str) -> None:
    users = ("--user", "ann0", "--user", "bob0")
    outcome = cli("score", "--trained", run, *users, *PROMPT, "long.txt", "short.txt", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    assert [(row["file"], row["user"]) for row in outcome.rows] == [
        ("long.txt", "ann0"),
        ("long.txt", "bob0"),
        ("short.txt", "ann0"),
        ("short.txt", "bob0"),
    ]
    ann_long, bob_long, ann_short, bob_short = (row["reward"] for row in outcome.rows)
    assert ann_long > ann_short
    assert bob_long < bob_short
    [alone] = open_reward(run).rewards(["Tell of the owl."], [answers("owl")[0]], ["ann0"])
    assert ann_long == pytest.approx(alone, rel=1e-9)  # read beside others it may be summed otherwise
    plain = cli("score", "--trained", run, *users, *PROMPT, "long.txt").out.splitlines()
    assert plain == [
        "text\tuser\treward",
        f"long.txt\tann0\t{ann_long:.4f}",
        f"long.txt\tbob0\t{bob_long:.4f}",
    ]


def test_nobody_in_particular(cli: Cli, run: str) -> None:
    [told] = cli("score", "--trained", run, *PROMPT, "long.txt", "--json").rows
    assert (told["file"], told["user"]) == ("long.txt", None)
    assert (
        cli("score", "--trained", run, *PROMPT, "long.txt")
        .out.splitlines()[1]
        .startswith("long.txt\tanybody\t")
    )


def test_who_is_unknown_gets_the_generic_reward_and_it_is_told(cli: Cli, run: str) -> None:
    outcome = cli("score", "--trained", run, "--user", "carl", *PROMPT, "long.txt", "--json")
    assert outcome.status == 0
    assert outcome.err == "'carl' is unknown to this run: the generic user's reward\n"
    [generic] = cli("score", "--trained", run, *PROMPT, "long.txt", "--json").rows
    assert outcome.rows[0]["reward"] == generic["reward"]


def test_from_stdin_and_without_a_prompt(cli: Cli, run: str) -> None:
    text = answers("owl")[0]
    [told] = cli("score", "--trained", run, "-", "--json", stdin=text).rows
    [same] = cli("score", "--trained", run, "long.txt", "--json").rows
    assert (told["file"], told["reward"]) == ("-", same["reward"])


def test_the_default_run_is_p_rms_own_place(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penname.paths.data_dir", lambda: tmp_path / "data")
    absent = cli("score", *PROMPT, "long.txt")
    assert absent.status == 1
    assert "no result of training at" in absent.err
    train_featured(preferences(), tmp_path / "data" / "trained" / "p-rm", users="pooled", held_out=0)
    assert cli("score", *PROMPT, "long.txt").status == 0


def test_a_run_of_p_dpo_has_an_implicit_reward(cli: Cli, tiny_model: Path) -> None:
    train("p-dpo", Path("run"), tiny_model, config=settings(4))
    rows = cli("score", "--trained", "run", "--user", "ann", *PROMPT, "long.txt", "short.txt", "--json").rows
    assert len({row["reward"] for row in rows}) == 2
    train("p-dpo", Path("whole"), tiny_model, config=settings(2, weights="full"))
    refused = cli("score", "--trained", "whole", "--user", "ann", *PROMPT, "long.txt")
    assert (refused.status, refused.out) == (1, "")
    assert "no reference: it has no implicit reward" in refused.err
    gone = cli("score", "--trained", "run", "--model", "gone", *PROMPT, "long.txt")
    assert gone.status == 1
    assert "gone" in gone.err


def test_what_is_no_text_or_no_run(cli: Cli, run: str) -> None:
    Path("empty.txt").write_text(" \n")
    for args, why in (
        (("--trained", run, "empty.txt"), "empty.txt holds no text"),
        (("--trained", run, "absent.txt"), "absent.txt"),
        (("--trained", "tast", "long.txt"), "no result of training at tast"),
    ):
        outcome = cli("score", *PROMPT, *args)
        assert (outcome.status, outcome.out) == (1, "")
        assert why in outcome.err
        assert "unexpected" not in outcome.err
    assert cli("score", "--trained", run).status == 2
