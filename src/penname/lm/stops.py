"""Ending a text before a stop string, whole or as it streams: not every server does it itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def stop_at(text: str, stops: Sequence[str]) -> int:
    """Where in `text` the first stop string begins; `len(text)` where there is none."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return min(found, default=len(text))


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first stop string; joined they are `text[:stop_at(text, stops)]`.

    What may be the beginning of a stop string is held back until the next piece decides it. Pieces after the
    stop are not asked for.
    """
    held = ""
    for piece in pieces:
        held += piece
        undecided = len(held) - beginning(held, stops)
        end = stop_at(held, stops)
        ready = held[: min(end, undecided)]
        if ready:
            yield ready
        if end <= undecided and end < len(held):
            return
        held = held[len(ready) :]
    if rest := held[: stop_at(held, stops)]:
        yield rest


def beginning(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop string without being all of it."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(_begins(text[-n:], s) for s in stops)), 0)


def _begins(part: str, stop: str) -> bool:
    return len(part) < len(stop) and stop.startswith(part)
