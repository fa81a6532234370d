"""Which texts a model reads together, and which share one reading of a common beginning. No model in here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

WORTH = 64  # tokens that a group must save: a second pass of the model costs about as much


@dataclass(frozen=True)
class Limits:
    """What one batch may hold."""

    rows: int
    tokens: int  # read in one pass, padding included; in writing, tokens yet to be written too
    logits: int  # numbers held at once
    kept: int  # tokens, padding included, whose keys and values are held


@dataclass(frozen=True)
class Group:
    """Texts whose first `prefix` tokens are the same, and of which the rest is at most `rest` tokens long."""

    members: tuple[int, ...]
    prefix: int
    rest: int


def by_length(sizes: Sequence[tuple[int, int]], limits: Limits) -> Iterator[slice]:
    """Runs of texts that fit together, from the (tokens, logits) of each, ascending in tokens."""
    start = 0
    most_logits = 0
    for end, (tokens, logits) in enumerate(sizes):
        rows = end - start + 1
        most_logits = max(most_logits, logits)
        if rows > 1 and (
            rows > limits.rows or rows * tokens > limits.tokens or rows * most_logits > limits.logits
        ):
            yield slice(start, end)
            start, most_logits = end, logits
    if sizes:
        yield slice(start, len(sizes))


def shared(texts: Sequence[list[int]], most: Sequence[int], vocabulary: int, limits: Limits) -> list[Group]:
    """The groups that save most tokens when their common beginning is read once; other texts are in none.

    A group is a run of the sorted texts. The best cut into runs is found by dynamic programming over where
    the last one begins; a group counts with what it saves, less what it pads to its longest text.

    Args:
        texts: token ids.
        most: tokens of each text that may be shared, at most.
        vocabulary: numbers that one token's logits take.
        limits: no group exceeds them.
    """
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    common = [min(_common(texts[a], texts[b]), most[a], most[b]) for a, b in pairwise(order)]
    lengths = [len(texts[i]) for i in order]
    saved = [0] * (len(order) + 1)  # by the best cut of the first `end` texts
    best: list[tuple[int, int, int] | None] = [None] * (len(order) + 1)  # its last group: start, prefix, rest
    for end in range(1, len(order) + 1):
        saved[end] = saved[end - 1]
        for start, prefix, rest in _ending(end, common, lengths, vocabulary, limits):
            gain = sum(lengths[start:end]) - prefix - (end - start) * rest
            if gain >= WORTH and saved[start] + gain > saved[end]:
                saved[end], best[end] = saved[start] + gain, (start, prefix, rest)
    groups = []
    end = len(order)
    while end > 0:
        if last := best[end]:
            start, prefix, rest = last
            groups.append(Group(tuple(order[start:end]), prefix, rest))
            end = start
        else:
            end -= 1
    return groups[::-1]


def together(groups: Sequence[Group], vocabulary: int, limits: Limits) -> Iterator[list[Group]]:
    """Groups to read in one batch, alike in size: padding is at most a quarter of what is read."""
    batch: list[Group] = []
    for group in sorted(groups, key=lambda group: (group.prefix, group.rest)):
        wider = [*batch, group]
        rows = sum(len(each.members) for each in wider)
        prefix, rest = max(each.prefix for each in wider), max(each.rest for each in wider)
        padded = len(wider) * prefix + rows * rest
        needed = sum(each.prefix + len(each.members) * each.rest for each in wider)
        fits = len(wider) * prefix <= limits.tokens and _fits(rows, prefix, rest, vocabulary, limits)
        if batch and not (fits and 4 * padded <= 5 * needed):
            yield batch
            wider = [group]
        batch = wider
    if batch:
        yield batch


def _ending(
    end: int, common: Sequence[int], lengths: Sequence[int], vocabulary: int, limits: Limits
) -> Iterator[tuple[int, int, int]]:
    """Start, prefix and rest of every group of two and more sorted texts that ends before place `end`."""
    prefix = longest = lengths[end - 1]
    for start in range(end - 2, -1, -1):
        prefix, longest = min(prefix, common[start]), max(longest, lengths[start])
        if not prefix or not _fits(end - start, prefix, longest - prefix, vocabulary, limits):
            return  # a wider one shares less and holds more
        yield start, prefix, longest - prefix


def _fits(rows: int, prefix: int, rest: int, vocabulary: int, limits: Limits) -> bool:
    return (
        rows <= limits.rows
        and rows * rest <= limits.tokens
        and rows * (prefix + rest) <= limits.kept
        and rows * rest * vocabulary <= limits.logits
    )


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
