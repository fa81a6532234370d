"""Preferences of many users as arrays, grouped by user and weighted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penname.errors import BadInputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.integer]


@dataclass(frozen=True)
class Pairs:
    """Preferences as three arrays of one length: who, the row preferred, and the row it was preferred to."""

    user: Indices  # 0 to users − 1
    chosen: Indices  # a row of the features
    rejected: Indices  # another row

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, eq=False)
class Comparisons:
    """One user's preferences; `weight` is what each counts, so that together they count as independent."""

    index: int
    chosen: Indices
    rejected: Indices
    weight: float


def checked(pairs: Pairs, n_texts: int, n_users: int) -> Pairs:
    """The pairs as int64 arrays."""
    import numpy as np

    user, chosen, rejected = (np.asarray(a) for a in (pairs.user, pairs.chosen, pairs.rejected))
    if not len(user) == len(chosen) == len(rejected):
        raise BadInputError(
            f"pairs of {len(user)} users, {len(chosen)} chosen and {len(rejected)} rejected texts; "
            "they must be as many"
        )
    if not len(user):
        raise BadInputError("no preferences; there is nothing to learn from")
    for name, values, size in (
        ("user", user, n_users),
        ("chosen", chosen, n_texts),
        ("rejected", rejected, n_texts),
    ):
        if not np.issubdtype(values.dtype, np.integer):
            raise BadInputError(f"{name} holds {values.dtype}; it must hold whole numbers")
        wrong = np.flatnonzero((values < 0) | (values >= size))
        if len(wrong):
            raise BadInputError(f"pair {wrong[0]}: {name} is {values[wrong[0]]}; it must be 0 to {size - 1}")
    same = np.flatnonzero(chosen == rejected)
    if len(same):
        raise BadInputError(f"pair {same[0]}: text {chosen[same[0]]} is preferred to itself")
    return Pairs(user.astype(np.int64), chosen.astype(np.int64), rejected.astype(np.int64))


def batches(users: Sequence[Comparisons], order: Indices, pairs: int) -> list[list[int]]:
    """`order` cut into runs of at most `pairs` preferences, or of one user who has more."""
    runs: list[list[int]] = []
    room = 0
    for at in order.tolist():
        size = len(users[at].chosen)
        if not runs or size > room:
            runs.append([])
            room = pairs
        runs[-1].append(at)
        room -= size
    return runs


def by_user(pairs: Pairs, n_users: int) -> list[Comparisons]:
    """Users with preferences, in order."""
    import numpy as np

    order = np.argsort(pairs.user, kind="stable")
    counts = np.bincount(pairs.user, minlength=n_users)
    free = independent(pairs.user, pairs.chosen, pairs.rejected, n_users)
    chosen, rejected = (
        np.split(rows[order], counts.cumsum()[:-1]) for rows in (pairs.chosen, pairs.rejected)
    )
    return [
        Comparisons(u, chosen[u], rejected[u], float(free[u] / counts[u]))
        for u in range(n_users)
        if counts[u]
    ]


def independent(user: Indices, chosen: Indices, rejected: Indices, n_users: int) -> Indices:
    """Independent comparisons of each user, (users,): texts less the groups that nothing compares."""
    import numpy as np
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    width = int(max(chosen.max(), rejected.max())) + 1
    nodes = np.concatenate([user.astype(np.int64) * width + rows for rows in (chosen, rejected)])
    texts, ends = np.unique(nodes, return_inverse=True)
    joined = (np.ones(len(user)), tuple(ends.reshape(2, -1)))
    groups, group = connected_components(coo_array(joined, shape=(len(texts), len(texts))), directed=False)
    owner = np.zeros(groups, dtype=np.int64)
    owner[group] = texts // width
    return np.bincount(texts // width, minlength=n_users) - np.bincount(owner, minlength=n_users)
