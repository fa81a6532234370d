"""Rewards of trained runs: users of opposite tastes are told apart, and nothing else stands in for a run."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from penname.errors import BadInputError, TrainedError
from penname.methods.prlhf import featured
from penname.methods.prlhf.config import HEAD
from penname.methods.prlhf.featured import train_featured
from penname.methods.prlhf.lowrank import LowRankConfig
from penname.methods.prlhf.rerank import Reward, best_of
from penname.methods.prlhf.reward import open_reward, reference
from penname.methods.prlhf.table import UserTable
from penname.train.base import load_run
from penname.train.checkpoint import save_tensors
from penname.train.folder import open_trained
from penname.train.optimizer import OptimizerSettings
from penname.train.packed import Tree
from penname.train.preferences.data import Pair, Prepared
from tiny import save_tiny_model
from train_helpers import NOUNS, FakeEmbedder, answers, files, one_thread, preferences, settings, train

KNOWN, HELD_OUT = NOUNS[:9], NOUNS[9:]
LOW = LowRankConfig(rank=2, epochs=10, steps=16)
MANY: Mapping[str, Literal["long", "short"]] = {
    "ann": "long",
    "bob": "short",
    **{f"l{n}": "long" for n in range(3)},
    **{f"s{n}": "short" for n in range(3)},
}


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> FakeEmbedder:
    made = FakeEmbedder()
    monkeypatch.setattr(featured, "load_embedder", lambda: made)
    return made


def gaps(reward: Reward, user: str | None, nouns: Sequence[str] = HELD_OUT) -> np.ndarray:
    """How much more the user likes the long answers than the short ones."""
    both = [answers(noun) for noun in nouns]
    prompts = [f"Tell of the {noun}." for noun in nouns]
    long = reward.rewards(prompts, [one for one, _ in both], [user] * len(nouns))
    short = reward.rewards(prompts, [one for _, one in both], [user] * len(nouns))
    return np.subtract(long, short)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """Runs of two users with opposite tastes for length, by method and user model."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for method, users in (
        ("p-rm", "individual"),
        ("p-rm", "cluster"),
        ("p-rm", "none"),
        ("p-dpo", "individual"),
    ):
        out = made[f"{method} {users}"] = folder / f"{method}-{users}"
        steps, rates = (60 if users != "none" else 5), OptimizerSettings(lr=5e-3, user_lr=5e-2, warmup=2)
        config = settings(steps, users=users, held_out=0, optimizer=rates)
        train(method, out, tiny_model, preferences(nouns=KNOWN), config)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("run", ["p-rm individual", "p-dpo individual"])
def test_users_of_opposite_tastes_are_told_apart(runs: dict[str, Path], run: str) -> None:
    reward = open_reward(runs[run])
    ann, bob, generic = (gaps(reward, user) for user in ("ann", "bob", None))
    assert (ann > 0).all(), "held-out accuracy 1"
    assert (bob < 0).all()
    assert ((bob < generic) & (generic < ann)).all()
    assert np.array_equal(gaps(reward, "carl"), generic), "who is unknown is the generic user"
    assert [reward.knows(user) for user in ("ann", "bob", "carl")] == [True, True, False]
    assert len({reward.key(user) for user in ("ann", "bob", "carl", "dora")}) == 3


def test_users_of_clusters_are_told_apart(runs: dict[str, Path]) -> None:
    reward = open_reward(runs["p-rm cluster"])
    ann, bob = (gaps(reward, user) for user in ("ann", "bob"))
    assert (ann > bob).all()
    assert np.array_equal(gaps(reward, "carl"), gaps(reward, None))


def test_a_run_without_users_likes_alike(runs: dict[str, Path]) -> None:
    reward = open_reward(runs["p-rm none"])
    assert np.array_equal(gaps(reward, "ann"), gaps(reward, None))
    assert (reward.knows("ann"), reward.key("ann")) == (False, reward.key("bob"))


def test_rewards_of_many_are_those_of_each(runs: dict[str, Path]) -> None:
    for run in ("p-rm individual", "p-dpo individual"):
        reward = open_reward(runs[run])
        prompts = ["Tell of the sea.", "Tell of the cat.", "Tell of the sea.", "Tell of the sea."]
        texts = ["the sea", "a cat on a mat", "the sea", "a log"]
        users = ["ann", "bob", None, "ann"]
        together = reward.rewards(prompts, texts, users)
        alone = [
            reward.rewards([prompt], [text], [user])[0]
            for prompt, text, user in zip(prompts, texts, users, strict=True)
        ]
        assert together == pytest.approx(alone, abs=1e-4)
        assert len({round(one, 6) for one in together}) == 4
        assert reward.rewards([], [], []) == []


def test_the_implicit_reward_is_nothing_before_training(tmp_path: Path, tiny_model: Path) -> None:
    config = settings(1, users="none", held_out=0)
    train("p-dpo", tmp_path / "run", tiny_model, preferences(nouns=KNOWN), config)
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: 0 * one for name, one in load_file(adapter).items()}, adapter)
    assert gaps(open_reward(tmp_path / "run"), "ann") == pytest.approx(np.zeros(3), abs=1e-5)


def test_an_adapter_that_is_only_read_is_part_of_the_weights(runs: dict[str, Path], tiny_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = load_run(open_trained(runs["p-dpo individual"]))
    prompt, answer = model.prompt("Tell of the owl."), model.answer("the owl sat")
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        theirs = PeftModel.from_pretrained(plain, str(runs["p-dpo individual"] / "adapter"))

    def expected() -> float:
        """By peft, which multiplies with the adapter beside the weights."""
        ids = torch.tensor([[*prompt, *answer]])
        told = theirs(input_ids=ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        return float(told.gather(1, ids[0, len(prompt) :, None]).sum())

    with torch.no_grad():
        trees = [Tree(prompt, (answer,))]
        [ours] = model.reader.log_probs(trees).tolist()
        with reference(model):
            [base] = model.reader.log_probs(trees).tolist()
        assert ours == pytest.approx(expected(), abs=1e-4)
        with theirs.disable_adapter():
            assert base == pytest.approx(expected(), abs=1e-4)
    assert abs(ours - base) > 0.01, "the adapter says something"


def test_of_several_drafts_the_one_that_each_user_likes(runs: dict[str, Path]) -> None:
    reward = open_reward(runs["p-rm individual"])
    options = [answers("owl")] * 3
    prompts = ["Tell of the owl."] * 3
    assert best_of(reward, prompts, options, [["ann"], ["bob"], ["bob", "bob"]]) == [0, 1, 1]


def test_what_does_not_fit_into_the_context_is_told(runs: dict[str, Path]) -> None:
    reward = open_reward(runs["p-rm individual"])
    with pytest.raises(
        BadInputError, match=r"a prompt with its answer has [\d,]+ tokens; the model reads 256"
    ):
        reward.rewards(["Tell."], ["the cat " * 200], ["ann"])


def test_the_text_about_a_user_counts(tmp_path: Path, tiny_model: Path) -> None:
    config = settings(4, held_out=0)
    train("p-rm", tmp_path / "run", tiny_model, preferences(nouns=KNOWN, about="likes bees"), config)
    reward: Any = open_reward(tmp_path / "run")
    found = [reward.rewards(["Tell."], ["the cat"], ["ann"], [about])[0] for about in ("", "likes bees")]
    assert found[0] != found[1]
    assert reward.rewards(["Tell."], ["the cat"], ["ann"])[0] == pytest.approx(found[0])


# --- on fixed features


def featured_run(folder: Path, users: Any, **more: Any) -> Path:
    train_featured(preferences(MANY, KNOWN), folder, users=users, config=LOW, held_out=0, **more)
    return folder


@pytest.mark.parametrize("users", ["low-rank", "alone"])
def test_features_tell_opposite_tastes_apart(tmp_path: Path, embedder: FakeEmbedder, users: str) -> None:
    reward = open_reward(featured_run(tmp_path / "run", users))
    ann, bob, generic = (gaps(reward, user) for user in ("ann", "bob", "carl"))
    assert (ann > 0).all()
    assert (bob < 0).all()
    assert ((bob < generic) & (generic < ann)).all()
    assert np.array_equal(generic, gaps(reward, None))
    assert [reward.knows(user) for user in ("ann", "carl")] == [True, False]
    assert len({reward.key(user) for user in ("ann", "bob", "carl", "dora")}) == 3
    assert reward.rewards([], [], []) == []


def test_a_pooled_reward_likes_alike(tmp_path: Path, embedder: FakeEmbedder) -> None:
    prepared = preferences({"ann": "long", "bob": "long"}, KNOWN)
    nobodys = tuple(Pair(None, pair.prompt, pair.chosen, pair.rejected) for pair in prepared.pairs)
    train_featured(Prepared(pairs=nobodys), tmp_path / "nobody", users="pooled", held_out=0)
    train_featured(prepared, tmp_path / "run", users="pooled", held_out=0)
    for out in ("nobody", "run"):
        reward = open_reward(tmp_path / out)
        assert (gaps(reward, "ann") > 0).all()
        assert np.array_equal(gaps(reward, "ann"), gaps(reward, None))
        assert not reward.knows("ann")
    assert files(tmp_path / "run") == ["README.md", "head.safetensors", "penname.json", "users.db"]


def test_what_a_run_on_features_leaves_and_tells(tmp_path: Path, embedder: FakeEmbedder) -> None:
    shown: list[tuple[int, int]] = []
    prepared = preferences(MANY)
    trained = train_featured(
        prepared,
        tmp_path / "run",
        config=LOW,
        held_out=0.3,
        progress=lambda done, total, _: shown.append((done, total)),
    )
    assert files(tmp_path / "run") == ["README.md", "penname.json", "users.db", "users.safetensors"]
    assert shown[-1] == (30, 30), "one bar for the three floors"
    card = json.loads((tmp_path / "run" / "penname.json").read_text())
    assert (card["held_out"]["accuracy"], card["held_out"]["worst_user"]) == (1, 1)
    assert trained.data["pairs"] + trained.data["held_out"] == len(prepared)
    for file in files(tmp_path / "run"):
        content = (tmp_path / "run" / file).read_bytes()
        assert not [
            one for one in (b"ann", b"bob", str(tmp_path).encode()) if one in content and file != "README.md"
        ]
    with UserTable.open(tmp_path / "run") as table:
        assert len(table) == len(MANY)
        assert table.row_shape == (LOW.rank + 1,)
    assert len(embedder.read) == 24, "each answer once"


def test_the_features_may_be_the_models(tmp_path: Path, tiny_model: Path) -> None:
    run = featured_run(tmp_path / "run", "low-rank", features="model", model=str(tiny_model))
    reward = open_reward(run)
    assert (gaps(reward, "ann") > gaps(reward, "bob")).all()
    assert open_trained(run).model == str(tiny_model)


def test_a_base_of_features_that_moved_can_be_named(tmp_path: Path, tiny_model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    run = featured_run(tmp_path / "run", "low-rank", features="model", model=str(base))
    found = gaps(open_reward(run), "ann")
    shutil.rmtree(base)
    assert np.array_equal(gaps(open_reward(run, str(tiny_model)), "ann"), found)
    other = save_tiny_model(tmp_path / "other", template=False)
    with pytest.raises(TrainedError, match="was trained over"):
        open_reward(run, str(other))
    with pytest.raises(TrainedError, match="base model"):
        open_reward(run)


def test_another_embedder_is_refused(
    tmp_path: Path, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = featured_run(tmp_path / "run", "low-rank")
    monkeypatch.setattr(featured, "load_embedder", lambda: FakeEmbedder("another"))
    with pytest.raises(TrainedError, match="features of another version"):
        open_reward(run)


def test_features_are_trained_anew_into_another_folder_only(tmp_path: Path, embedder: FakeEmbedder) -> None:
    run = featured_run(tmp_path / "run", "low-rank")
    with pytest.raises(BadInputError, match="run is there already"):
        featured_run(run, "low-rank")


# --- what is no reward


def test_a_run_that_is_not_whole_is_refused(tmp_path: Path, runs: dict[str, Path]) -> None:
    with pytest.raises(TrainedError, match=r"no result of training at .*mistyped"):
        open_reward(tmp_path / "mistyped")
    run = tmp_path / "run"
    shutil.copytree(runs["p-rm individual"], run)
    (run / HEAD).unlink()
    with pytest.raises(TrainedError, match=r"head\.safetensors"):
        open_reward(run)
    import torch

    save_tensors(run / HEAD, {"head": torch.zeros(33)}, {})
    with pytest.raises(TrainedError, match=r"head\.safetensors was made for another model"):
        open_reward(run)
    save_tensors(run / HEAD, {"head": torch.zeros(32)}, {})
    (run / "users.safetensors").unlink()
    with pytest.raises(TrainedError, match=r"users\.safetensors|users\.db"):
        open_reward(run)


def test_an_adapter_that_is_lost_or_mistyped_is_never_the_base(tmp_path: Path, runs: dict[str, Path]) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["p-dpo individual"], run)
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:400])
    with pytest.raises(Exception, match="adapter") as refused:
        open_reward(run)
    assert type(refused.value).__module__ == "penname.errors"
    shutil.rmtree(run / "adapter")
    with pytest.raises(TrainedError, match="neither adapter/ nor model/ is there"):
        open_reward(run)


def test_a_table_made_for_another_model_is_refused(tmp_path: Path, runs: dict[str, Path]) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["p-rm individual"], run)
    for file in ("users.safetensors", "users.db"):
        (run / file).unlink()
    wide = np.zeros((3, 33), np.float32)
    UserTable.create(run, {"generic": wide}, [("ann", wide, 1)], (3, 33)).close()
    with pytest.raises(TrainedError, match="made for another model: its soft prompts have 33 numbers a row"):
        open_reward(run)


def test_another_base_is_refused(tmp_path: Path, runs: dict[str, Path], tiny_model: Path) -> None:
    other = save_tiny_model(tmp_path / "other", template=False)
    with pytest.raises(TrainedError, match="was trained over"):
        open_reward(runs["p-rm individual"], str(other))
    with pytest.raises(TrainedError, match="base model"):
        open_reward(runs["p-rm individual"], str(tmp_path / "gone"))
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    assert open_reward(runs["p-rm individual"], str(moved)).knows("ann")
