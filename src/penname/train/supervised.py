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
    """

    def __init__(
        self, reader: PackedReader, train: Sequence[Target], held: Sequence[Target], *, portion: int
    ) -> None:
        self._reader = reader
        self._train = train
        self._held = held
        self._portion = portion

    @property
    def size(self) -> int:
        """Targets to train on."""
        return len(self._train)

    def backward(self, batch: Sequence[int]) -> Iterator[Metrics]:
        """As `train.loop.Job.backward`."""
        targets = [self._train[place] for place in batch]
        total = sum(len(one.answer) for one in targets)
        for some in portions(targets, _tokens, self._portion):
            loss = self._lost(some) / total
            loss.backward()  # type: ignore[no-untyped-call]
            yield {"loss": float(loss.detach())}

    def evaluate(self) -> Metrics:
        """As `train.loop.Job.evaluate`."""
        if not self._held:
            return {}
        total = sum(len(one.answer) for one in self._held)
        lost = sum(float(self._lost(some).detach()) for some in portions(self._held, _tokens, self._portion))
        return {"loss": lost / total}

    def _lost(self, targets: Sequence[Target]) -> torch.Tensor:
        """The weighted sum of negative log-likelihoods; answers of one prompt share its reading."""
        together: dict[tuple[int, ...], list[Target]] = {}
        for one in targets:
            together.setdefault(one.prompt, []).append(one)
        trees = [Tree(prompt, tuple(one.answer for one in some)) for prompt, some in together.items()]
        weights = [one.weight for some in together.values() for one in some]
        values = self._reader.log_probs(trees)
        return -(values * torch.tensor(weights, device=values.device)).sum()


def _tokens(target: Target) -> int:
    return target.tokens
