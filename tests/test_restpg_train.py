"""REST-PG: its form, what is kept of its outputs, and whole trainings of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError, TrainedError
from penname.lm import ModelConfig, Sampling, load_model
from penname.methods.erase import forget
from penname.methods.restpg.config import RestPGConfig
from penname.methods.restpg.examples import Answer, Example, Material
from penname.methods.restpg.format import Format
from penname.methods.restpg.method import open_reasoning
from penname.methods.restpg.reasoning import Reasoned
from penname.methods.restpg.select import Sample, best, summary
from penname.methods.restpg.train import train_rest_pg
from penname.records import Document, Hit, Request
from penname.store import Store
from penname.tasks import task
from penname.train.folder import Trained, open_trained
from penname.train.loop import LoopSettings
from penname.train.optimizer import OptimizerSettings
from penname.train.sft import SFTConfig
from penname.writer import Writer
from tiny import save_tiny_model
from train_helpers import one_thread
from trained_runs import ROWS, WIDTH, rows, save_run

NOUNS = ("cat", "dog", "log", "mat")
FORM = Format(cue="I:", bridge=" So:", budget=24)


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a chat template: its prompts take a tenth of the tokens."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", template=False)


class LetterReward:
    """The share of an answer's letters that are a: as good a reward as any."""

    name, fingerprint, judges = "letters", "letters-1", ("judge-1",)

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False

    def rewards(
        self, answers: Sequence[Answer], progress: Callable[[int, int], None] = lambda *_: None
    ) -> list[float]:
        if self.fails:
            raise KeyboardInterrupt
        self.asked += len(answers)
        return [one.text.count("a") / max(1, len(one.text)) for one in answers]


class FlatReward(LetterReward):
    """Says the same of everything."""

    def rewards(
        self, answers: Sequence[Answer], progress: Callable[[int, int], None] = lambda *_: None
    ) -> list[float]:
        return [0.5] * len(answers)


class Saying:
    """Makes reasoning without a model."""

    fingerprint = "saying-1"

    def __init__(self, why: Mapping[str, str] = {}) -> None:
        self.why = why
        self.asked: list[str] = []

    def batches(self, materials: Sequence[Material]) -> Iterator[list[tuple[Material, Reasoned]]]:
        for one in materials:
            name = one.example.request.id
            self.asked.append(name)
            yield [(one, Reasoned(f"likes {name}", 0.0, self.why.get(name, "")))]


def materials(nouns: Sequence[str] = NOUNS) -> list[Material]:
    return [
        Material(
            Example(
                Request(
                    id=noun,
                    task="write",
                    input=f"the {noun}",
                    users=("ann", "bob") if noun == "log" else ("ann",),
                    gold=f"the {noun} sat on the mat",
                ),
                f"the {noun}:",
            )
        )
        for noun in nouns
    ]


def settings(**changes: Any) -> RestPGConfig:
    sft = SFTConfig(
        weights="full",
        dtype="float32",
        held_out=0.0,
        optimizer=OptimizerSettings(lr=1e-2, warmup=2),
        loop=LoopSettings(epochs=25, batch=4, evaluate_every=10, checkpoint_every=2),
    )
    config = RestPGConfig(
        reasoning=FORM,
        iterations=2,
        samples=6,
        temperature=1.0,
        threshold=0.01,
        answer_tokens=16,
        sft=sft,
    )
    return replace(config, **changes)


def train(out: Path, model: Path, config: RestPGConfig, **given: Any) -> Trained:
    asked: dict[str, Any] = {"reward": LetterReward(), "reasoner": Saying(), **given}
    found: list[Material] = asked.pop("found", None) or materials()
    return train_rest_pg(found, out, task=task("write"), config=config, model=str(model), **asked)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "ours", tiny_model, settings()).path


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


# The form


@given(st.text(), st.text())
def test_what_is_joined_is_split_again(reasoning: str, answer: str) -> None:
    joined = FORM.join(reasoning, answer)
    found, text = FORM.split(joined)
    assert text == answer.strip()
    assert FORM.bridge.strip() not in reasoning or FORM.bridge not in found


@given(st.text(alphabet="ab So:", max_size=40), st.integers(1, 5))
def test_a_stream_begins_at_the_answer(text: str, width: int) -> None:
    pieces = [text[i : i + width] for i in range(0, len(text), width)]
    assert "".join(FORM.answer(pieces)) == text.partition(FORM.bridge)[2]


# What is kept of a model's outputs


def some(*rewards: float) -> list[Sample]:
    return [Sample("", f"text {i}", False, reward) for i, reward in enumerate(rewards)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 0.99), st.integers(1, 12))
def test_the_best_are_kept_and_no_more_than_asked_for(
    rewards: list[float], quantile: float, most: int
) -> None:
    kept = best(some(*rewards), settings(threshold=None, quantile=quantile, most=most))
    assert len(kept) <= most
    assert all(rewards[kept[-1]] <= rewards[place] for place in kept)
    if kept:
        left = [rewards[place] for place in range(len(rewards)) if place not in kept]
        assert len(kept) == most or all(reward <= rewards[kept[-1]] for reward in left)


def test_cut_blank_and_repeated_outputs_are_not_learnt_from() -> None:
    samples = [
        Sample("", "long", True, 1.0),
        Sample("", "  ", False, 0.9),
        Sample("", "said", False, 0.8),
        Sample("", "said", False, 0.8),
        Sample("", "other", False, 0.1),
    ]
    assert best(samples, settings(threshold=None, quantile=0.0)) == [2, 4]
    assert best(samples, settings(threshold=0.5)) == [2]
    assert best(samples, settings(threshold=1.0)) == []


def test_rewards_that_are_all_one_number_tell_nothing_apart() -> None:
    assert best(some(0.4, 0.4, 0.4), settings(threshold=None, quantile=0.5)) == []
    assert best(some(0.4, 0.4, 0.4), settings(threshold=0.4)) == [0, 1, 2]


def test_the_summary_counts() -> None:
    others = [Sample("", "cut", True, 0.5), Sample("", "", False), Sample("", "mute", False)]
    inputs = [some(0.2, 0.8), others]
    found = summary(inputs, [[1], []])
    assert (found["samples"], found["cut"], found["blank"], found["kept"]) == (5, 1, 1, 1)
    assert found["unrewarded"] == 1  # of a reward of 0 with a text
    assert found["above"] == 0.5
    assert found["best_reward"] == pytest.approx(0.65)
    assert found["kept_reward"] == 0.8


# Whole trainings


def test_the_result_tells_how_it_came_about(run: Path) -> None:
    card = json.loads((run / "penname.json").read_text("utf-8"))
    assert card["method"] == "rest-pg"
    assert card["rewards"] == ["judge-1"]
    assert [line["iteration"] for line in card["iterations"]] == [1, 2]
    assert [row["id"] for row in lines(run / "seen" / "reasoning.jsonl")] == list(NOUNS)
    rows = lines(run / "seen" / "iteration-1.jsonl")
    assert [len(row["samples"]) for row in rows] == [6] * len(NOUNS)
    kept = [sample for row in rows for sample in row["samples"] if sample["kept"]]
    assert len(kept) == card["iterations"][0]["kept"] > 0
    assert open_reasoning(run / "iterations" / "0").format == FORM
    assert not list(run.parent.glob("*.training"))


def test_outputs_come_from_the_newest_weights(run: Path) -> None:
    for number in (1, 2):
        model = load_model(
            ModelConfig(str(run / "iterations" / str(number - 1) / "model"), shape="completion")
        )
        sampling = Sampling(16, 1.0, 0.95, task("write").stop(), number, FORM.thinking("completion"))
        [texts] = model.generate(["the cat:"], 6, sampling)
        seen = lines(run / "seen" / f"iteration-{number}.jsonl")[0]["samples"]
        assert [FORM.split(one.text)[1] for one in texts] == [sample["answer"] for sample in seen]


def test_each_maximisation_starts_from_the_base(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    again = train(tmp_path / "again", tiny_model, settings(start="previous")).path
    first = load_model(str(again / "iterations" / "0" / "model")).fingerprint
    assert open_trained(run / "iterations" / "1").model_fingerprint == load_model(str(tiny_model)).fingerprint
    assert open_trained(again / "iterations" / "1").model_fingerprint == first


@pytest.mark.parametrize("place", ["reasoning", "samples", "rewards", "model 2"])
def test_a_training_that_was_stopped_goes_on_to_the_same_result(
    place: str, run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    reward, saying = LetterReward(), Saying()
    reward.fails = place == "rewards"

    def stop(stage: str, done: int, total: int, _: Mapping[str, float]) -> None:
        if stage.startswith(place) and done == (4 if place == "samples" else 2) and place != "rewards":
            raise KeyboardInterrupt

    given: dict[str, Any] = {"reward": reward, "reasoner": saying}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "ours", tiny_model, settings(), progress=stop, **given)
    before = list(saying.asked)
    reward.fails = False
    assert weights(train(tmp_path / "ours", tiny_model, settings(), **given).path) == weights(run)
    assert saying.asked == [*before, *NOUNS[len(before) :]]


@pytest.mark.parametrize(
    ("reasoning", "iterations", "method"),
    [(None, 0, "sft"), (FORM, 0, "sft-reasoning"), (None, 1, "rest-em")],
)
def test_the_baselines_are_the_same_training_with_less(
    reasoning: Format | None, iterations: int, method: str, tiny_model: Path, tmp_path: Path
) -> None:
    found = train(tmp_path / "less", tiny_model, settings(reasoning=reasoning, iterations=iterations))
    assert found.method == method
    assert open_reasoning(found.path).format == reasoning


def test_a_reward_that_says_the_same_of_everything_ends_it(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"says 0\.5 of all 24 outputs"):
        train(tmp_path / "flat", tiny_model, settings(), reward=FlatReward())


def test_a_threshold_that_nothing_reaches_ends_it(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="none reaches the threshold"):
        train(tmp_path / "high", tiny_model, settings(threshold=1.0))


def test_reasoning_that_copies_is_not_learnt(tiny_model: Path, tmp_path: Path) -> None:
    told: list[str] = []
    saying = Saying({"cat": "copies the real text: overlap 0.5"})
    config = settings(iterations=0)
    found = train(tmp_path / "copied", tiny_model, config, reasoner=saying, note=told.append)
    assert any("3 of 4 are learnt" in text and "copies the real text: 1" in text for text in told)
    card = json.loads((found.path / "penname.json").read_text("utf-8"))
    assert card["method"] == "sft-reasoning"
    assert card["reasoning"]["left out: copies the real text"] == 1
    assert "reasoning learnt: 3 of 4" in (found.path / "README.md").read_text("utf-8")


def test_the_result_counts_what_was_left_out_and_what_was_short(tiny_model: Path, tmp_path: Path) -> None:
    [cat, dog, *rest] = materials()
    shown = Hit(user="ann", document=Document(id="old", text="the old mat"), score=1.0)
    blank = replace(
        dog, example=replace(dog.example, request=dog.example.request.model_copy(update={"gold": " "}))
    )
    found = train(
        tmp_path / "counted",
        tiny_model,
        settings(iterations=0, reasoning=None),
        found=[replace(cat, hits=(shown,)), blank, *rest],
        context={"stages": "retrieval", "k": 1},
        left_out={"requests left out: without a date": 7},
    ).path
    card = json.loads((found / "penname.json").read_text("utf-8"))
    assert card["left_out"] == {
        "requests left out: without a date": 7,
        "examples left out: their real text is empty": 1,
    }
    assert card["short_histories"] == len(rest)
    assert card["reasoning"] is None
    told = (found / "README.md").read_text("utf-8")
    assert "- requests left out: without a date: 7\n" in told
    assert f"{len(rest)} with fewer documents than k" in told


def test_nothing_to_learn_from_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    [one] = materials(["cat"])
    blank = replace(
        one, example=replace(one.example, request=one.example.request.model_copy(update={"gold": " "}))
    )
    with pytest.raises(BadInputError, match="no text to learn from"):
        train(tmp_path / "none", tiny_model, settings(), found=[blank])


@pytest.mark.parametrize(
    "change", [{"samples": 1}, {"threshold": 1.5}, {"quantile": 1.0}, {"temperature": 0.0}, {"most": 0}]
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=next(iter(change))):
        settings(**change)


# Writing


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "users.db") as opened:
        opened.add_user("ann").add([Document(title="the dog", text="the dog sat on the mat")])
        yield opened


def test_the_reasoning_never_reaches_the_text(run: Path, store: Store) -> None:
    writer = Writer(store, load_model(str(run / "model")), f"rest-pg:{run}", max_tokens=8, seed=3)
    request = Request(task="write", input="the cat", users=("ann",))
    draft = writer.write(request)
    assert FORM.bridge not in draft.text
    assert not draft.text.startswith(FORM.cue)
    assert "".join(writer.stream(request)) == draft.text
    assert draft.completion_tokens > 0


def test_a_method_reads_what_its_run_learnt_with(tiny_model: Path, store: Store, tmp_path: Path) -> None:
    shown = {"stages": "retrieval", "k": 2}
    found = train(tmp_path / "shown", tiny_model, settings(iterations=0), context=shown).path
    writer = Writer(store, load_model(str(tiny_model)), f"rest-pg:{found}", max_tokens=8)
    assert (writer.k, set(writer.stages)) == (2, {"retrieval", "rest-pg"})
    [draft] = writer.prompts([Request(task="email", input="the cat", users=("ann",))])
    assert [hit.document.title for hit in draft.documents] == ["the dog"]
    assert draft.notes == ("rest-pg: the run learnt the task 'write', and this is 'email'",)


def test_a_run_that_is_not_there_is_an_error(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainedError, match="no result of training"):
        Writer(store, load_model(str(tiny_model)), f"rest-pg:{tmp_path / 'nowhere'}")


def test_a_users_vector_is_laid_over_the_model_that_reasons(run: Path, store: Store, tmp_path: Path) -> None:
    base = load_model(ModelConfig(str(run / "model"), shape="completion"))
    ours = save_run(tmp_path / "ours", run / "model", "individual", {"ann": rows(1, ROWS, WIDTH)})
    writer = Writer(store, base, f"rest-pg:{run}+p-dpo:{ours}", max_tokens=8)
    pen = writer.pen(request := Request(task="write", input="the cat", users=("ann",)))
    assert pen.prefix is not None
    assert pen.format == FORM
    assert FORM.bridge not in writer.write(request).text
    other = save_run(tmp_path / "other", run / "iterations" / "0" / "model", "individual", {})
    with pytest.raises(TrainedError, match="not over the model of"):
        Writer(store, base, f"rest-pg:{run}+p-dpo:{other}")


# Erasing


def test_an_erased_user_is_out_of_what_it_saw(
    run: Path, store: Store, tmp_path: Path, copied: Callable[[Path], Path]
) -> None:
    mine = copied(run)
    store.add_trained(mine, "rest-pg")
    found = forget(store, "bob")
    assert found.weights == (mine,)
    assert found.lines == 3
    assert "log" not in {row["id"] for row in lines(mine / "seen" / "iteration-1.jsonl")}
    assert forget(store, "bob").lines == 0


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    def copy(run: Path) -> Path:
        import shutil

        return Path(shutil.copytree(run, tmp_path / "copied"))

    return copy
