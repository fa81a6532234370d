"""What a model makes of answers, for users: their log-probabilities, or what a scalar head says of them.

Everything here asks in one way, (user, prompt, answer); questions of one user and prompt share one reading of
the prompt, and equal ones are read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from penname.methods.prlhf.users import GENERIC
from penname.train.packed import PackedReader, Tree
from penname.train.portions import portions


class Question(NamedTuple):
    """An answer's token ids after a prompt's, for a user's number; `GENERIC` for the generic user."""

    user: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.answer)


class SoftPrompts(Protocol):
    """From users' numbers to soft prompts (users, T_u, width)."""

    def __call__(self, users: Sequence[int], /) -> torch.Tensor:
        """Differentiable where they are trained."""
        ...


class Answers:
    """Asks one model.

    Args:
        users: the soft prompts; None: the model knows no users, and all questions are the generic user's.
        head: (width,) float32 weights of a scalar head on the last token's hidden state; None: the answers'
            log-probabilities are asked for.
        by_token: of each token by itself; without a head.
    """

    def __init__(
        self,
        reader: PackedReader,
        users: SoftPrompts | None = None,
        head: torch.Tensor | None = None,
        *,
        by_token: bool = False,
    ) -> None:
        self._reader = reader
        self._users = users
        self._head = head
        self._by_token = by_token

    def values(self, questions: Sequence[Question]) -> torch.Tensor:
        """(questions,) float32: Σ log p of the answer's tokens, or its reward.

        By token: (questions, longest answer), log p of each token and 0 behind the answer's end.
        """
        numbers = list(dict.fromkeys(question.user for question in questions)) if self._users else []
        slots = {user: slot for slot, user in enumerate(numbers)}
        trees: dict[tuple[int, tuple[int, ...]], dict[tuple[int, ...], int]] = {}
        for question in questions:
            user = question.user if self._users else GENERIC
            answers = trees.setdefault((user, question.prompt), {})
            answers.setdefault(question.answer, len(answers))
        extra, rows = None, 0
        if self._users:
            soft = self._users(numbers)
            extra, rows = soft.flatten(0, 1), soft.shape[1]
        starts, laid, total = {}, [], 0
        for (user, prompt), answers in trees.items():
            first = self._reader.vocabulary + slots.get(user, 0) * rows
            laid.append(Tree((*range(first, first + rows), *prompt), tuple(answers)))
            starts[user, prompt] = total
            total += len(answers)
        found = self._read(laid, extra)
        places = []
        for question in questions:
            key = (question.user if self._users else GENERIC, question.prompt)
            places.append(starts[key] + trees[key][question.answer])
        return found[torch.tensor(places, device=found.device)]

    def each(self, questions: Sequence[Question], portion: int) -> Iterator[dict[int, float]]:
        """The values without gradients, by place, in portions of some `portion` tokens."""
        for taken, values in self._portions(questions, portion):
            yield dict(zip(taken, values.tolist(), strict=True))

    def each_by_token(self, questions: Sequence[Question], portion: int) -> Iterator[dict[int, list[float]]]:
        """As `each`, the log-probabilities of each answer's tokens."""
        for taken, values in self._portions(questions, portion):
            yield {
                place: row[: len(questions[place].answer)].tolist()
                for place, row in zip(taken, values, strict=True)
            }

    def all(self, questions: Sequence[Question], portion: int) -> list[float]:
        """The values without gradients, in the questions' order; read as `each` does."""
        found = {place: value for some in self.each(questions, portion) for place, value in some.items()}
        return [found[place] for place in range(len(questions))]

    def _portions(
        self, questions: Sequence[Question], portion: int
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        # Like prompts together: they are read once.
        order = sorted(range(len(questions)), key=lambda i: (questions[i].prompt, questions[i].user))
        for taken in portions(order, lambda place: questions[place].tokens, portion):
            with torch.no_grad():
                yield taken, self.values([questions[place] for place in taken])

    def _read(self, trees: list[Tree], extra: torch.Tensor | None) -> torch.Tensor:
        if self._by_token:
            return self._reader.log_probs_by_token(trees, extra)
        if self._head is None:
            return self._reader.log_probs(trees, extra)
        return self._reader.last_hidden(trees, extra).float() @ self._head
