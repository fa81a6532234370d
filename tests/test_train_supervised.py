"""Supervised fine-tuning: its loss and gradients are a naive implementation's; portions; Adam by rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from penname.errors import BadInputError
from penname.lm import Sampling, load_model
from penname.train.loop import LoopSettings
from penname.train.model import LoraSettings, load_trainable
from penname.train.optimizer import OptimizerSettings
from penname.train.packed import PackedReader, Tree
from penname.train.portions import portions
from penname.train.rows import RowAdam
from penname.train.sft import SFTConfig, Written, train_sft
from penname.train.supervised import SupervisedJob, Target
from train_helpers import curve, one_thread

NOUNS = ("cat", "dog", "log", "mat", "hat", "sun", "sea", "oak")


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


def written() -> list[Written]:
    """Two texts for each of eight prompts."""
    texts = ("the {} sat on the mat", "the {} lay")
    return [Written(f"Tell of the {noun}.", " " + text.format(noun)) for noun in NOUNS for text in texts]


def settings(epochs: float = 3, **changes: object) -> SFTConfig:
    loop = LoopSettings(epochs=epochs, batch=2, evaluate_every=5, checkpoint_every=5)
    rates = OptimizerSettings(lr=5e-3, warmup=2)
    return SFTConfig(
        lora=LoraSettings(4, 8),
        dtype="float32",
        held_out=0.25,
        optimizer=rates,
        loop=loop,
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("portion", [1, 45, 10_000])
def test_losses_and_gradients_are_the_naive_ones(tiny_model: Path, portion: int) -> None:
    model = load_trainable(str(tiny_model), weights="full", dtype="float32")
    targets = [
        Target(model.prompt(one.prompt), model.answer(one.answer), weight)
        for one, weight in zip(written()[:5], (1.0, 0.5, 2.0, 1.0, 0.0), strict=True)
    ]
    job = SupervisedJob(model.reader, targets, targets[:2], portion=portion)
    loss = sum(found["loss"] for found in job.backward(range(job.size)))
    ours = {name: one.grad.clone() for name, one in model.parameters.items() if one.grad is not None}
    held = job.evaluate()["loss"]

    network = model.reader.base
    network.set_attn_implementation("eager")
    network.zero_grad()
    total = torch.tensor(0.0)
    alone = []
    for one in targets:  # each text by itself, with logits at every place
        logits = network(torch.tensor([[*one.prompt, *one.answer]])).logits[0, len(one.prompt) - 1 : -1]
        lost = torch.nn.functional.cross_entropy(logits, torch.tensor(one.answer), reduction="sum")
        alone.append(float(lost.detach()))
        total = total + one.weight * lost
    total = total / sum(len(one.answer) for one in targets)
    total.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert held == pytest.approx(
        (alone[0] + 0.5 * alone[1]) / sum(len(one.answer) for one in targets[:2]), rel=1e-5
    )
    assert ours
    for name, one in model.parameters.items():
        if one.grad is not None:
            assert torch.allclose(ours[name], one.grad, atol=1e-4), name


class Reads:
    """A reader that notes the trees of each reading: tokens of the prompt, and answers."""

    def __init__(self) -> None:
        self.noted: list[list[tuple[int, int]]] = []

    def log_probs(self, trees: Sequence[Tree]) -> torch.Tensor:
        self.noted.append([(len(one.prompt), len(one.branches)) for one in trees])
        return torch.zeros(sum(len(one.branches) for one in trees), requires_grad=True)


@pytest.mark.parametrize(
    ("portion", "readings"),
    [
        (100, [[(10, 3), (8, 3)]]),
        (30, [[(10, 3)], [(8, 3)]]),
        (20, [[(10, 2)], [(10, 1)], [(8, 2)], [(8, 1)]]),
        (5, [[(10, 1)]] * 3 + [[(8, 1)]] * 3),
    ],
)
def test_a_prompt_is_read_once_for_the_answers_in_a_batch_that_fit(
    portion: int, readings: list[list[tuple[int, int]]]
) -> None:
    prompts = (tuple(range(10)), tuple(range(8)))
    targets = [Target(prompt, (answer,) * 5) for answer in range(3) for prompt in prompts]
    reads = Reads()
    job = SupervisedJob(cast(PackedReader, reads), targets, targets, portion=portion)
    list(job.backward(range(job.size)))
    assert reads.noted == readings
    job.evaluate()
    assert reads.noted == readings * 2


def test_the_result_is_a_whole_model_that_writes_what_it_learnt(tiny_model: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    odd = [Written("Tell.", " "), written()[0], Written("Tell. " * 200, " the cat")]
    trained = train_sft(
        [*written(), *odd], tmp_path / "run", model=str(tiny_model), config=settings(40), note=notes.append
    )
    assert notes == [
        "1 texts left out: empty",
        "1 texts left out: said twice",
        "1 texts left out: longer than 256 tokens with their prompts",
    ]
    assert trained.data["texts"] == 12
    assert trained.data["held_out"] == 4, "both texts of a quarter of the prompts"
    losses = curve(trained.path)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    model = load_model(str(trained.path / "model"))
    [[told]] = model.generate(["Tell of the dog."], 1, Sampling(max_tokens=20, temperature=0))
    assert told.finish == "stop", "it has learnt where to end"
    assert told.text.startswith(" the")


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tiny_model: Path, tmp_path: Path) -> None:
    whole = train_sft(written(), tmp_path / "whole", model=str(tiny_model), config=settings())

    def stop(done: int, *_: object) -> None:
        if done == 6:
            raise KeyboardInterrupt

    for progress in (stop, lambda *_: None):
        try:
            train_sft(
                written(), tmp_path / "cut", model=str(tiny_model), config=settings(), progress=progress
            )
        except KeyboardInterrupt:
            assert not (tmp_path / "cut").exists()
    assert curve(tmp_path / "cut") == curve(whole.path)
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_nothing_to_learn_from_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="there is no text to learn from"):
        train_sft([Written("Tell.", "")], tmp_path / "run", model=str(tiny_model), config=settings())


def test_portions_are_full_and_in_order() -> None:
    assert list(portions([3, 3, 3, 9, 1], lambda size: size, 6)) == [[3, 3], [3], [9], [1]]
    assert list(portions([], lambda size: size, 6)) == []


def test_rows_keep_the_gradients_direction_and_rest_without_one() -> None:
    table = torch.nn.Embedding(3, 4, sparse=True)
    flat = torch.nn.Parameter(torch.zeros(2))
    before = table.weight.detach().clone()
    optimizer = RowAdam([{"params": [table.weight], "lr": 0.1}, {"params": [flat], "lr": 1.0}])
    slope = torch.tensor([3.0, 0.0, -4.0, 0.0])
    for _ in range(3):
        (table(torch.tensor([1])) @ slope).sum().backward()
        (flat @ torch.tensor([0.0, 5.0])).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = table.weight.detach() - before
    assert torch.equal(moved[[0, 2]], torch.zeros(2, 4))
    # A constant gradient: each step is the rate along it, scaled to a root mean square of 1.
    assert torch.allclose(moved[1], -0.3 * slope / 2.5, atol=1e-5)
    assert torch.allclose(flat.detach(), torch.tensor([0.0, -3.0]), atol=1e-5), "plain Adam"


def test_fifty_steps_give_the_losses_that_they_always_gave(tiny_model: Path, tmp_path: Path) -> None:
    weights = [1.0, 0.5]  # as of the maximisation
    some = [Written(one.prompt, one.answer, weights[i % 2]) for i, one in enumerate(written())]
    trained = train_sft(some, tmp_path / "run", model=str(tiny_model), config=settings(50 / 3))
    losses = curve(trained.path)
    assert len(losses) == 50
    assert [losses[step] for step in (0, 9, 24, 49)] == pytest.approx(
        [5.931779, 4.643432, 2.659339, 2.295268], rel=1e-3
    )
