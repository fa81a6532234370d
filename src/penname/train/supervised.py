"""Supervised fine-tuning: the likelihood of answers after their prompts, each with a weight of its own.

Reward-weighted likelihood, the M step of self-training (arXiv 2501.04167, section 3.3), is this with rewards
as weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from penname.train.loop import Metrics
from penname.train.packed import PackedReader, Tree
from penname.train.portions import portions


@dataclass(frozen=True)
class Target:
    """An answer to learn, in token ids with the one that ends it; nothing is learnt of the prompt."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    weight: float = 1.0

    @property
    def tokens(self) -> int:
        """Tokens that reading it costs."""
        return len(self.prompt) + len(self.answer)


class SupervisedJob:
    """−Σ w_i log p(y_i | x_i) / Σ |y_i| over a batch: nats per token. A `train.loop.Job`.

    Args:
        train, held: targets to train on, and those held out.
        portion: tokens read at once.

    An example of the loop is a prompt with all its answers: they are learnt in one step, and the prompt is
    read once for them.
    """

    def __init__(
        self, reader: PackedReader, train: Sequence[Target], held: Sequence[Target], *, portion: int
    ) -> None:
        self._reader = reader
        self._train = list(_by_prompt(train).values())
        self._held = held
        self._portion = portion

    @property
    def size(self) -> int:
        """Prompts to train on."""
        return len(self._train)

    def backward(self, batch: Sequence[int]) -> Iterator[Metrics]:
        """As `train.loop.Job.backward`."""
        targets = [one for place in batch for one in self._train[place]]
        total = sum(len(one.answer) for one in targets)
        for some in _readings(targets, self._portion):
            loss = self._lost(some) / total
            loss.backward()  # type: ignore[no-untyped-call]
            yield {"loss": float(loss.detach())}

    def evaluate(self) -> Metrics:
        """As `train.loop.Job.evaluate`."""
        if not self._held:
            return {}
        total = sum(len(one.answer) for one in self._held)
        lost = sum(float(self._lost(some).detach()) for some in _readings(self._held, self._portion))
        return {"loss": lost / total}

    def _lost(self, readings: Sequence[_Reading]) -> torch.Tensor:
        """The weighted sum of negative log-likelihoods."""
        weights = [weight for one in readings for weight in one.weights]
        values = self._reader.log_probs([one.tree for one in readings])
        return -(values * torch.tensor(weights, device=values.device)).sum()


@dataclass(frozen=True)
class _Reading:
    """A prompt with answers that are read after it in one go, and their weights."""

    tree: Tree
    weights: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return len(self.tree.prompt) + sum(map(len, self.tree.branches))


def _by_prompt(targets: Sequence[Target]) -> dict[tuple[int, ...], list[Target]]:
    """The targets of each prompt, in the order in which they come."""
    found: dict[tuple[int, ...], list[Target]] = {}
    for one in targets:
        found.setdefault(one.prompt, []).append(one)
    return found


def _readings(targets: Sequence[Target], portion: int) -> Iterator[list[_Reading]]:
    """Portions of what is to be read: a prompt comes once for all its answers, as far as they fit."""
    readings = [
        _Reading(Tree(prompt, tuple(one.answer for one in some)), tuple(one.weight for one in some))
        for prompt, answers in _by_prompt(targets).items()
        for some in portions(answers, lambda one: len(one.answer), portion - len(prompt))
    ]
    return portions(readings, lambda one: one.tokens, portion)
