"""Parts of the examples to look at apart: by how much history there was, by who the user is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from penname.errors import BadInputError

_EDGES = ((0, 0, "0"), (1, 4, "1–4"), (5, 9, "5–9"), (10, 19, "10–19"))
_LAST = "20+"


def buckets(history: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Examples by how many documents there were to learn from: (label, places), the smallest first.

    The edges are fixed (0, 1–4, 5–9, 10–19, 20+), so that two reports have the same buckets; those without an
    example are left out.

    Raises:
        BadInputError: a count is below 0.
    """
    if any(count < 0 for count in history):
        raise BadInputError(f"a history has {min(history)} documents: counts begin at 0")
    labels = [
        next((label for low, high, label in _EDGES if low <= count <= high), _LAST) for count in history
    ]
    order = [*(label for _, _, label in _EDGES), _LAST]
    found = [(label, [i for i, mine in enumerate(labels) if mine == label]) for label in order]
    return [(label, places) for label, places in found if places]


def by_group(users: Sequence[str], labels: Mapping[str, str]) -> list[tuple[str, list[int]]]:
    """Examples by the group of their user: (label, places), the group with most users first.

    The first is the majority, the others are minorities. The labels come from what is known of the users
    before any draft (a preference class, `style.minority` of their own texts), never from the scores:
    groups made of an arm's scores differ by construction.

    Args:
        users: the user of each example.
        labels: the group of each user; those without an example do not count.

    Raises:
        BadInputError: a user has no label.
    """
    lost = next((user for user in users if user not in labels), None)
    if lost is not None:
        raise BadInputError(f"user {lost!r} is in no group: give every user a label")
    sizes = Counter(labels[user] for user in dict.fromkeys(users))
    order = sorted(sizes, key=lambda label: (-sizes[label], label))
    return [(label, [i for i, user in enumerate(users) if labels[user] == label]) for label in order]
