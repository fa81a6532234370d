"""`train pit` and its stages: from a store's edits to a folder that improves texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli
from penname.methods.pit import train as pit
from penname.records import Preference
from penname.store import Store
from penname.train.folder import Trained, open_trained, workshop_of
from tiny import save_tiny_model
from train_helpers import NOUNS, answers, one_thread

STAGE = (
    *("--dtype", "float32", "--weights", "full", "--lr", "1e-2", "--epochs", "20", "--batch", "4"),
    *("--every", "50", "--held-out", "0"),
)
RL = (
    *("--samples", "2", "--answer-tokens", "24", "--rl-batch", "4", "--draft-tokens", "8"),
    *("--draft-temperature", "1"),
)


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", template=False)


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: Path
) -> Cli:
    monkeypatch.chdir(tmp_path)
    made = Cli(capsys, monkeypatch, tmp_path)
    monkeypatch.setenv("PENNAME_MODEL", str(base))
    return made


def rows(*, users: bool = True) -> list[dict[str, Any]]:
    return [
        {
            **({"user_id": user} if users else {}),
            "prompt": f"Tell of the {noun}.",
            "chosen": chosen,
            "rejected": rejected,
        }
        for noun in NOUNS[:6]
        for long, short in [answers(noun)]
        for user, chosen, rejected in (("ann", long, short), ("bob", short, long))
    ]


def save(found: list[dict[str, Any]], name: str = "edits.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return name


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """What the trainings are asked for; none is done."""
    found: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for name in ("train_pit", "train_pit_sft", "train_pit_gap", "train_pit_rl"):

        def asked(prepared: Any, out: Path, name: str = name, **more: Any) -> Trained:
            found.append((name, prepared.pairs, more))
            out.mkdir()
            card = {"model": "m", "held_out": {}}
            (out / "penname.json").write_text(json.dumps(card), encoding="utf-8")
            return Trained(out, name, "m", "", {}, {}, "")

        monkeypatch.setattr(pit, name, asked)
    return found


def test_the_whole_learns_from_a_stores_edits_and_an_erase_finds_it(cli: Cli) -> None:
    with Store(cli.db) as store:
        for user in ("ann", "bob"):
            store.add_user(user)
        for row in rows():
            edit = Preference(
                kind="edit",
                user=row["user_id"],
                prompt=row["prompt"],
                chosen=row["chosen"],
                rejected=row["rejected"],
            )
            store.user(edit.user).prefer(edit)
    outcome = cli("train", "pit", "--preferences", str(cli.db), "--out", "run", *STAGE, *RL, "--json")
    assert outcome.status == 0, outcome.err
    [card] = outcome.rows
    assert (card["method"], card["data"]["pairs"], card["data"]["users"]) == ("pit", 12, 2)
    assert card["settings"]["drafts"]["task"] == "write", "a store's prompts are put as `penname write` does"
    assert "12 preferences of 2 users" in outcome.err
    assert open_trained("run", "pit").path == Path("run")
    erased = cli("erase", "ann", "--yes")
    assert erased.status == 0, erased.err
    assert str(Path("run").resolve()) in erased.out + erased.err
    assert "ann" not in Path("run/seen/drafts.jsonl").read_text("utf-8")


def test_the_stages_take_their_own_thirds_or_everything(cli: Cli, calls: list[Any]) -> None:
    source = save(rows())
    for stage in ("pit-sft", "pit-gap"):
        assert cli("train", stage, "--preferences", source, "--out", stage).status == 0
    outcome = cli(
        *("train", "pit-rl", "--preferences", source, "--out", "pit-rl", "--sft", "pit-sft"),
        *("--gap", "pit-gap", "--curriculum", "policy", "--drafter", str(Path("tiny"))),
    )
    assert outcome.status == 1
    assert "tiny" in outcome.err, "no such model"
    outcome = cli(
        *("train", "pit-rl", "--preferences", source, "--out", "pit-rl", "--sft", "pit-sft"),
        *("--gap", "pit-gap", "--curriculum", "data", "--samples", "3", "--rl-lr", "1e-5"),
    )
    assert outcome.status == 0, outcome.err
    assert "this stage's third: 4 preferences" in outcome.err
    assert cli("train", "pit", "--preferences", source, "--out", "whole").status == 0
    assert cli("train", "pit-sft", "--preferences", source, "--all", "--out", "all").status == 0
    names = ["train_pit_sft", "train_pit_gap", "train_pit_rl", "train_pit", "train_pit_sft"]
    assert [name for name, *_ in calls] == names
    *thirds, whole, everything = (set(pairs) for _, pairs, _ in calls)
    assert set.union(*thirds) == whole == everything
    assert [len(third) for third in thirds] == [4, 4, 4]
    rl = calls[2][2]
    assert (rl["sft"], rl["curriculum"], rl["drafter"]) == (Path("pit-sft"), "data", None)
    assert (rl["config"].samples, rl["config"].optimizer.lr) == (3, 1e-5)
    assert rl["config"].loop.checkpoint_every == calls[3][2]["config"].rl.loop.checkpoint_every


def test_what_cannot_be_used_is_told_and_counted(cli: Cli, calls: list[Any]) -> None:
    first = rows()[0]
    bad = [
        {**first, "prompt": "A.", "rejected": first["chosen"] + " "},  # a revision equal to its draft
        {**first, "prompt": "B.", "chosen": ""},
        {"user_id": "ann", "prompt": "a row without answers"},
    ]
    outcome = cli("train", "pit", "--preferences", save([*rows(), *bad]), "--out", "run")
    assert outcome.status == 0, outcome.err
    for said in ("1 the chosen text equal to the rejected one", "1 an empty answer", "edits.jsonl:15:"):
        assert said in outcome.err
    assert "generic user" not in outcome.err
    assert len(calls[0][1]) == 12
    nobody = cli("train", "pit", "--preferences", save(rows(users=False)), "--out", "nobody")
    assert nobody.status == 0, "PIT needs no users"
    assert "generic user" not in nobody.err


def test_ratings_of_one_prompt_are_pairs_and_others_teach_nothing(cli: Cli, calls: list[Any]) -> None:
    rated = [
        {"user_id": row["user_id"], "prompt": row["prompt"], "completion": row[side], "label": label}
        for row in rows()
        for side, label in (("chosen", True), ("rejected", False))
    ]
    assert cli("train", "pit", "--preferences", save(rated), "--out", "run").status == 0
    assert len(calls[0][1]) == 12
    outcome = cli("train", "pit", "--preferences", save(rated[::2]), "--out", "other")
    assert outcome.status == 1
    assert "no preferences to train on" in outcome.err


def test_ctrl_c_says_how_it_goes_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pit, "train_sft", stopped)
    outcome = cli("train", "pit", "--preferences", save(rows()), "--out", "run")
    assert outcome.status == 130
    assert "the same command goes on with it" in outcome.err
    assert workshop_of(Path("run")).is_dir()
    other = cli("train", "pit", "--preferences", "edits.jsonl", "--out", "run", "--seed", "1")
    assert other.status == 1
    assert "settings.seed 0 then, 1 now" in other.err


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("pit", "--preferences", "few.jsonl"), "different prompts"),
        (("pit-gap", "--preferences", "few.jsonl"), "--all"),
        (("pit", "--preferences", "nowhere.jsonl"), "there is nothing at"),
        (("pit", "--preferences", "few.jsonl", "--curriculum", "data", "--drafter", "x"), "--drafter with"),
        (("pit", "--preferences", "edits.jsonl", "--model", "http://localhost/v1#m"), "is a server"),
        (("pit-rl", "--preferences", "edits.jsonl", "--sft", "no", "--gap", "no"), "no result of training"),
        (("pit", "--preferences", "edits.jsonl", "--samples", "2", "--temperature", "0"), "above 0"),
    ],
)
def test_what_cannot_be_meant_is_an_error(cli: Cli, args: tuple[str, ...], why: str) -> None:
    save(rows())
    save(rows()[:4], "few.jsonl")
    outcome = cli("train", *args, "--out", "run")
    assert outcome.status == 1
    assert why in outcome.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("pit-sft", "--preferences", "x", "--samples", "2"),
        ("pit-gap", "--preferences", "x", "--curriculum", "data"),
        ("pit-rl", "--preferences", "x"),
        ("pit-rl", "--preferences", "x", "--sft", "a", "--gap", "b", "--max-tokens", "9"),
        ("pit", "--preferences", "x", "--all"),
    ],
)
def test_a_stage_has_no_options_of_what_it_does_not_do(cli: Cli, args: tuple[str, ...]) -> None:
    assert cli("train", *args).status == 2
