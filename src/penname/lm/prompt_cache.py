"""What users' prompts begin with, as a model has read it: keys and values, each user's for that user alone.

A later prompt of the same owner that begins alike reads only the rest. Nothing is kept without an owner, and
no owner's prompts are looked up for another one: not even the time of an answer tells what others have asked.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penname.lm.base import Owner

if TYPE_CHECKING:
    import torch

    Layers = list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values of each layer, (heads, tokens, width)."""

MEMORY = 512 * 2**20  # bytes of keys and values


@dataclass(frozen=True, eq=False)
class Beginning:
    """What is kept of a prompt's first `tokens` tokens; the tensors may hold more."""

    tokens: int
    layers: Layers


@dataclass(frozen=True, eq=False)
class _Kept:
    key: tuple[Owner, str]
    ids: np.ndarray
    layers: Layers
    size: int  # bytes


class PromptCache:
    """The beginnings of the prompts that one model has read, those used longest ago going first. Thread-safe.

    Args:
        limit: bytes of all that is kept. What alone is larger is not kept; 0: nothing is.
    """

    def __init__(self, limit: int = MEMORY) -> None:
        self._limit = limit
        self._kept: OrderedDict[_Kept, None] = OrderedDict()  # by use, the latest last
        self._own: dict[tuple[Owner, str], list[_Kept]] = {}
        self._erased: set[int] = set()  # numbers of users: what is being written must not come back
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return self._size

    def find(self, owner: Owner, soft: str, ids: Sequence[int]) -> Beginning | None:
        """The longest beginning of a prompt that is kept, all but its last token at most.

        Args:
            owner: whose prompt it is; of nobody's, nothing is kept.
            soft: the key of the soft prompt that it begins with; "" where it has none.
            ids: its tokens, with those of the soft prompt.
        """
        asked = np.array(ids)
        with self._lock:
            own = self._own.get((owner, soft), [])
            tokens, best = max(((_common(one.ids, asked), one) for one in own), key=_first, default=(0, None))
            tokens = min(tokens, len(ids) - 1)
            if best is None or not tokens:
                return None
            self._kept.move_to_end(best)
            return Beginning(tokens, best.layers)

    def keep(self, owner: Owner, soft: str, ids: Sequence[int], layers: Layers) -> None:
        """Keep a copy of what a prompt was read as; arguments as those of `find`, `layers` of all its tokens.

        Another prompt of the owner of which this one repeats half or more makes room for it.
        """
        size = sum(part.numel() * part.element_size() for layer in layers for part in layer)
        if not owner or size > self._limit:
            return
        asked = np.array(ids)
        with self._lock:
            if any(number in self._erased for _, number in owner):
                return
            key = owner, soft
            common = [(_common(one.ids, asked), one) for one in self._own.get(key, [])]
            for tokens, one in common:
                if tokens == len(asked):
                    self._kept.move_to_end(one)
                    return
            for tokens, one in common:
                if 2 * tokens >= len(one.ids):
                    self._drop(one)
            while self._size + size > self._limit:
                self._drop(next(iter(self._kept)))
            new = _Kept(key, asked, [(keys.clone(), values.clone()) for keys, values in layers], size)
            self._kept[new] = None
            self._own.setdefault(key, []).append(new)
            self._size += size

    def forget(self, user: str, number: int) -> None:
        """Drop all that a user took part in who is erased, by id and number; nothing of it is kept again."""
        with self._lock:
            self._erased.add(number)
            for one in [one for one in self._kept if (user, number) in one.key[0]]:
                self._drop(one)

    def sweep(self, there: Callable[[Collection[str]], Mapping[str, int]]) -> None:
        """Drop all of users who are gone.

        Args:
            there: the numbers of those of these users who are still in the store.
        """
        with self._lock:
            users = {user for one in self._kept for user, _ in one.key[0]}
        left = there(users).items()
        with self._lock:
            for one in list(self._kept):
                if any(user in users and (user, number) not in left for user, number in one.key[0]):
                    self._drop(one)

    def clear(self) -> None:
        """Drop everything, as when the model's weights change."""
        with self._lock:
            for one in list(self._kept):
                self._drop(one)

    def _drop(self, one: _Kept) -> None:
        del self._kept[one]
        self._own[one.key].remove(one)
        if not self._own[one.key]:
            del self._own[one.key]
        self._size -= one.size


def _first(pair: tuple[int, _Kept]) -> int:
    return pair[0]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two prompts begin with alike."""
    shorter = min(len(one), len(other))
    differs = one[:shorter] != other[:shorter]
    return int(differs.argmax()) if differs.any() else shorter
