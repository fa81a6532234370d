"""How far a mean difference can be trusted when the same few users gave all the examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from penname.errors import BadInputError

_CELLS = 4_000_000  # users drawn at a time, over all resamples of a batch: about 100 MB


ENOUGH = 6
"""Users below which an interval is never called clear: fewer have, by chance alone, differences of one sign
and so an interval that leaves out 0 in over 5 % of cases (2 · 0.5⁵ = 6 %)."""


@dataclass(frozen=True)
class Interval:
    """A mean difference with its bounds; the bounds are nan where they are undefined (a single group)."""

    mean: float
    low: float
    high: float
    n: int  # examples
    groups: int  # users: what was resampled

    @property
    def defined(self) -> bool:
        """Whether there were the two groups that bounds need."""
        return self.groups > 1

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0, and rests on enough users for that to mean something."""
        return self.groups >= ENOUGH and (self.low > 0 or self.high < 0)


def paired_interval(
    differences: Sequence[float],
    groups: Sequence[str],
    n: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a mean difference, by a bootstrap over groups (users).

    Examples of one user are alike, so users and not examples are drawn: each of the `n` resamples draws as
    many users as there are, with replacement, and takes the mean over all examples of those drawn (a user
    who is drawn twice counts twice, a user with more examples weighs more). The bounds are the
    (1 − level)/2 and (1 + level)/2 quantiles of these means. With few users they are too narrow: read them
    with `Interval.groups` in view. With one user nothing can be resampled and the bounds are nan.

    Args:
        differences: one number an example, a − b on the same request.
        groups: the user of each example.

    Returns:
        The plain mean of `differences` with its bounds. Same seed, same bounds.

    Raises:
        BadInputError: no differences, not one group a difference, a difference that is no number, or a
            level outside (0, 1).
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or len(values) != len(groups):
        raise BadInputError(
            f"{len(values)} differences and {len(groups)} groups: give one group for each of 1 or more"
        )
    if not np.isfinite(values).all():
        raise BadInputError("a difference is nan or infinite: leave out examples that have no score")
    if not 0 < level < 1 or n < 1:
        raise BadInputError(f"level {level} must lie between 0 and 1, and the resamples ({n}) be 1 or more")

    names, members = np.unique(np.asarray(groups), return_inverse=True)
    mean, k = float(values.mean()), len(names)
    if k == 1:
        return Interval(mean, math.nan, math.nan, len(values), 1)
    sums = np.bincount(members, weights=values, minlength=k)
    counts = np.bincount(members, minlength=k)

    rng = np.random.default_rng(seed)
    means = np.empty(n)
    batch = max(1, _CELLS // k)
    for start in range(0, n, batch):
        drawn = rng.integers(k, size=(min(batch, n - start), k))
        means[start : start + batch] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(values), k)
