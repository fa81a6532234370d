"""Runs of things that are read together: a portion bounds memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def portions(items: Iterable[T], tokens: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Runs of items of at most `most` tokens together, in order; one that has more comes by itself."""
    taken: list[T] = []
    held = 0
    for item in items:
        size = tokens(item)
        if taken and held + size > most:
            yield taken
            taken, held = [], 0
        taken.append(item)
        held += size
    if taken:
        yield taken
