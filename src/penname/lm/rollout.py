"""Writing a batch of texts to their ends, a token each a step, whatever keeps what has been read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from penname.lm.base import Sampling
from penname.lm.batches import Limits
from penname.lm.sampling import draw_each, most_tokens
from penname.lm.text import Writing


class Row:
    """One text of a batch, with a source of chance of its own."""

    def __init__(self, writing: Writing, seed: int) -> None:
        self.writing = writing
        self.chance = np.random.default_rng(seed)


class Reading(Protocol):
    """What a model has read of a batch of texts."""

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (texts, vocabulary) of what follows `tokens` (texts,), the next token of each text."""
        ...

    def keep(self, order: Sequence[int]) -> None:
        """Go on with the texts at these places alone, in this order."""
        ...


class Repeated:
    """A `Reading` by transformers' own cache, in which a prompt is repeated for each of its texts.

    For models that `Decoding` cannot do: windows, recurrent layers, attention of another kind.

    Args:
        forward: ids and mask (rows, tokens) and a cache to logits (rows, 1, vocabulary) and the cache.
        cache: of the prompts.
        mask: (prompts, longest), 0 where it is padding.
        origin: for each text the prompt that it follows.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[torch.Tensor, Any]],
        cache: Any,
        mask: torch.Tensor,
        origin: list[int],
    ) -> None:
        self._forward, self._cache = forward, cache
        self._mask = take(origin, cache, mask)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """As `Reading.read`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        logits, self._cache = self._forward(tokens[:, None], self._mask, self._cache, keep=1)
        return logits[:, -1]

    def keep(self, order: Sequence[int]) -> None:
        """As `Reading.keep`."""
        self._mask = take(order, self._cache, self._mask)


class Batch:
    """Texts that are being written together, a token each a step.

    Args:
        rows: at least one.
        logits: (rows, vocabulary), of each text's first token.
    """

    def __init__(self, rows: Sequence[Row], logits: torch.Tensor, reading: Reading) -> None:
        self.rows = list(rows)
        self._logits = logits
        self._reading = reading
        self._drawn: list[int] = []

    def draw(self) -> None:
        """Give each text its next token."""
        uniform = torch.tensor([row.chance.random() for row in self.rows], dtype=torch.float64)
        samplings = [row.writing.sampling for row in self.rows]
        drawn = draw_each(self._logits, samplings, uniform).tolist()
        self._drawn = [row.writing.push(token) for row, token in zip(self.rows, drawn, strict=True)]

    def read(self) -> bool:
        """Read what was drawn. Ended texts leave the batch; False when none is left."""
        staying = [place for place, row in enumerate(self.rows) if row.writing.finish is None]
        if not staying:
            return False
        if len(staying) < len(self.rows):
            order = filled(staying)
            self.rows = [self.rows[place] for place in order]
            self._drawn = [self._drawn[place] for place in order]
            self._reading.keep(order)
        self._logits = self._reading.read(torch.tensor(self._drawn, device=self._logits.device))
        return True

    def join(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """More texts, which the batch's `Reading` has been told of; after `read`, and before `draw`."""
        self.rows += rows
        self._logits = torch.cat([self._logits, logits])


def write(batch: Batch) -> Iterator[None]:
    """Write texts to their ends; yields after each step."""
    while True:
        batch.draw()
        yield
        if not batch.read():
            return


def filled(staying: Sequence[int]) -> list[int]:
    """The ascending places `staying` in an order that moves few: the last ones go where others have left."""
    count = len(staying)
    first = [place for place in staying if place < count]
    last = iter(staying[len(first) :])
    kept = set(first)
    return [place if place in kept else next(last) for place in range(count)]


def batches(
    rows: Sequence[Row], sampling: Sampling, vocabulary: int, limits: Limits, *, repeated: bool
) -> Iterator[list[Row]]:
    """Texts to write together, alike in length: a prompt's are neighbours.

    A prompt counts once in what is kept or, `repeated`, for each of its texts.
    """
    most = most_tokens(sampling)
    batch: list[Row] = []
    prompts = 0
    ordered = sorted(rows, key=lambda row: (len(row.writing.prompt), row.writing.prompt))
    for row in ordered:
        prompt = row.writing.prompt
        more = prompts + (not batch or prompt != batch[-1].writing.prompt)
        texts = len(batch) + 1
        if batch and (
            texts > limits.rows
            or more * len(prompt) > limits.tokens
            or (texts if repeated else more) * len(prompt) + texts * most > limits.kept
            or texts * vocabulary > limits.logits
        ):
            yield batch
            batch, more = [], 1
        batch.append(row)
        prompts = more
    if batch:
        yield batch


def take(rows: Sequence[int], cache: Any, tensor: torch.Tensor) -> torch.Tensor:
    """The given rows of the cache, in place, and of a tensor; rows may repeat."""
    index = torch.tensor(rows, device=tensor.device)
    cache.batch_select_indices(index)
    return tensor[index]
