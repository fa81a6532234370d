"""Texts that a model writes together; others join them while they are written.

Every step gives each text a token. Before it, those that wait are read, as many as one pass of the model
takes in well; the texts that are being written wait for no more than that pass. What is known of a prompt's
beginning is not read again (`PromptCache`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from penname.lm.base import Asked, Generation, Prefix
from penname.lm.batches import WORTH
from penname.lm.decoding import Decoding
from penname.lm.network import Network
from penname.lm.prefixes import SoftPrompts
from penname.lm.prompt_cache import Beginning, PromptCache
from penname.lm.rollout import Batch, Row
from penname.lm.sampling import most_tokens
from penname.lm.text import Showing


@dataclass(eq=False)
class _Text:
    """A text that waits or is written."""

    asked: Asked
    row: Row
    showing: Showing = field(init=False)

    def __post_init__(self) -> None:
        self.showing = Showing(self.row.writing, self.asked.sampling.stop)

    @property
    def ids(self) -> Sequence[int]:
        """Its prompt's tokens; those of a soft prompt begin with `FIRST`, whichever it is."""
        return self.row.writing.prompt

    @property
    def soft(self) -> str:
        """Which soft prompt that is; "": none."""
        return "" if self.asked.prefix is None else self.asked.prefix.key

    @property
    def key(self) -> tuple[object, ...]:
        """Texts of one key are read once, when they join together."""
        return self.asked.owner, self.soft, tuple(self.ids)

    @property
    def most(self) -> int:
        """Tokens that may yet be written."""
        return most_tokens(self.asked.sampling) - len(self.row.writing.ids)


class Session:
    """Texts of any prompts, soft prompts and settings, each written as it would be alone. Not for threads.

    A model that is not plain (see `Network.plain`) writes batch by batch: nobody joins one that has begun.
    After an error in `step` the session is of no use.

    Args:
        prompts: where the beginnings of owners' prompts are kept; a model that is not plain keeps none.
        row: what is asked as a row of a batch; raises what is wrong with it.
        soft: the soft prompts of several texts.
    """

    def __init__(
        self,
        network: Network,
        prompts: PromptCache,
        row: Callable[[Asked], Row],
        soft: Callable[[Sequence[Prefix | None]], SoftPrompts],
    ) -> None:
        self._network = network
        self._prompts = prompts
        self._row = row
        self._soft = soft
        self._waiting: list[_Text] = []
        self._texts: dict[Row, _Text] = {}  # that are written
        self._batch: Batch | None = None
        self._decoding: Decoding | None = None

    def __len__(self) -> int:
        """Texts that wait or are written."""
        return len(self._waiting) + len(self._texts)

    def add(self, asked: Asked) -> None:
        """Let a text join as soon as there is room for it; those that were added before it come first.

        Raises:
            PromptTooLongError, BadInputError: as `generate`; all other texts stay as they are.
        """
        self._waiting.append(_Text(asked, self._row(asked)))

    def leave(self, asked: Asked) -> None:
        """Nobody waits for this text any more."""
        self._waiting = [text for text in self._waiting if text.asked is not asked]
        for row, text in list(self._texts.items()):
            if text.asked is asked:
                text.showing.end()
                del self._texts[row]

    @torch.inference_mode()
    def step(self) -> list[tuple[Asked, str | Generation]]:
        """Write a token of each text. Returns what is new: pieces, and behind the last one the whole text."""
        if self._batch is not None and not self._batch.read():
            self._batch = self._decoding = None
        if texts := self._newcomers():
            self._join(texts)
        if self._batch is None:
            return []
        self._batch.draw()
        return self._news(self._batch)

    def _news(self, batch: Batch) -> list[tuple[Asked, str | Generation]]:
        new: list[tuple[Asked, str | Generation]] = []
        for row in batch.rows:
            text = self._texts[row]
            if piece := text.showing.new():
                new.append((text.asked, piece))
            if text.showing.ended:
                new.append((text.asked, row.writing.generation()))
                del self._texts[row]
        return new

    def _newcomers(self) -> list[_Text]:
        """Those that join now: the one that has waited longest, and others that are well read with it."""
        if self._batch is not None and self._decoding is None:
            return []
        texts: list[_Text] = []
        for text in self._waiting:
            if not self._fits([*texts, text]):
                break
            if self._alike([*texts, text]):
                texts.append(text)
        self._waiting = [text for text in self._waiting if text not in texts]
        return texts

    def _fits(self, texts: Sequence[_Text]) -> bool:
        """Whether there is room for these beside those that are written."""
        limits = self._network.limits
        rows = [*self._texts.values(), *texts]
        if len(rows) == 1:
            return True
        distinct = {text.key: len(text.ids) for text in texts}
        plain = self._network.plain
        lengths = list(distinct.values()) if plain else [len(text.ids) for text in texts]
        columns = max(text.most for text in rows)
        if self._decoding is not None:
            lengths += self._decoding.lengths
            columns += self._decoding.written
        return (
            len(rows) <= limits.rows
            and len(lengths) * max(lengths) + len(rows) * columns <= limits.kept
            and len(rows) * self._network.vocabulary <= limits.logits
        )

    def _alike(self, texts: Sequence[_Text]) -> bool:
        """Whether one pass reads these with little padding, and not too much at once."""
        rests = [len(text.ids) - _tokens(self._known(text)) for text in _firsts(texts)]
        read, needed = len(rests) * max(rests), sum(rests)
        if not self._network.plain:  # who is left out waits for a whole batch
            return len(rests) == 1 or read <= self._network.limits.tokens
        tokens = self._network.score_limits.tokens
        return len(rests) == 1 or (read <= tokens and read - needed <= max(WORTH, needed // 4))

    def _known(self, text: _Text) -> Beginning | None:
        return self._prompts.find(text.asked.owner, text.soft, text.ids) if self._network.plain else None

    def _join(self, texts: Sequence[_Text]) -> None:
        """Read the prompts of these, and let them be written with the others."""
        firsts = _firsts(texts)
        logits, cache, mask = self._read(firsts)
        if self._network.plain:
            for place, text in enumerate(firsts):
                length = len(text.ids)
                kept = [
                    (each.keys[place, :, -length:], each.values[place, :, -length:]) for each in cache.layers
                ]
                self._prompts.keep(text.asked.owner, text.soft, text.ids, kept)
        places = {text.key: place for place, text in enumerate(firsts)}
        origin = [places[text.key] for text in texts]
        rows = [text.row for text in texts]
        most = max(text.most for text in texts)
        self._texts.update(zip(rows, texts, strict=True))
        if self._batch is not None and self._decoding is not None:
            self._decoding.join(cache, mask, origin, most)
            self._batch.join(rows, logits[origin])
            return
        reading = self._network.reading(cache, mask, origin, most)
        self._decoding = reading if isinstance(reading, Decoding) else None
        self._batch = Batch(rows, logits[origin], reading)

    def _read(self, texts: Sequence[_Text]) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Logits (texts, vocabulary) of what follows each prompt, and the cache with its mask."""
        soft = self._soft([text.asked.prefix for text in texts])
        prompts = [[*own, *text.ids[len(own) :]] for own, text in zip(soft.ids, texts, strict=True)]
        known = [self._known(text) for text in texts]
        # All read as many tokens: of who has less to read, what is known is read again, rather than padding.
        read = max(len(prompt) - _tokens(one) for prompt, one in zip(prompts, known, strict=True))
        ids, mask = self._network.pad([prompt[-read:] for prompt in prompts])
        past = [max(0, len(prompt) - read) for prompt in prompts]
        cache = None
        if any(past):
            cache = _cache(known, past)
            _, before = self._network.pad([[0] * tokens for tokens in past])
            mask = torch.cat([before, mask], dim=1)
        logits, cache = self._network.forward(ids, mask, cache, keep=1, soft=soft)
        return logits[:, -1], cache, mask


def _firsts(texts: Sequence[_Text]) -> list[_Text]:
    """The first text of each prompt."""
    firsts: dict[tuple[object, ...], _Text] = {}
    for text in texts:
        firsts.setdefault(text.key, text)
    return list(firsts.values())


def _tokens(known: Beginning | None) -> int:
    return 0 if known is None else known.tokens


def _cache(known: Sequence[Beginning | None], past: Sequence[int]) -> DynamicCache:
    """The first `past` tokens of each beginning as rows of a cache, padded on the left."""
    cache = DynamicCache()
    for layer, example in enumerate(next(one for one in known if one is not None).layers):
        parts = []
        for part, like in enumerate(example):
            rows = like.new_zeros(len(past), like.shape[0], max(past), like.shape[2])
            for row, one, tokens in zip(rows, known, past, strict=True):
                if one is not None and tokens:
                    row[:, -tokens:] = one.layers[layer][part][:, :tokens]
            parts.append(rows)
        cache.update(parts[0], parts[1], layer)
    return cache
