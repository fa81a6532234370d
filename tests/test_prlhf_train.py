"""Training on preferences: what comes of it, that a kill changes nothing, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from penname.errors import BadInputError, ModelError, ModelNotFoundError, TrainedError
from penname.lm.base import Sampling
from penname.methods.prlhf.config import PDPOConfig
from penname.methods.prlhf.method import open_personal
from penname.methods.prlhf.reward import open_reward
from penname.methods.prlhf.table import UserTable
from penname.records import Request
from penname.store import Store
from penname.train.folder import open_trained, workshop_of
from penname.train.index import saw
from penname.train.optimizer import OptimizerSettings
from penname.train.preferences.data import Pair, Prepared, prepare
from penname.writer import Writer
from train_helpers import curve, files, metrics, one_thread, preferences, ratings, settings, train

GREEDY = Sampling(max_tokens=12, temperature=0)


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


def same_result(one: Path, other: Path) -> None:
    """Weights, soft prompts and metrics are the same to the bit."""
    assert files(one) == files(other)
    assert metrics(one) == metrics(other)
    for file in ("adapter/adapter_model.safetensors", "head.safetensors"):
        if (one / file).exists():
            assert (one / file).read_bytes() == (other / file).read_bytes()
    with UserTable.open(one) as mine, UserTable.open(other) as its:
        for user in ("ann", "bob"):
            assert np.array_equal(mine.row(user), its.row(user))  # type: ignore[arg-type]
        for name, shared in mine.shared.items():
            assert np.array_equal(shared, its.shared[name])


# Of steps 1, 6, 11, … 46 and 50. From this trainer itself, whose losses and gradients are held to a naive
# one's elsewhere: these see that nothing changes unnoticed.
GOLDEN = [
    0.807802,
    0.524768,
    0.475069,
    0.53411,
    0.482565,
    0.431754,
    0.322381,
    0.362055,
    0.391486,
    0.394619,
    0.418941,
]


def test_the_losses_of_a_training_are_as_ever(tmp_path: Path, tiny_model: Path) -> None:
    train("p-dpo", tmp_path / "run", tiny_model, config=settings(50))
    losses = curve(tmp_path / "run")
    assert len(losses) == 50
    assert [*losses[::5], losses[-1]] == pytest.approx(GOLDEN, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("p-dpo", {}),
        ("p-dpo", {"users": "cluster", "loss": "kto"}),
        ("p-dpo", {"sparse": 2, "anchor": 0.05, "lean": 2.0}),
        ("p-rm", {}),
        ("p-dpo", {"weights": "full"}),
    ],
)
def test_a_stopped_training_comes_to_the_same(
    tmp_path: Path, tiny_model: Path, method: Any, changes: dict[str, Any]
) -> None:
    steps = 4 if changes.get("loss") == "kto" else 8
    config = settings(steps, loop={"checkpoint_every": 3, "evaluate_every": 2}, **changes)
    prepared = ratings(preferences()) if config.loss == "kto" else preferences()

    def stop(done: int, *_: object) -> None:
        if done == 4:
            shutil.copytree(workshop_of(tmp_path / "cut"), workshop_of(tmp_path / "lost"))
        if done == 5:
            raise KeyboardInterrupt

    train(method, tmp_path / "whole", tiny_model, prepared, config)
    with pytest.raises(KeyboardInterrupt):
        train(method, tmp_path / "cut", tiny_model, prepared, config, progress=stop)
    with pytest.raises(TrainedError, match="not finished"):
        open_trained(tmp_path / "cut")
    done: list[int] = []
    for out in ("cut", "lost"):  # stopped by Ctrl-C; gone with all that came after the newest checkpoint
        train(
            method, tmp_path / out, tiny_model, prepared, config, progress=lambda step, *_: done.append(step)
        )
        same_result(tmp_path / out, tmp_path / "whole")
    assert done == [*range(4, done[-1] + 1)] * 2
    assert not workshop_of(tmp_path / "cut").exists()


def test_another_seed_is_another_training(tmp_path: Path, tiny_model: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train("p-dpo", tmp_path / name, tiny_model, config=settings(4, loop={"seed": seed}))
    same_result(tmp_path / "a", tmp_path / "b")
    assert curve(tmp_path / "c") != curve(tmp_path / "a")
    with UserTable.open(tmp_path / "a") as one, UserTable.open(tmp_path / "c") as other:
        assert not np.array_equal(one.shared["generic"], other.shared["generic"])


def test_portions_bound_memory_and_change_nothing(tmp_path: Path, tiny_model: Path) -> None:
    for name, portion in (("one", 4096), ("many", 100)):
        train("p-dpo", tmp_path / name, tiny_model, config=settings(6, portion=portion))
    assert curve(tmp_path / "many") == pytest.approx(curve(tmp_path / "one"), abs=1e-4)


def test_bfloat16_trains_with_masters_in_float32(tmp_path: Path, tiny_model: Path) -> None:
    config = settings(3, dtype="bfloat16")
    train("p-dpo", tmp_path / "half", tiny_model, config=config)
    train("p-dpo", tmp_path / "whole", tiny_model, config=replace(config, dtype="float32"))
    assert curve(tmp_path / "half") == pytest.approx(curve(tmp_path / "whole"), abs=0.1)
    adapter = load_file(tmp_path / "half" / "adapter" / "adapter_model.safetensors")
    assert {array.dtype for array in adapter.values()} == {np.dtype(np.float32)}
    # bfloat16's numbers end in sixteen zero bits; steps were taken finer than that.
    moved = np.concatenate([array.ravel() for name, array in adapter.items() if "lora_B" in name])
    assert (moved[moved != 0].view(np.uint32) & 0xFFFF).any()
    assert json.loads((tmp_path / "half" / "penname.json").read_text())["settings"]["dtype"] == "bfloat16"
    assert open_personal(tmp_path / "half").knows("ann")


def test_early_stop_keeps_the_best(tmp_path: Path, tiny_model: Path) -> None:
    config = settings(40, loop={"evaluate_every": 2, "checkpoint_every": 2, "patience": 2})
    rows: dict[int, np.ndarray] = {}  # the first user's, by step

    def look(*_: object) -> None:
        for file in workshop_of(tmp_path / "run").glob("checkpoint-*"):
            rows[int(file.stem.removeprefix("checkpoint-"))] = load_file(file)["users/own.weight"][0]

    train("p-dpo", tmp_path / "run", tiny_model, config=config, progress=look)
    found = [line for line in metrics(tmp_path / "run") if "held_out_loss" in line]
    best = min(found, key=lambda line: line["held_out_loss"])
    assert found.index(best) == len(found) - 3, "two evaluations without a lower loss"
    assert len(curve(tmp_path / "run")) < 40
    card = json.loads((tmp_path / "run" / "penname.json").read_text())
    assert (card["held_out"]["step"], card["held_out"]["loss"]) == (best["step"], best["held_out_loss"])
    with UserTable.open(tmp_path / "run") as table:
        row = table.row("ann")
    assert row is not None
    assert np.array_equal(row.ravel(), rows[int(best["step"])])
    assert not np.array_equal(row.ravel(), rows[max(rows)])


def test_a_loss_that_stands_still_ends_with_patience(tmp_path: Path, tiny_model: Path) -> None:
    still = OptimizerSettings(lr=1e-30, user_lr=1e-30)
    config = settings(40, optimizer=still, loop={"evaluate_every": 1, "patience": 1})
    train("p-dpo", tmp_path / "run", tiny_model, config=config)
    assert len(curve(tmp_path / "run")) == 2


def test_what_is_told_of_held_out_preferences(tmp_path: Path, tiny_model: Path) -> None:
    train("p-dpo", tmp_path / "run", tiny_model, config=settings(5))
    [found] = [line for line in metrics(tmp_path / "run") if "held_out_loss" in line]
    assert set(found) == {
        "step",
        "held_out_loss",
        "held_out_accuracy",
        "held_out_generic_accuracy",
        "held_out_worst_user",
    }
    assert found["held_out_worst_user"] <= found["held_out_accuracy"] <= 1
    train("p-dpo", tmp_path / "own", tiny_model, config=settings(5, alpha=1.0))
    [own] = [line for line in metrics(tmp_path / "own") if "held_out_loss" in line]
    assert set(found) - set(own) == {"held_out_generic_accuracy"}, "the generic user is not read"
    card = json.loads((tmp_path / "run" / "penname.json").read_text())
    assert card["data"]["pairs"] + card["data"]["held_out"] == 24
    assert card["data"]["held_out"] > 0
    train("p-dpo", tmp_path / "none", tiny_model, config=settings(5, held_out=0))
    assert not [line for line in metrics(tmp_path / "none") if "held_out_loss" in line]
    assert "On what was held out: nothing was." in (tmp_path / "none" / "README.md").read_text()


@pytest.mark.parametrize("users", ["individual", "cluster", "none"])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "kto"])
def test_every_user_model_learns_with_every_loss(
    tmp_path: Path, tiny_model: Path, users: Any, loss: Any
) -> None:
    tastes = {"ann": "long", "bob": "short"} if users != "none" else {"ann": "long", "bob": "long"}
    prepared = preferences(tastes)  # type: ignore[arg-type]
    if loss == "kto":
        prepared = ratings(prepared)
    config = settings(30, users=users, loss=loss, held_out=0, alpha=0.9)
    train("p-dpo", tmp_path / "run", tiny_model, prepared, config)
    losses = curve(tmp_path / "run")
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    personal = open_personal(tmp_path / "run")
    assert personal.has_users == (users != "none")
    assert personal.knows("ann") == (users != "none")
    assert saw(tmp_path / "run", "ann")
    assert not saw(tmp_path / "run", "carl")
    prefixes = [personal.prefix(user) for user in ("ann", "bob", "carl")]
    assert len({prefix and prefix.key for prefix in prefixes}) == (1 if users == "none" else 3)
    assert prefixes[0] is None or prefixes[0].rows.shape == (3, 32)


def test_one_run_writes_for_two_users_in_a_batch(tmp_path: Path, tiny_model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    train("p-dpo", tmp_path / "run", base, config=settings(30))
    personal = open_personal(tmp_path / "run")
    requests = [Request(task="write", input="the cat", users=(user,)) for user in ("ann", "bob", "carl")]
    with Store(tmp_path / "test.db") as store:
        for user in ("ann", "bob", "carl"):
            store.add_user(user)
        writer = Writer(store, personal.model, "p-dpo:run", personal=personal, temperature=0, max_tokens=12)
        together = writer.write_many(requests)
        alone = [writer.write(one) for one in requests]
    assert [draft.text for draft in together] == [draft.text for draft in alone]
    assert together[0].text != together[1].text
    assert [draft.notes for draft in together] == [
        (),
        (),
        ("p-dpo: the run does not know 'carl'; the generic user stands in",),
    ]


def test_all_weights_are_trained_and_the_base_is_not_needed(tmp_path: Path, tiny_model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    slow = OptimizerSettings(lr=3e-4, user_lr=2e-2, warmup=2)
    train("p-dpo", tmp_path / "run", base, config=settings(20, weights="full", optimizer=slow))
    train("p-rm", tmp_path / "reward", base, config=settings(5, weights="full", optimizer=slow))
    shutil.rmtree(base)
    losses = curve(tmp_path / "run")
    assert sum(losses[-5:]) < sum(losses[:5])
    assert not (tmp_path / "run" / "adapter").exists()
    personal = open_personal(tmp_path / "run")
    assert personal.model.generate(["the cat"], 1, GREEDY, [personal.prefix("ann")])[0][0].text
    with pytest.raises(TrainedError, match="no reference: it has no implicit reward"):
        open_reward(tmp_path / "run").rewards(["the"], ["cat"], ["ann"])
    assert len(open_reward(tmp_path / "reward").rewards(["the"], ["cat"], ["ann"])) == 1


@pytest.mark.parametrize(
    ("method", "changes", "own"),
    [
        ("p-dpo", {}, ["users.db", "users.safetensors"]),
        ("p-dpo", {"users": "none"}, ["users.db"]),
        ("p-rm", {"users": "cluster"}, ["head.safetensors", "users.db", "users.safetensors"]),
        ("p-rm", {"weights": "full"}, ["head.safetensors", "users.db", "users.safetensors"]),
    ],
)
def test_the_result_holds_no_path_no_user_and_no_text(
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Any,
    changes: dict[str, Any],
    own: list[str],
) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    tastes = {"ann.oakfield@example.org": "long", "bob.elmwood@example.org": "short"}
    prepared = preferences(tastes, about="likes zebras")  # type: ignore[arg-type]
    train(method, Path("run"), "base", prepared, settings(3, **changes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]
    weights = (
        sorted(f"model/{file}" for file in files(tiny_model))
        if changes.get("weights") == "full"
        else ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    )
    assert files(tmp_path / "run") == sorted(["README.md", "metrics.jsonl", "penname.json", *own, *weights])
    for file in files(tmp_path / "run"):
        content = (tmp_path / "run" / file).read_bytes()
        for secret in (str(tmp_path), str(Path.home()), "oakfield", "elmwood", "zebras", "sat on the mat"):
            assert secret.encode() not in content, f"{file} holds {secret}"
    if "weights" not in changes:
        config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "base"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "arXiv 2402.05133" in card
    assert "users: 2" in card


def test_text_about_the_user_stands_in_the_prompt(tmp_path: Path, tiny_model: Path) -> None:
    train("p-dpo", tmp_path / "without", tiny_model, config=settings(2))
    train("p-dpo", tmp_path / "with", tiny_model, preferences(about="likes bees"), settings(2))
    train("p-dpo", tmp_path / "other", tiny_model, preferences(about="likes owls"), settings(2))
    assert len({curve(tmp_path / name)[0] for name in ("without", "with", "other")}) == 3
    assert open_trained(tmp_path / "with").settings["about"] is True
    assert open_trained(tmp_path / "without").settings["about"] is False


def test_the_reference_is_asked_once_for_several_trainings(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "reference.sqlite"
    train("p-dpo", tmp_path / "a", tiny_model, config=settings(2), reference=file)
    before = file.read_bytes()
    train("p-dpo", tmp_path / "b", tiny_model, config=settings(2), reference=file)
    assert file.read_bytes() == before
    train("p-dpo", tmp_path / "c", tiny_model, config=settings(2))
    assert curve(tmp_path / "a") == curve(tmp_path / "b") == curve(tmp_path / "c")


def test_what_the_reference_says_of_tokens_is_kept_beside_the_sums(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "reference.sqlite"
    train("p-dpo", tmp_path / "sums", tiny_model, config=settings(2), reference=file)
    sparse = settings(2, sparse=1)
    train("p-dpo", tmp_path / "a", tiny_model, config=sparse, reference=file)
    before = file.read_bytes()
    train("p-dpo", tmp_path / "b", tiny_model, config=sparse, reference=file)
    assert file.read_bytes() == before
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "a") != curve(tmp_path / "sums")


# --- what is in the way


def test_left_out_is_counted_and_the_rest_is_trained_on(tmp_path: Path, tiny_model: Path) -> None:
    good = list(preferences().pairs)
    bad = [
        Pair("ann", "Tell of it.", "the same", " the same "),
        Pair("ann", "Tell of it.", "", "the cat"),
        Pair("ann", "Tell of it. " * 300, "the cat", "the dog"),
        Pair("ann", "Tell of it.", "the cat " * 300, "the dog"),
    ]
    nobodys = Pair(None, "Tell of it.", "the cat", "the dog")
    once = Pair("carl", "Tell of it.", "the hen", "the owl")
    prepared = prepare([*bad, *good, nobodys, once])
    assert prepared.remarks
    train("p-dpo", tmp_path / "run", tiny_model, prepared, settings(8))
    trained = open_trained(tmp_path / "run")
    assert trained.data["left_out"] == {
        "the chosen text equal to the rejected one": 1,
        "an empty answer": 1,
        "a prompt with its longest answer past the limit in tokens": 2,
    }
    assert trained.data["users"] == 3
    assert trained.data["pairs"] + trained.data["held_out"] == len(good) + 2
    assert "left out: 2 a prompt with its longest answer" in (tmp_path / "run" / "README.md").read_text()
    with UserTable.open(tmp_path / "run") as table:
        assert len(table) == 3
        assert np.any(table.row("carl")), "one preference is learnt from, too"
        assert table.learnt("carl").preferences == 1  # type: ignore[union-attr]


def test_preferences_of_nobody_train_the_generic_user_alone(tmp_path: Path, tiny_model: Path) -> None:
    prepared = preferences()
    nobodys = tuple(replace(pair, user=None) for pair in prepared.pairs if pair.user == "ann")
    anns = Pair("ann", "Tell of it.", "the hen", "the owl")
    config = settings(6, held_out=0, weights="lora", optimizer=OptimizerSettings(lr=1e-30, user_lr=0.02))
    train("p-dpo", tmp_path / "few", tiny_model, Prepared(pairs=(*nobodys, anns)), config)
    with UserTable.open(tmp_path / "few") as table:
        assert len(table) == 1
        assert np.abs(table.shared["generic"]).max() > 0


def test_nothing_fits_into_the_context(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(BadInputError, match="24 a prompt with its longest answer past the limit"):
        train("p-dpo", tmp_path / "run", tiny_model, config=settings(2, max_tokens=20))
    assert list(tmp_path.iterdir()) == []


def test_the_kind_of_preferences_must_fit_the_loss(tmp_path: Path, tiny_model: Path) -> None:
    for prepared, method, loss in (
        (ratings(preferences()), "p-dpo", "sigmoid"),
        (preferences(), "p-dpo", "kto"),
        (ratings(preferences()), "p-rm", "kto"),
    ):
        with pytest.raises(BadInputError, match=f"{method} with the loss '{loss}' cannot train on this kind"):
            train(method, tmp_path / "run", tiny_model, prepared, settings(2, loss=loss))  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"anchor": 1.0}, {"sparse": 3}])
def test_a_reward_has_no_tokens_to_keep(tmp_path: Path, tiny_model: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="a reward has no tokens"):
        train("p-rm", tmp_path / "run", tiny_model, config=settings(2, **changes))


def test_a_result_that_is_there_is_not_touched(tmp_path: Path, tiny_model: Path) -> None:
    train("p-dpo", tmp_path / "run", tiny_model, config=settings(2))
    before = {file: (tmp_path / "run" / file).read_bytes() for file in files(tmp_path / "run")}
    with pytest.raises(BadInputError, match="run is there already"):
        train("p-dpo", tmp_path / "run", tiny_model, config=settings(2))
    assert {file: (tmp_path / "run" / file).read_bytes() for file in files(tmp_path / "run")} == before


def begun(out: Path, model: Path) -> None:
    """A training of eight steps, stopped in the fourth, with a checkpoint after the third."""

    def stop(done: int, *_: object) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("p-dpo", out, model, config=settings(8, loop={"checkpoint_every": 3}), progress=stop)


def test_an_unfinished_training_of_other_settings_is_refused_by_name(
    tmp_path: Path, tiny_model: Path
) -> None:
    begun(tmp_path / "run", tiny_model)
    config = settings(8, loop={"checkpoint_every": 3})
    for prepared, changed, said in (
        (None, replace(config, beta=0.3), r"\(settings\.beta 0\.1 then, 0\.3 now\)"),
        (None, replace(config, users="none"), r"settings\.users 'individual' then, 'none' now"),
        (preferences(nouns=("cat", "dog")), config, r"data\.fingerprint .* data\.pairs"),
    ):
        with pytest.raises(BadInputError, match=f"unfinished training of other settings .*{said}"):
            train("p-dpo", tmp_path / "run", tiny_model, prepared, changed)
    train("p-dpo", tmp_path / "run", tiny_model, config=config)


def test_a_checkpoint_cut_short_is_named(tmp_path: Path, tiny_model: Path) -> None:
    begun(tmp_path / "run", tiny_model)
    [file] = workshop_of(tmp_path / "run").glob("checkpoint-*")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(TrainedError, match=r"checkpoint-00000003\.safetensors is cut short"):
        train("p-dpo", tmp_path / "run", tiny_model, config=settings(8, loop={"checkpoint_every": 3}))


def test_a_rate_that_is_far_too_high_is_told(tmp_path: Path, tiny_model: Path) -> None:
    wild = OptimizerSettings(lr=1e30, user_lr=1e30, warmup=0)
    with pytest.raises(BadInputError, match=r"the loss of step \d+ is no number: lower the learning rate"):
        train("p-dpo", tmp_path / "run", tiny_model, config=settings(10, optimizer=wild))
    assert not (tmp_path / "run").exists()
    assert all(math.isfinite(loss) for loss in curve(workshop_of(tmp_path / "run")))


def test_models_that_cannot_be_trained_are_told(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(BadInputError, match="is a server: it cannot be trained from here"):
        train("p-dpo", tmp_path / "run", "http://127.0.0.1:9/v1#told")
    with pytest.raises(ModelNotFoundError, match="mistyped"):
        train("p-dpo", tmp_path / "run", tmp_path / "mistyped")
    (tmp_path / "laid.toml").write_text(f'model = "{tiny_model}"\nadapter = "{tmp_path}/absent"\n')
    with pytest.raises((BadInputError, ModelError), match=r"adapter"):
        train("p-dpo", tmp_path / "run", tmp_path / "laid.toml")
    assert not (tmp_path / "run").exists()


def test_more_rows_than_the_vocabulary_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(BadInputError, match="600 rows of soft prompts are not from 1 to the"):
        train(
            "p-dpo",
            tmp_path / "run",
            tiny_model,
            config=settings(2, user_tokens=60, users="cluster", clusters=10),
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"users": "groups"}, "users: 'groups' is not one of individual, cluster, none"),
        ({"loss": "hinge"}, "loss: 'hinge' is not one of sigmoid, ipo, kto"),
        ({"alpha": 1.1}, "alpha: 1.1 is not from 0 to 1"),
        ({"held_out": 1.0}, "held_out: 1.0 is not from 0 to 0.99"),
        ({"beta": 0.0}, "beta: 0.0 is not above 0"),
        ({"beta": float("nan")}, "beta: nan is not above 0"),
        ({"user_tokens": 0}, "user_tokens: 0 is too small; at least 1"),
        ({"sparse": -1}, "sparse: -1 is too small; at least 0"),
        ({"sparse": 3, "loss": "kto"}, "KTO's single ratings have no pair"),
    ],
)
def test_settings_that_cannot_be_meant(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        PDPOConfig(**changes)
