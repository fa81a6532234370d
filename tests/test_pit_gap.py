"""PIT's gap reward: its loss and its job beside plain ones, trainings of the tiny model, its calibration."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples_of
from hypothesis import strategies as st

from penname.errors import BadInputError, PromptTooLongError, TrainedError
from penname.methods.pit.calibration import (
    calibrate,
    calibration_error,
    fit_temperature,
    length_bias,
    probability,
    reliability,
)
from penname.methods.pit.form import Case, Form
from penname.methods.pit.gap import Gap, GapConfig, open_gap, train_gap
from penname.methods.pit.gap_train import HEAD, Example, GapJob
from penname.methods.pit.losses import five_terms
from penname.tasks import PromptTexts
from penname.train.checkpoint import load_tensors, save_tensors
from penname.train.folder import CARD, open_trained, workshop_of
from penname.train.index import saw
from penname.train.loop import LoopSettings
from penname.train.model import LoraSettings, Trainable, load_trainable
from penname.train.optimizer import OptimizerSettings
from penname.train.packed import PackedReader, Tree
from penname.train.preferences.data import Pair
from tiny import save_tiny_model
from train_helpers import NOUNS, curve, files, metrics, one_thread


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without a chat template, whose prompts are short enough for it."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "plain", template=False)


def texts(noun: str) -> tuple[tuple[str, str], ...]:
    """Better texts, each with a worse one."""
    return (f"the {noun} sat on the mat", f"a {noun}"), (f"the {noun} lay on the log", f"a {noun} ran")


def pairs(nouns: Sequence[str] = NOUNS, about: str = "") -> list[Pair]:
    """Two of each noun, of two users and of nobody."""
    return [
        Pair(("ann", "bob", None)[place % 3], f"Tell of the {noun}.", *two, about)
        for place, noun in enumerate(nouns)
        for two in texts(noun)
    ]


def settings(steps: float = 8, **changes: Any) -> GapConfig:
    """Of a training of the tiny model: float32, high rates, about `steps` steps on 18 pairs."""
    loop = LoopSettings(epochs=steps / 5, batch=4, evaluate_every=5, checkpoint_every=3)
    rates = OptimizerSettings(lr=5e-3, user_lr=1e-1, warmup=2)
    config = GapConfig(
        lora=LoraSettings(4, 8), dtype="float32", held_out=0.25, optimizer=rates, loop=loop, portion=600
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 steps."""
    out = tmp_path_factory.mktemp("runs") / "gap"
    train_gap(pairs(), out, model=str(tiny), config=settings(30), about={"task": "tales"})
    return out


# --- the loss


def test_the_five_terms_are_those_of_a_double_loop() -> None:
    values = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 3
    names = ("wl", "ww", "ll", "lw")
    better = {"wl": {"ww", "ll", "lw"}, "ww": {"lw"}, "ll": {"lw"}}
    expected = [0.0] * 9
    for pair in range(9):
        for one, a in zip(names, values[:, pair].tolist(), strict=True):
            for other, b in zip(names, values[:, pair].tolist(), strict=True):
                if other in better.get(one, ()):
                    expected[pair] += math.log1p(math.exp(-(a - b)))
    assert five_terms(*values).tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(five_terms(*(values + 7)), five_terms(*values), atol=1e-4), (
        "differences alone count"
    )
    assert five_terms(*torch.zeros(4, 1)).item() == pytest.approx(5 * math.log(2))


def test_the_gradient_is_that_of_finite_differences() -> None:
    values = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(five_terms, tuple(values.requires_grad_()))


# --- the job


def plain_values(model: Trainable, head: torch.Tensor, example: Example) -> list[torch.Tensor]:
    """s of (w, l), (w, w), (l, l), (l, w): each text after its prompt read by itself by transformers."""
    after_l, after_w = example.after_worse, example.after_better
    asked = [
        (after_l, example.better),
        (after_w, example.better),
        (after_l, example.worse),
        (after_w, example.worse),
    ]
    found = []
    for prompt, text in asked:
        read = model.reader.model(input_ids=torch.tensor([[*prompt, *text]]), output_hidden_states=True)
        found.append(read.hidden_states[-1][0, -1] @ head)
    return found


@pytest.mark.parametrize("portion", [1, 400, 10_000])
def test_values_and_gradients_are_those_of_each_text_read_by_itself(tiny: Path, portion: int) -> None:
    model = load_trainable(str(tiny), dtype="float32")
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in model.parameters.values():
            one.add_(torch.randn(one.shape, generator=chance) * 0.1)
    head = torch.nn.Parameter(torch.randn(model.reader.width, generator=chance) * 0.1)
    form = Form(model.shape, PromptTexts.load())
    examples = [
        Example(
            *(model.prompt(form.prompt(Case.of(pair, draft))) for draft in (pair.rejected, pair.chosen)),
            *(model.answer(form.answer(text)) for text in pair.answers),
        )
        for pair in pairs(NOUNS[:3], about="likes bees")
    ]
    job = GapJob(model.reader, head, examples, examples[:4], portion=portion)
    figures = list(job.backward(range(len(examples))))
    trained = {**model.parameters, "head": head}
    ours = {name: one.grad.clone() for name, one in trained.items() if one.grad is not None}
    assert len(figures) == {1: 6, 400: 3, 10_000: 1}[portion]
    loss = sum(one["loss"] for one in figures)
    for one in trained.values():
        one.grad = None

    values = job.values(examples).detach()
    held, gaps = job.evaluate(), job.held_gaps()
    model.reader.base.set_attn_implementation("eager")
    plain = torch.stack([torch.stack(plain_values(model, head, example)) for example in examples])
    assert torch.allclose(values, plain, atol=1e-4)
    naive = sum(five_terms(*row.unbind()) for row in plain) / len(examples)
    naive.backward()  # type: ignore[union-attr, no-untyped-call]
    assert loss == pytest.approx(float(naive.detach()), abs=1e-4)  # type: ignore[union-attr]
    assert set(ours) == {name for name, one in trained.items() if one.grad is not None}
    for name, grad in ours.items():
        assert torch.allclose(grad, trained[name].grad, atol=1e-4), name  # type: ignore[arg-type]

    wl, ww, ll, lw = plain[:4].detach().T
    assert gaps[0] == pytest.approx((wl - ll).tolist(), abs=1e-4)
    assert gaps[1] == pytest.approx((lw - ww).tolist(), abs=1e-4)
    assert held["accuracy"] == float((wl > ll).float().mean())
    assert held["worse_accuracy"] == float((lw < ww).float().mean())
    assert held["margin"] == pytest.approx(float((wl - ll - lw + ww).mean()) / 2, abs=1e-4)
    assert held["loss"] == pytest.approx(float(five_terms(wl, ww, ll, lw).mean()), abs=1e-4)


# --- training


def test_it_learns_which_text_is_better_than_which(run: Path, tiny: Path) -> None:
    losses = curve(run)
    assert losses[0] == pytest.approx(5 * math.log(2)), "the head begins at 0"
    assert np.mean(losses[-5:]) < 1
    held = [line for line in metrics(run) if "held_out_accuracy" in line]
    assert held[0]["held_out_loss"] > held[-1]["held_out_loss"]
    for name in ("held_out_accuracy", "held_out_worse_accuracy"):
        assert held[0][name] < 0.75 < held[-1][name]
    assert held[-1]["held_out_margin"] > 1
    gap = open_gap(run)
    for noun in ("cup", "ice"):  # in no pair
        better, worse = texts(noun)[0]
        cases = [Case(f"Tell of the {noun}.", draft) for draft in (worse, worse, better, better)]
        up, same, still, down = gap.gaps(cases, [better, worse, better, worse])
        assert up > 0 > down
        assert same == still == 0
        assert gap.probability(up) > 0.5 > gap.probability(down)


def test_the_result_says_what_it_is(run: Path, tiny: Path) -> None:
    trained = open_trained(run, "pit-gap")
    card = json.loads((run / CARD).read_text(encoding="utf-8"))
    assert trained.settings["task"] == "tales"
    assert card["rewards"] == []
    assert trained.data["pairs"] == 18
    assert trained.data["held_out"] == 6
    assert trained.data["users"] == 2
    assert [saw(run, user) for user in ("ann", "bob", "carl")] == [True, True, False]
    assert {file for file in files(run) if "/" not in file} == {
        "README.md", "head.safetensors", "metrics.jsonl", "penname.json", "reliability.json",
        "reliability.png", "users.db",
    }  # fmt: skip
    calibration = card["calibration"]
    assert calibration["calibrated"]
    assert calibration["pairs"] == 6
    assert calibration["length"]["longer"] == {"pairs": 6, "accuracy": calibration["accuracy"]}
    assert calibration["length"]["shorter"] == {"pairs": 0, "accuracy": None}
    assert calibration["length"]["correlation"] > 0.5
    kept = json.loads((run / "reliability.json").read_text(encoding="utf-8"))
    assert sum(one["count"] for one in kept["bins"]) == 12
    assert open_gap(run).temperature == calibration["temperature"] == kept["temperature"]
    readme = (run / "README.md").read_text(encoding="utf-8")
    assert f"{calibration['accuracy']:.1%} of 6 where it is the longer" in readme
    assert not any(text in readme for pair in pairs() for text in (*pair.answers, pair.prompt, str(run)))


def test_a_stopped_training_comes_to_the_same(tiny: Path, tmp_path: Path) -> None:
    def stop(done: int, *_: object) -> None:
        if done == 4:
            shutil.copytree(workshop_of(tmp_path / "cut"), workshop_of(tmp_path / "lost"))
        if done == 5:
            raise KeyboardInterrupt

    def go(name: str, **more: Any) -> None:
        train_gap(pairs(), tmp_path / name, model=str(tiny), config=settings(), **more)

    go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", progress=stop)
    for name in ("cut", "lost"):  # stopped; gone with all that came after the newest checkpoint
        done: list[int] = []
        go(name, progress=lambda step, *_, done=done: done.append(step))
        assert done == [4, 5, 6, 7, 8]
        assert metrics(tmp_path / name) == metrics(tmp_path / "whole")
        for file in (CARD, HEAD, "adapter/adapter_model.safetensors", "reliability.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
        assert open_gap(tmp_path / name).fingerprint == open_gap(tmp_path / "whole").fingerprint


def test_what_cannot_be_learnt_from_is_left_out_and_told(tiny: Path, tmp_path: Path) -> None:
    odd = [
        Pair("eve", "Tell.", "the cat", " "),
        Pair("eve", "Tell.", "the cat", " the cat "),
        Pair("eve", "Tell.", "the dog " * 100, "the cat"),
        Pair("eve", "Tell. " * 60, "the dog", "the cat"),
    ]
    told: list[str] = []
    config = settings(1, held_out=0.0)
    trained = train_gap([*odd, *pairs()], tmp_path / "run", model=str(tiny), config=config, note=told.append)
    assert told == [
        "1 pairs left out: a text is empty",
        "1 pairs left out: both texts are the same",
        "2 pairs left out: longer than 256 tokens, a draft with its prompt and a text after it",
        "nothing was held out: the probabilities of this gap reward are not calibrated",
    ]
    assert sum(trained.data["left_out"].values()) == 4
    assert not saw(trained.path, "eve"), "nothing of hers was learnt from"
    card = json.loads((trained.path / CARD).read_text(encoding="utf-8"))
    assert card["calibration"] == {"calibrated": False, "temperature": 1.0}
    assert not list(trained.path.glob("reliability*"))
    gap = open_gap(trained.path)
    assert gap.probability(1.0) == pytest.approx(1 / (1 + math.exp(-1)))

    with pytest.raises(BadInputError, match="all were left out"):
        train_gap(odd, tmp_path / "none", model=str(tiny), config=config)
    with pytest.raises(BadInputError, match="there are no pairs"):
        train_gap([], tmp_path / "none", model=str(tiny), config=config)
    with pytest.raises(BadInputError, match="is there already"):
        train_gap(pairs(), trained.path, model=str(tiny), config=config)
    with pytest.raises(BadInputError, match="held_out"):
        GapConfig(held_out=1.0)
    with pytest.raises(BadInputError, match="max_tokens"):
        GapConfig(max_tokens=0)


def test_all_pairs_of_a_prompt_are_on_one_side(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Two users and two pairs a prompt: were any of them held out alone, the counts would not be fours."""
    many = [replace(pair, user=user) for pair in pairs() for user in ("ann", "bob")]
    seen: list[tuple[list[Example], list[Example]]] = []
    own = GapJob.__init__

    def spy(self: GapJob, reader: Any, head: Any, train: Any, held: Any, **more: Any) -> None:
        seen.append((train, held))
        own(self, reader, head, train, held, **more)

    monkeypatch.setattr(GapJob, "__init__", spy)
    train_gap(many, tmp_path / "run", model=str(tiny), config=settings(1))
    [(kept, held)] = seen
    assert (len(kept), len(held)) == (36, 12)
    prompts = [
        {one.after_better for one in side} | {one.after_worse for one in side} for side in (kept, held)
    ]
    assert not prompts[0] & prompts[1]


def test_all_weights_can_be_trained(tiny: Path, tmp_path: Path) -> None:
    config = settings(2, weights="full", held_out=0.0)
    trained = train_gap(pairs(), tmp_path / "run", model=str(tiny), config=config)
    assert trained.adapter is None
    gap = open_gap(trained.path, "no-such-model-is-needed")
    [found] = gap.gaps([Case("Tell of the cat.", "a cat")], ["the cat sat"])
    assert found != 0


# --- reading


def test_gaps_are_those_of_each_by_itself(run: Path) -> None:
    gap = open_gap(run)
    drafts, written = ["a cat", "the cat sat", "a cat", "a dog"], ["the cat", "the mat", "a log", "the cat"]
    cases = [
        Case("Tell of the cat.", draft, about) for draft, about in zip(drafts, ("", "", "", "x"), strict=True)
    ]
    together = gap.gaps(cases, written)
    alone = [gap.gaps([case], [text])[0] for case, text in zip(cases, written, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len({round(one, 5) for one in together}) == 4
    assert gap.gaps([], []) == []
    assert gap.gaps(cases[:1] * 2, ["a  cat".replace("  ", " "), " a cat\n"]) == [0.0, 0.0]
    many = gap.gaps(cases[:1] * 40, [f"the cat {word}" for word in ("sat ", "lay ") for _ in range(20)])
    assert len({round(one, 4) for one in many}) == 2
    assert gap.gaps(cases[:2], ["  ", "the mat"]) == [-math.inf, pytest.approx(alone[1], abs=1e-4)]
    assert gap.probability(-math.inf) == 0


def test_a_gap_is_the_plain_models_difference(run: Path, tiny: Path) -> None:
    gap = open_gap(run)
    model = load_trainable(str(tiny), weights=None, dtype="float32", adapter=run / "adapter")
    head = load_tensors(run / HEAD)[0]["head"]
    form = Form(model.shape, PromptTexts.load())
    case, text = Case("Tell of the sun.", "a sun", "likes bees"), "the sun ran"
    prompt = model.prompt(form.prompt(case))
    model.reader.base.set_attn_implementation("eager")
    with torch.no_grad():
        s = []
        for one in (text, case.draft):
            ids = torch.tensor([[*prompt, *model.answer(form.answer(one))]])
            s.append(
                float(
                    model.reader.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
                    @ head
                )
            )
    assert gap.gaps([case], [text]) == [pytest.approx(s[0] - s[1], abs=1e-4)]


def test_texts_of_one_prompt_are_branches_of_one_tree(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gap = open_gap(run)
    noted: list[list[int]] = []
    own = PackedReader.last_hidden

    def spy(self: PackedReader, trees: Sequence[Tree], *more: Any) -> torch.Tensor:
        noted.append([len(tree.branches) for tree in trees])
        return own(self, trees, *more)

    monkeypatch.setattr(PackedReader, "last_hidden", spy)
    case, other = Case("Tell.", "a cat"), Case("Tell.", "a dog")
    gap.gaps([case, other, case, case], ["the cat", "the cat", "the mat", "the cat"])
    assert noted == [[3, 2]], "two texts and the draft; a text and the draft"


def test_what_does_not_fit_is_told(run: Path) -> None:
    gap = open_gap(run)
    case, long = Case("Tell.", "a cat"), "the dog " * 150
    assert gap.fits(case, "the cat")
    assert not gap.fits(case, long)
    assert not gap.fits(Case("Tell.", long), "the cat")
    with pytest.raises(PromptTooLongError, match=r"case 2: the draft with its prompt .* the model reads 256"):
        gap.gaps([case, case], ["the cat", long])


def test_only_its_own_base_and_its_own_parts_will_do(run: Path, tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    other = shutil.copytree(tiny, tmp_path / "other")
    network = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        network.model.norm.weight.mul_(2)
    network.save_pretrained(other)
    with pytest.raises(TrainedError, match="has the weights"):
        open_gap(run, str(other))
    moved = shutil.copytree(tiny, tmp_path / "moved")
    assert isinstance(open_gap(run, str(moved)), Gap)

    for name, break_it, match in (
        ("adapter", lambda at: shutil.rmtree(at / "adapter"), "cut short"),
        ("head", lambda at: (at / HEAD).unlink(), "head"),
        ("width", lambda at: save_tensors(at / HEAD, {"head": torch.zeros(3)}, {}), "another model"),
        (
            "card",
            lambda at: (at / CARD).write_text((at / CARD).read_text().replace('"temperature"', '"t"')),
            "temp",
        ),
    ):
        broken = shutil.copytree(run, tmp_path / name)
        break_it(broken)
        with pytest.raises(TrainedError, match=match):
            open_gap(broken)
    with pytest.raises(TrainedError, match="no result of training"):
        open_gap(tmp_path / "nowhere")


def test_the_fingerprint_is_of_what_decides(run: Path, tmp_path: Path) -> None:
    own = open_gap(run).fingerprint
    copied = shutil.copytree(run, tmp_path / "copied")
    assert open_gap(copied).fingerprint == own
    head = load_tensors(copied / HEAD)[0]["head"]
    save_tensors(copied / HEAD, {"head": head + 1}, {})
    assert open_gap(copied).fingerprint != own


# --- calibration


@examples_of(max_examples=30)
@given(st.floats(-2, 2), st.integers(0, 10_000))
def test_the_temperature_recovers_a_known_scale(log_t: float, seed: int) -> None:
    """Gaps that are T times the true log odds."""
    chance, true = np.random.default_rng(seed), math.exp(log_t)
    odds = chance.normal(0, 2, 8000)
    right = chance.random(8000) < 1 / (1 + np.exp(-odds))
    gaps = odds * true
    assert fit_temperature(gaps[right], gaps[~right]) == pytest.approx(true, rel=0.15)


# No gap between 0 and 1e-300: times a factor it would be lost below the smallest number there is.
GAPS = st.floats(-50, 50).filter(lambda gap: gap == 0 or abs(gap) > 1e-300)


@given(st.lists(GAPS, min_size=1, max_size=30), st.floats(0.01, 100))
def test_the_temperature_is_the_best_there_is_and_goes_with_the_scale(
    gaps: list[float], factor: float
) -> None:
    better, worse = np.array(gaps), -np.array(gaps) * 0.7
    found = fit_temperature(better, worse)
    assert found > 0
    assert math.isfinite(found)
    assert fit_temperature(better * factor, worse * factor) == pytest.approx(
        found * factor if np.abs(better).mean() else 1, rel=1e-2
    )
    margins = np.concatenate([better, -worse])
    label = (len(margins) + 1) / (len(margins) + 2)

    def lost(t: float) -> float:
        x = margins / t
        return float((label * np.logaddexp(0, -x) + (1 - label) * np.logaddexp(0, x)).mean())

    if margins.mean() > 0.01 * np.abs(margins).mean():  # else the best T is beyond all bounds
        assert all(lost(found) <= lost(found * step) + 1e-6 for step in (0.5, 0.9, 1.1, 2))


def test_a_temperature_is_there_where_every_gap_is_right_and_where_none_says_anything() -> None:
    few, many = (fit_temperature([2.0] * n, [-2.0] * n) for n in (1, 100))
    assert few > many > 0, "the more gaps, the surer"
    assert fit_temperature([0.0, 0.0], [0.0, 0.0]) == fit_temperature([], []) == 1
    assert fit_temperature([5e-324], [0.0]) > 0, "the smallest gap there is"
    assert probability(1.0, fit_temperature([-1.0] * 9, [1.0] * 9)) == pytest.approx(0.5, abs=0.01)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60))
def test_bins_hold_each_probability_once(given_: list[tuple[float, bool]]) -> None:
    said, true = [one for one, _ in given_], [label for _, label in given_]
    bins = reliability(said, true)
    assert sum(one.count for one in bins) == len(said)
    assert sum(one.count * one.better for one in bins) == pytest.approx(sum(true))
    assert sum(one.count * one.probability for one in bins) == pytest.approx(sum(said))
    assert [one.probability for one in bins] == sorted(one.probability for one in bins)
    assert 0 <= calibration_error(bins) <= 1


def test_the_error_is_the_mean_distance_from_the_diagonal() -> None:
    bins = reliability([0.95] * 4 + [0.05, 0.05], [True, True, True, False, False, True])
    assert [(one.better, one.count) for one in bins] == [(0.5, 2), (0.75, 4)]
    assert calibration_error(bins) == pytest.approx((4 * 0.2 + 2 * 0.45) / 6)
    assert calibration_error(()) == 0
    assert reliability([1.0, 0.0], [True, False])[-1].count == 1


def test_calibrating_helps_gaps_that_are_too_sure() -> None:
    chance = np.random.default_rng(0)
    odds = chance.normal(1, 2, 3000)
    margins = np.where(chance.random(3000) < 1 / (1 + np.exp(-np.abs(odds))), 1, -1) * np.abs(odds) * 8
    found = calibrate(margins[:1500], -margins[1500:], [9] * 1500, [9] * 1500)
    assert found.temperature == pytest.approx(8, rel=0.15)
    assert found.error < 0.03 < found.error_raw
    assert found.log_loss < found.log_loss_raw
    assert found.length.correlation is None
    assert found.length.longer.pairs == found.length.shorter.pairs == 0


def test_a_reward_of_length_is_found_out() -> None:
    lengths = np.array([10, 40, 30, 5]), np.array([20, 10, 10, 50])
    ratio = np.log(lengths[0] / lengths[1])
    found = length_bias(ratio, -ratio, *lengths)
    assert (found.longer.pairs, found.longer.accuracy) == (2, 1)
    assert (found.shorter.pairs, found.shorter.accuracy) == (2, 0)
    assert found.correlation == pytest.approx(1)


def test_a_probability_is_one_at_any_size() -> None:
    assert [probability(gap, 2.0) for gap in (-math.inf, -1e6, 0, 1e6, math.inf)] == [0, 0, 0.5, 1, 1]
    assert probability(2.0, 2.0) == pytest.approx(1 - probability(-2.0, 2.0))
