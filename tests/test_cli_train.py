"""`train`: from preferences to a result folder, in one command that can be given again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_helpers import Cli
from penname.methods.prlhf import featured
from penname.methods.prlhf import train as module
from penname.methods.prlhf.method import open_personal
from penname.methods.prlhf.reward import open_reward
from penname.methods.prlhf.table import UserTable
from penname.paths import trained_dir
from penname.records import Preference
from penname.store import Store
from penname.train.folder import open_trained, workshop_of
from penname.train.optimizer import OptimizerSettings
from train_helpers import FakeEmbedder, answers, curve, files, one_thread, preferences

VANILLA = ("--dtype", "float32", "--batch", "8", "--max-tokens", "250", "--every", "2")
FAST = (*VANILLA, "--user-tokens", "3")


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path
) -> Cli:
    monkeypatch.delenv("PENNAME_ADAPT", raising=False)
    monkeypatch.chdir(tmp_path)
    made = Cli(capsys, monkeypatch, tmp_path)
    monkeypatch.setenv("PENNAME_MODEL", str(tiny_model))
    return made


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        {"user_id": pair.user, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in preferences().pairs
    ]


def save(rows: list[dict[str, Any]], name: str = "choices.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def fill(store: Path, *users: str) -> None:
    with Store(store) as opened:
        for user in users:
            mine = opened.add_user(user)
            for noun in ("cat", "dog", "log"):
                long, short = answers(noun)
                mine.prefer(
                    Preference(user=user, kind="choice", prompt=f"the {noun}", chosen=long, rejected=short)
                )


def test_p_dpo_from_a_file(cli: Cli, rows: list[dict[str, Any]]) -> None:
    outcome = cli("train", "p-dpo", "--preferences", save(rows), "--out", "run", *FAST, "--epochs", "2")
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[0].endswith("/tiny: run")
    assert outcome.out.splitlines()[1].startswith("kept: step ")
    assert "24 preferences of 2 users" in outcome.err
    trained = open_trained("run")
    assert (trained.method, trained.settings["task"], trained.settings["user_tokens"]) == ("p-dpo", None, 3)
    assert trained.settings["lora"] == {"rank": 8, "alpha": 16}
    assert len(curve(Path("run"))) == 2 * -(-trained.data["pairs"] // 8)
    assert open_personal("run").knows("ann")


def test_as_json_the_whole_card_is_told(cli: Cli, rows: list[dict[str, Any]]) -> None:
    [told] = cli("train", "p-dpo", "--preferences", save(rows), "--out", "run", *FAST, "--json").rows
    card = json.loads(Path("run/penname.json").read_text())
    assert told == {"out": "run", **card}
    assert told["data"]["users"] == 2


def test_conversations_and_ratings(cli: Cli, rows: list[dict[str, Any]]) -> None:
    spoken = [
        {
            "user_id": row["user_id"],
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")},
        }
        for row in rows
    ]
    for name, some in (("plain", rows), ("spoken", spoken)):
        file = save(some, f"{name}.jsonl")
        assert cli("train", "p-dpo", "--preferences", file, "--out", name, *FAST).status == 0
    assert curve(Path("plain")) == curve(Path("spoken"))
    rated = [
        {
            "user_id": row["user_id"],
            "prompt": row["prompt"],
            "completion": row[side],
            "label": side == "chosen",
        }
        for row in rows
        for side in ("chosen", "rejected")
    ]
    args = ("--preferences", save(rated, "rated.jsonl"), "--loss", "kto", "--out", "kto")
    assert cli("train", "p-dpo", *args, *FAST).status == 0
    assert open_trained("kto").data["pairs"] + open_trained("kto").data["held_out"] == 48


def test_vanilla_names_no_user(cli: Cli, rows: list[dict[str, Any]]) -> None:
    nobodys = [{key: value for key, value in row.items() if key != "user_id"} for row in rows]
    file = save(nobodys)
    refused = cli("train", "p-dpo", "--preferences", file, "--out", "run", *FAST)
    assert refused.status == 1
    assert "no preference that can be trained on names a user" in refused.err
    ask = ("train", "p-dpo", "--users", "none", "--preferences", file, "--out", "run")
    assert cli(*ask, *VANILLA).status == 0
    assert not open_personal("run").has_users


def test_one_user_alone(cli: Cli, rows: list[dict[str, Any]]) -> None:
    args = ("train", "p-dpo", "--preferences", save(rows), "--users", "none", "--out", "run", *VANILLA)
    assert cli(*args, "--only", "bob").status == 0
    trained = open_trained("run")
    assert trained.data["pairs"] + trained.data["held_out"] == 12
    assert trained.data["left_out"] == {"preferences of other users": 12}
    mistyped = cli(*args, "--only", "bobb")
    assert (mistyped.status, mistyped.out) == (1, "")
    assert "did you mean 'bob'" in mistyped.err


def test_from_the_store_the_result_is_noted_in_it(cli: Cli, tmp_path: Path) -> None:
    fill(cli.db, "ann", "bob")
    args = ("train", "p-dpo", "--preferences", str(cli.db), "--task", "raw", *FAST)
    assert cli(*args, "--out", "run").status == 0
    with Store(cli.db) as store:
        assert [(one.path, one.method) for one in store.trained()] == [(tmp_path / "run", "p-dpo")]
    erased = cli("erase", "ann", "--yes")
    assert erased.status == 0
    assert "1 row in trained tables" in erased.out
    with UserTable.open(Path("run")) as table:
        assert ("ann" in table, "bob" in table) == (False, True)


def test_without_out_it_goes_to_the_methods_own_place(
    cli: Cli, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penname.paths.data_dir", lambda: tmp_path / "data")
    assert cli("train", "p-rm", "--preferences", save(rows), *FAST).status == 0
    assert open_trained(trained_dir("p-rm")).method == "p-rm"
    again = cli("train", "p-rm", "--preferences", save(rows), *FAST)
    assert again.status == 1
    assert "is there already: name another --out" in again.err


def test_every_option_arrives(cli: Cli, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def stop(method: str, prepared: object, out: Path, **given: Any) -> None:
        asked.update(given, method=method, out=out)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_preferences", stop)
    options = (
        "--users cluster --loss ipo --beta 0.3 --alpha 0.7 --user-tokens 4 --clusters 6 --weights full "
        "--rank 3 --dtype bfloat16 --epochs 2.5 --batch 5 --portion 77 --lr 0.1 --user-lr 0.2 --warmup 9 "
        "--mixture-lr 0.3 --held-out 0.3 --every 6 --patience 2 --max-tokens 99 --seed 8 --task email "
        "--out there --reference kept.sqlite"
    )
    outcome = cli("train", "p-dpo", "--preferences", save(rows), "--model", "other", *options.split())
    assert outcome.status == 130
    assert "the same command goes on with it" in outcome.err
    assert (asked["method"], asked["out"], asked["model"]) == ("p-dpo", Path("there"), "other")
    assert (asked["task"], asked["reference"]) == ("email", Path("kept.sqlite"))
    config = asked["config"]
    assert (config.users, config.loss, config.beta, config.alpha) == ("cluster", "ipo", 0.3, 0.7)
    assert (config.user_tokens, config.clusters, config.weights, config.dtype) == (4, 6, "full", "bfloat16")
    assert (config.portion, config.held_out, config.max_tokens) == (77, 0.3, 99)
    assert (config.lora.rank, config.lora.alpha) == (3, 6)
    assert config.optimizer == OptimizerSettings(0.1, 0.2, 0.3, 9)
    loop = config.loop
    assert (loop.epochs, loop.batch, loop.patience, loop.seed) == (2.5, 5, 2, 8)
    assert (loop.evaluate_every, loop.checkpoint_every) == (6, 6)


def test_a_stopped_training_goes_on_with_the_same_command(
    cli: Cli, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("train", "p-rm", "--preferences", save(rows), *FAST, "--epochs", "2")
    assert cli(*args, "--out", "whole").status == 0
    real = module.train_preferences

    def stopped(*args: Any, **given: Any) -> Any:
        def stop(done: int, *_: object) -> None:
            if done == 3:
                raise KeyboardInterrupt

        return real(*args, **{**given, "progress": stop})

    with monkeypatch.context() as patched:
        patched.setattr(module, "train_preferences", stopped)
        assert cli(*args, "--out", "run").status == 130
    assert workshop_of(Path("run")).is_dir()
    other = cli(*args, "--out", "run", "--alpha", "0.6")
    assert other.status == 1
    assert "settings.alpha 0.5 then, 0.6 now" in other.err
    assert cli(*args, "--out", "run").status == 0
    assert curve(Path("run")) == curve(Path("whole"))


def test_bad_rows_are_told_and_counted(cli: Cli, rows: list[dict[str, Any]]) -> None:
    good = rows[0]
    bad = [
        {**good, "rejected": good["chosen"]},
        {**good, "prompt": "x", "chosen": ""},
        {"user_id": "ann", "prompt": "a row without answers"},
        {**good, "prompt": "Tell. " * 300},
        {**good, "prompt": "Whose?", "user_id": None},
        {**good, "user_id": "once"},
    ]
    outcome = cli("train", "p-dpo", "--preferences", save(rows + bad), "--out", "run", *FAST)
    assert outcome.status == 0, outcome.err
    assert "left out: choices.jsonl:27:" in outcome.err
    for said in (
        "1 the chosen text equal to the rejected one",
        "1 an empty answer",
        "1 preferences without a user: they train the generic user only",
        "1 users with one preference",
    ):
        assert said in outcome.err
    assert open_trained("run").data["left_out"] == {
        "rows that cannot be read": 1,
        "the chosen text equal to the rejected one": 1,
        "an empty answer": 1,
        "a prompt with its longest answer past the limit in tokens": 1,
    }


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--preferences", "absent.jsonl"), "there is nothing at 'absent.jsonl'"),
        (("--model", "http://127.0.0.1:9/v1#told"), "is a server: it cannot be trained from here"),
        (("--model", "mistyped"), "mistyped"),
        (("--task", "emial"), "did you mean 'email'"),
        (("--alpha", "1.5"), "alpha: 1.5 is not from 0 to 1"),
        (("--batch", "0"), "batch: 0 is too small"),
        (("--loss", "kto", "--max-tokens", "8"), "past the limit in tokens"),
        (("--users", "cluster", "--lean", "1"), "--users cluster has no use for --lean: leave it out"),
        (("--lean", "-1"), "lean: -1.0 is not from 0 to 100"),
        (("--users", "none"), "--users none has no use for --user-tokens: leave it out"),
        (("--lr", "1e30", "--user-lr", "1e30", "--epochs", "4"), "is no number: lower the learning rate"),
    ],
)
def test_what_cannot_be_is_one_line(
    cli: Cli, rows: list[dict[str, Any]], args: tuple[str, ...], why: str
) -> None:
    outcome = cli("train", "p-dpo", "--preferences", save(rows), "--out", "run", *FAST, *args)
    assert (outcome.status, outcome.out) == (1, "")
    assert why in outcome.err
    assert "unexpected" not in outcome.err
    assert not Path("run").exists()


# --- rewards


def test_p_rm_with_soft_prompts(cli: Cli, rows: list[dict[str, Any]]) -> None:
    outcome = cli("train", "p-rm", "--preferences", save(rows), "--out", "run", *FAST)
    assert outcome.status == 0, outcome.err
    assert open_reward("run").knows("bob")


@pytest.mark.parametrize("users", ["low-rank", "pooled", "alone"])
def test_p_rm_on_features(
    cli: Cli, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, users: str
) -> None:
    monkeypatch.setattr(featured, "load_embedder", FakeEmbedder)
    args = ("train", "p-rm", "--users", users, "--held-out", "0", "--preferences", save(rows))
    if users == "low-rank":
        args = (*args, "--basis", "2")
    else:
        assert f"--users {users} has no use for --basis" in cli(*args, "--basis", "2").err
    assert cli(*args, "--out", "run", "--seed", "4").status == 0
    trained = open_trained("run")
    assert (trained.settings["users"], trained.settings["seed"]) == (users, 4)
    assert users != "low-rank" or trained.settings["rank"] == 2
    assert trained.model == "all-minilm-l6-v2"
    found = open_reward("run").rewards(["Tell of the owl."] * 2, list(answers("owl")), ["ann"] * 2)
    assert np.isfinite(found).all()
    assert ("head.safetensors" in files(Path("run"))) == (users == "pooled")


# --- one user more


def test_adapt_and_write(cli: Cli, rows: list[dict[str, Any]]) -> None:
    cli("train", "p-dpo", "--preferences", save(rows), "--out", "run", *FAST)
    fill(cli.db, "carl", "dora")
    outcome = cli("adapt", "carl", "--trained", "run")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("fitted carl to 3 preferences in ")
    assert "% in the right order, " in outcome.out
    [told] = cli("adapt", "dora", "--trained", "run", "--json").rows
    assert (told["user"], told["trained"], told["preferences"]) == ("dora", "run", 3)
    assert told["seconds"] > 0
    assert open_personal("run").knows("carl")
    for args, why in (
        (("adapt", "karl", "--trained", "run"), "did you mean 'carl'"),
        (("adapt", "carl", "--trained", "runn"), "no result of training at runn"),
        (("adapt", "carl", "--trained", "run", "--model", "gone"), "gone"),
    ):
        refused = cli(*args)
        assert (refused.status, refused.out) == (1, "")
        assert why in refused.err


def test_prefer_fits_at_once_and_erase_finds_it(cli: Cli, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    cli("train", "p-dpo", "--preferences", save(rows), "--out", "run", *FAST)
    fill(cli.db, "carl")
    with UserTable.open(Path("run")) as table:
        ann = table.row("ann")
    for name, text in zip(("long.txt", "short.txt"), answers("owl"), strict=True):
        Path(name).write_text(text)
    texts = ("--prompt", "the owl", "--chosen", "short.txt", "--rejected", "long.txt")
    outcome = cli("prefer", "carl", *texts, "--adapt", "run", "--json")
    assert outcome.status == 0, outcome.err
    [told] = outcome.rows
    assert told["adapted"]["preferences"] == 4
    with UserTable.open(Path("run")) as table:
        assert "carl" in table
        assert np.array_equal(table.row("ann"), ann)  # type: ignore[arg-type]
    with Store(cli.db) as store:
        assert [one.path for one in store.trained()] == [tmp_path / "run"]
    assert "1 row in trained tables" in cli("erase", "carl", "--yes").out
    assert not open_personal("run").knows("carl")
