"""What a step of P-DPO, P-KTO and P-RM computes (arXiv 2402.05133): a batch's mixed loss, in portions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from penname.methods.prlhf.answers import Answers, Question
from penname.methods.prlhf.losses import (
    PairLoss,
    anchored,
    gap,
    kto_loss,
    mixed,
    pair_loss,
    sparse_gap,
)
from penname.methods.prlhf.users import GENERIC
from penname.train.kept import Asked
from penname.train.loop import Metrics
from penname.train.portions import portions


@dataclass(frozen=True)
class Example:
    """A pair, the chosen answer first, or one rated answer; all in token ids."""

    user: int  # the user's number; GENERIC where there is none
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    reference: tuple[float, ...]  # log π_ref of each answer; 0 for a reward model
    liked: bool = True
    weight: float = 1.0
    other: tuple[int, ...] = ()  # an answer to another prompt, for KTO's reference point
    other_reference: float = 0.0
    by_token: tuple[bytes, ...] = ()  # float32: log π_ref of each answer's tokens, where they are needed

    @property
    def tokens(self) -> int:
        """Tokens that reading it once costs."""
        return len(self.prompt) + sum(map(len, self.answers))


def with_reference(
    examples: Sequence[Example], ask: Callable[[list[Asked]], Sequence[float | bytes]]
) -> list[Example]:
    """The examples with what the frozen reference says of their answers. It sees no user tokens.

    Args:
        ask: from (prompt, answer) pairs to the reference's log-probabilities: a number for each answer, or
            the float32 numbers of its tokens as bytes.
    """
    answers = [(*one.answers, *([one.other] if one.other else [])) for one in examples]
    found = iter(
        ask([(one.prompt, answer) for one, mine in zip(examples, answers, strict=True) for answer in mine])
    )
    done = []
    for one in examples:
        own = tuple(next(found) for _ in one.answers)
        done.append(
            replace(
                one,
                reference=tuple(map(_whole, own)),
                by_token=tuple(value for value in own if isinstance(value, bytes)),
                other_reference=_whole(next(found)) if one.other else 0.0,
            )
        )
    return done


def _whole(value: float | bytes) -> float:
    """A text's log-probability, from that of its tokens where those are given."""
    return math.fsum(np.frombuffer(value, np.float32)) if isinstance(value, bytes) else value


Judge = Callable[[torch.Tensor, Sequence[Example], float], tuple[torch.Tensor, torch.Tensor]]
"""From values (n, answers), their examples and the reference point to losses (n,) and margins (n,).

By token the values are (n, answers, longest).
"""


def judge_pairs(beta: float, loss: PairLoss, anchor: float = 0.0) -> Judge:
    """P-DPO and P-IPO; with β = 1 and references of 0, P-RM. The margin is β Δ.

    Args:
        anchor: λ of `losses.anchored`; 0: as published.
    """

    def judge(
        values: torch.Tensor, examples: Sequence[Example], zero: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del zero
        reference = _references(examples, values)
        delta = gap(values[:, 0], values[:, 1], reference[:, 0], reference[:, 1])
        held = anchored(delta, values[:, 0], reference[:, 0], anchor) if anchor else delta
        return pair_loss(held, beta, loss), beta * delta.detach()

    return judge


def judge_sparse(beta: float, loss: PairLoss, count: int, anchor: float) -> Judge:
    """P-DPO and P-IPO by `losses.sparse_gap`, from values by token. The margin is β Δ of all tokens.

    Args:
        anchor: what a nat costs that other tokens have lost. It stands beside the loss: within the gap it
            would have no force any more where the pair is in order.
    """

    def judge(
        values: torch.Tensor, examples: Sequence[Example], zero: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del zero
        tokens = [
            torch.tensor(np.frombuffer(one, np.float32)) for example in examples for one in example.by_token
        ]
        reference = pad_sequence(tokens, batch_first=True).to(values.device)
        longest = reference.shape[1]
        ratios = values - reference.view(len(examples), 2, longest)
        lengths = torch.tensor([len(example.answers[1]) for example in examples], device=values.device)
        there = torch.arange(longest, device=values.device) < lengths[:, None]
        delta = ratios.sum(dim=2).detach()
        held, lost = sparse_gap(ratios[:, 0], ratios[:, 1], there, count)
        return pair_loss(held, beta, loss) + anchor * lost, beta * (delta[:, 0] - delta[:, 1])

    return judge


def judge_ratings(beta: float) -> Judge:
    """P-KTO. The margin is β (ratio − z₀), its sign turned for what was not liked."""

    def judge(
        values: torch.Tensor, examples: Sequence[Example], zero: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ratio = (values - _references(examples, values))[:, 0]
        liked = torch.tensor([example.liked for example in examples], device=values.device)
        weight = torch.tensor([example.weight for example in examples], device=values.device)
        losses = weight * kto_loss(ratio, liked, torch.tensor(zero, device=values.device), beta)
        return losses, beta * (ratio.detach() - zero) * torch.where(liked, 1, -1)

    return judge


def _references(examples: Sequence[Example], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([example.reference for example in examples], device=like.device)


class PreferenceJob:
    """The mixed loss over batches of examples. A `train.loop.Job`.

    Args:
        train, held: examples to train on, and those held out.
        alpha: share of the user's own loss; examples without a user have the generic one alone.
        portion: tokens read at once.
    """

    def __init__(
        self,
        answers: Answers,
        judge: Judge,
        train: Sequence[Example],
        held: Sequence[Example],
        *,
        alpha: float,
        portion: int,
    ) -> None:
        self._answers = answers
        self._judge = judge
        self._train = train
        self._held = held
        self._alpha = alpha
        self._portion = portion

    @property
    def size(self) -> int:
        """Examples to train on."""
        return len(self._train)

    def backward(self, batch: Sequence[int]) -> Iterator[Metrics]:
        """As `train.loop.Job.backward`."""
        examples = [self._train[place] for place in batch]
        zero = self._zero(examples)
        for some in self._portions(examples):
            losses, own, _ = self._outcome(some, zero)
            loss = losses.sum() / len(examples)
            loss.backward()  # type: ignore[no-untyped-call]
            yield {
                "loss": float(loss.detach()),
                "accuracy": float((own > 0).sum()) / len(examples),
                "margin": float(own.sum()) / len(examples),
            }

    def evaluate(self) -> Metrics:
        """As `train.loop.Job.evaluate`: also the accuracy of the user who is served worst, and, where the
        generic loss has a share, that of the generic user.
        """
        if not self._held:
            return {}
        zero = self._zero(self._held)
        total: dict[str, float] = defaultdict(float)
        right: dict[int, list[float]] = defaultdict(list)
        for some in self._portions(self._held):
            losses, own, generic = self._outcome(some, zero)
            total["loss"] += float(losses.detach().sum())
            total["accuracy"] += float((own > 0).sum())
            if self._alpha < 1:  # else the own values stand in its place
                total["generic_accuracy"] += float((generic > 0).sum())
            for example, margin in zip(some, own.tolist(), strict=True):
                right[example.user].append(float(margin > 0))
        worst = min(sum(some) / len(some) for some in right.values())
        return {**{name: value / len(self._held) for name, value in total.items()}, "worst_user": worst}

    def _outcome(
        self, examples: Sequence[Example], zero: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The mixed loss of each example, and the user's and the generic user's margin: (n,) each."""
        own, generic, shares = self._values(examples)
        own_losses, own_margins = self._judge(own, examples, zero)
        losses, margins = self._judge(generic, examples, zero)
        return mixed(own_losses, losses, shares), own_margins, margins

    def _values(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Own and generic values of all answers, as a judge wants them, and each example's share α of own.

        Where one of the two has no share, it is not read: the other stands in its place.
        """
        shares = [self._alpha if example.user != GENERIC else 0.0 for example in examples]
        sides: list[list[Question]] = [[], []]
        for example, share in zip(examples, shares, strict=True):
            own, generic = (example.user if share else GENERIC), (GENERIC if share < 1 else example.user)
            for side, user in zip(sides, (own, generic), strict=True):
                side += [Question(user, example.prompt, answer) for answer in example.answers]
        values = self._answers.values(sides[0] + sides[1])
        values = values.view(2, len(examples), -1, *values.shape[1:])
        return values[0], values[1], torch.tensor(shares, device=values.device)

    def _zero(self, examples: Sequence[Example]) -> float:
        """KTO's reference point z₀: the mean log-ratio of answers to other prompts, at least 0.

        Source: arXiv 2402.01306, section 4.1; 0 for pairs, which have no use for it.
        """
        asked = [example for example in examples if example.other]
        if not asked:
            return 0.0
        questions = [Question(example.user, example.prompt, example.other) for example in asked]
        values = self._answers.all(questions, self._portion)
        ratios = [value - example.other_reference for value, example in zip(values, asked, strict=True)]
        return max(0.0, sum(ratios) / len(ratios))

    def _portions(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """Runs of examples of about `portion` tokens, as often as each is read: for the user, for nobody."""
        both = 0 < self._alpha < 1

        def tokens(example: Example) -> int:
            return example.tokens * (2 if both and example.user != GENERIC else 1)

        return portions(examples, tokens, self._portion)
