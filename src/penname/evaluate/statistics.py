"""How far a difference can be trusted when the same few users gave all the examples.

Examples of one user are alike, so whole users are drawn (the bootstrap) and swapped (the permutation test).
Every aggregate here is a function of sums over users: a resample is a weighted sum of one row a user, so that
thousands of resamples are one product of matrices, for macro-F1 as for a mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from penname.errors import BadInputError
from penname.evaluate.metrics import Aggregate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Values = Sequence[float] | Sequence[tuple[int, int]]
"""One score an example; for macro-F1 its (right class, answered class), −1 where it is none of them."""

_CELLS = 2_000_000  # users drawn at a time, over all resamples of a batch: about 60 MB

ENOUGH = 6
"""Users below which an interval is never called clear: fewer have, by chance alone, differences of one sign
and so an interval that leaves out 0 in over 5 % of cases (2 · 0.5⁵ = 6 %)."""

EXACT = 12
"""Users up to which the permutation test goes through all 2^users swaps."""


@dataclass(frozen=True)
class Comparison:
    """How two arms differ on the examples that both have.

    With one user nothing can be resampled: the bounds and the effect are nan and p is 1.
    """

    mean: float  # the first arm's aggregate − the second's
    low: float
    high: float
    p: float  # of a difference as large, either way, if the two arms were alike
    effect: float  # the users' mean difference in standard deviations of it; nan where these are 0
    n: int  # examples
    groups: int  # users: what was resampled

    @property
    def defined(self) -> bool:
        """Whether there were the two users that bounds need."""
        return self.groups > 1

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0, and rests on enough users for that to mean something."""
        return self.groups >= ENOUGH and (self.low > 0 or self.high < 0)


def compare(
    a: Values,
    b: Values,
    groups: Sequence[str],
    *,
    aggregate: Aggregate = "mean",
    n: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    classes: int | None = None,
) -> Comparison:
    """The difference a − b of two arms, with an interval, a test and an effect size, all over users.

    Interval: the percentile bootstrap. Each of `n` resamples draws as many users as there are, with
    replacement, and takes the difference of the two aggregates over all examples of those drawn (a user who
    is drawn twice counts twice, a user with more examples weighs more). With few users it is too narrow:
    read it with `Comparison.groups` in view.

    Test: the paired permutation test, two-sided. Under the null hypothesis the arms' names mean nothing, so
    all examples of a user change arms together; p is the share of such swaps whose difference is at least as
    large. All swaps are tried up to `EXACT` users; beyond, `n` random ones, with (hits + 1) / (n + 1) so that
    p is never 0 (Phipson and Smyth, 2010).

    Args:
        a: the first arm's scores, one an example; squared errors for rmse, class pairs for macro_f1.
        b: the second arm's, of the same examples in the same order.
        groups: the user of each example.
        aggregate: what makes one number of the scores, as in `Metric.aggregate`.
        classes: see `aggregate`; None: those that occur in either arm.

    Returns:
        Same seed, same numbers.

    Raises:
        BadInputError: no examples, a, b and groups not equally many, a score that is no number, a squared
            error below 0, or a level outside (0, 1).
    """
    import numpy as np

    if not 0 < level < 1 or n < 1:
        raise BadInputError(f"level {level} must lie between 0 and 1, and the resamples ({n}) be 1 or more")
    first, second = _array(a, aggregate), _array(b, aggregate)
    if len(first) != len(second) or len(first) != len(groups):
        raise BadInputError(
            f"{len(first)} and {len(second)} scores and {len(groups)} groups: give one each an example"
        )
    (first, second), size = _labelled([first, second], aggregate, classes)
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    k = len(names)
    ours, theirs = (_sums(values, members, k, aggregate, size) for values in (first, second))
    mean = float(_finish(ours.sum(axis=0), aggregate) - _finish(theirs.sum(axis=0), aggregate))
    if k == 1:
        return Comparison(mean, math.nan, math.nan, 1.0, math.nan, len(first), 1)

    drawn = np.concatenate(
        [
            _finish(weights @ ours, aggregate) - _finish(weights @ theirs, aggregate)
            for weights in _draws(k, n, seed)
        ]
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    differences = _per_user(first, members, k, aggregate) - _per_user(second, members, k, aggregate)
    return Comparison(
        mean,
        float(low),
        float(high),
        _p_value(ours, theirs, aggregate, n, seed),
        effect(differences.tolist()),
        len(first),
        k,
    )


def aggregate(values: Values, kind: Aggregate = "mean", classes: int | None = None) -> float:
    """One number of all examples' scores.

    `mean`: their mean. `rmse`: the root of the mean of squared errors. `macro_f1`: 2·hits / (right +
    answered) of each class, 0 where it never occurs, averaged over the classes. An answer of −1 is of none.

    Args:
        classes: how many labels the task has (LaMP averages over all of them, seen or not); None: only the
            classes that occur are averaged over. Of no meaning to the others.

    Raises:
        BadInputError: no values, one that is no number, a squared error below 0, or a class that is not below
            `classes`.
    """
    import numpy as np

    (array,), size = _labelled([_array(values, kind)], kind, classes)
    members = np.zeros(len(array), dtype=np.intp)
    return float(_finish(_sums(array, members, 1, kind, size)[0], kind))


def per_user(values: Values, groups: Sequence[str], kind: Aggregate = "mean") -> dict[str, float]:
    """Each user's own number, by user id in sorted order: what `aggregate` gives for their examples alone.

    For macro_f1 it is their accuracy: F1 over all labels means nothing on one user's few examples.

    Raises:
        BadInputError: as `compare`.
    """
    import numpy as np

    array = _array(values, kind)
    if len(array) != len(groups):
        raise BadInputError(f"{len(array)} scores and {len(groups)} groups: give one each an example")
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    found = _per_user(array, members, len(names), kind)
    return dict(zip(names.tolist(), found.tolist(), strict=True))


def worst_decile(
    values: Values,
    groups: Sequence[str],
    better: Literal["higher", "lower"] = "higher",
    kind: Aggregate = "mean",
) -> float:
    """The mean over the tenth of the users (rounded down, at least one) whose own number is the worst.

    Each user counts once, however many examples they have.

    Raises:
        BadInputError: as `compare`.
    """
    ordered = sorted(per_user(values, groups, kind).values(), reverse=better == "lower")
    worst = ordered[: max(1, len(ordered) // 10)]
    return sum(worst) / len(worst)


def effect(differences: Sequence[float]) -> float:
    """Cohen's d of paired differences, one a user: mean / standard deviation (with n − 1).

    0.2 is called small, 0.5 medium, 0.8 large (Cohen, 1988). nan for fewer than two users, and where all
    differ alike and by more than nothing; 0 where nobody differs.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return math.nan
    if not values.any():
        return 0.0
    spread = float(values.std(ddof=1))
    # Equal differences have a spread of rounding errors, and would seem an effect of billions.
    return float(values.mean()) / spread if spread > 1e-12 * np.abs(values).max() else math.nan


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for as many comparisons as there are (Holm, 1979), in the order given.

    The i-th smallest of m (from 1) becomes the largest of (m − j + 1)·p_j over j ≤ i, at most 1: calling
    clear what is below 5 % then errs anywhere in the table in at most 5 % of tables.

    Raises:
        BadInputError: a p-value outside [0, 1].
    """
    bad = [p for p in ps if not 0 <= p <= 1]
    if bad:
        raise BadInputError(f"p-values lie between 0 and 1, these do not: {bad}")
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted


def _array(values: Values, kind: Aggregate) -> Floats:
    """(m,) scores or (m, 2) classes, checked."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise BadInputError("there are no scores to compare or to aggregate")
    if array.shape[1:] != ((2,) if kind == "macro_f1" else ()):
        wanted = "(right class, answered class)" if kind == "macro_f1" else "one number"
        raise BadInputError(f"{kind} takes {wanted} an example, not an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise BadInputError("a score is nan or infinite: leave out examples that have no score")
    if kind == "rmse" and array.min() < 0:
        raise BadInputError("a squared error is below 0: give the squares of the errors")
    return array


def _labelled(arrays: list[Floats], kind: Aggregate, classes: int | None) -> tuple[list[Floats], int]:
    """The arrays with their classes numbered from 0, and how many classes there are to average over."""
    import numpy as np

    if kind != "macro_f1":
        return arrays, 0
    both = np.concatenate(arrays)
    if (both < -1).any() or (both % 1).any():
        raise BadInputError("a class is a whole number from 0, or −1 for none")
    if classes is None:
        seen = np.unique(both[both >= 0])
        renumbered = [np.where(array < 0, -1.0, np.searchsorted(seen, array)) for array in arrays]
        return renumbered, max(1, len(seen))
    if both.max() >= classes:
        raise BadInputError(f"class {int(both.max())} is not one of {classes}, counted from 0")
    return arrays, classes


def _sums(values: Floats, members: NDArray[np.intp], k: int, kind: Aggregate, classes: int) -> Floats:
    """What `_finish` needs of each user, (k, d), so that users can be added up.

    (sum, examples), or for macro-F1 of each class (hits, right + answered).
    """
    import numpy as np

    if kind != "macro_f1":
        sums = np.bincount(members, weights=values, minlength=k)
        return np.stack([sums, np.bincount(members, minlength=k)], axis=1)
    right, answered = values.astype(np.intp).T

    def count(of: NDArray[np.intp], which: NDArray[np.bool_]) -> Floats:
        cells = members[which] * classes + of[which]
        return np.bincount(cells, minlength=k * classes).reshape(k, classes).astype(np.float64)

    hits = count(right, (right == answered) & (right >= 0))
    return np.concatenate([hits, count(right, right >= 0) + count(answered, answered >= 0)], axis=1)


def _finish(sums: Floats, kind: Aggregate) -> Floats:
    """(…, d) sums to (…) aggregates."""
    import numpy as np

    if kind == "macro_f1":
        hits, size = np.split(sums, 2, axis=-1)
        f1: Floats = np.divide(2 * hits, size, out=np.zeros_like(hits), where=size > 0).mean(axis=-1)
        return f1
    means: Floats = sums[..., 0] / sums[..., 1]
    # A sum of squares after swaps may be a rounding error below 0.
    return np.sqrt(np.maximum(means, 0)) if kind == "rmse" else means


def _per_user(values: Floats, members: NDArray[np.intp], k: int, kind: Aggregate) -> Floats:
    """(k,) each user's own number."""
    if kind == "macro_f1":
        values = (values[:, 0] == values[:, 1]) & (values[:, 0] >= 0)
        kind = "mean"
    return _finish(_sums(values, members, k, kind, 0), kind)


def _draws(k: int, n: int, seed: int) -> Iterator[Floats]:
    """(batch, k): how often each user was drawn, `n` rows in all."""
    import numpy as np

    rng = np.random.default_rng(seed)
    for size in _batches(k, n):
        drawn = rng.integers(k, size=(size, k))
        drawn += np.arange(size)[:, None] * k
        yield np.bincount(drawn.ravel(), minlength=size * k).reshape(size, k).astype(np.float64)


def _p_value(ours: Floats, theirs: Floats, kind: Aggregate, n: int, seed: int) -> float:
    """Share of the swaps of users whose difference is at least as large as the one seen."""
    first, second, change = ours.sum(axis=0), theirs.sum(axis=0), theirs - ours
    one, other = float(_finish(first, kind)), float(_finish(second, kind))
    # Sums in another order differ by rounding: what is equal must count as at least as large.
    seen = abs(one - other) - 1e-12 * max(abs(one), abs(other))
    k, hits = len(ours), 0
    exact = k <= EXACT
    for swaps in _all_swaps(k) if exact else _random_swaps(k, n, seed):
        moved = swaps @ change
        hits += int((abs(_finish(first + moved, kind) - _finish(second - moved, kind)) >= seen).sum())
    return hits / 2**k if exact else (hits + 1) / (n + 1)


def _all_swaps(k: int) -> Iterator[Floats]:
    import numpy as np

    yield (np.arange(2**k)[:, None] >> np.arange(k) & 1).astype(np.float64)


def _random_swaps(k: int, n: int, seed: int) -> Iterator[Floats]:
    """(batch, k) of 0 and 1, `n` rows in all; not the bootstrap's random numbers."""
    import numpy as np

    rng = np.random.default_rng([seed, 1])
    for size in _batches(k, n):
        yield rng.integers(2, size=(size, k)).astype(np.float64)


def _batches(k: int, n: int) -> Iterator[int]:
    batch = max(1, _CELLS // k)
    for start in range(0, n, batch):
        yield min(batch, n - start)
