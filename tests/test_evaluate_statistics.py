"""The bootstrap over users: parity with a naive loop, coverage, and its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from penname.errors import BadInputError
from penname.evaluate import Interval, paired_interval

DIFFERENCES = [0.21, 0.13, -0.16, 0.4, 0.3, 0.02, 0.25]
USERS = ["ann", "ann", "bo", "cy", "cy", "cy", "dee"]


def naive(differences: list[float], groups: list[str], n: int, seed: int) -> tuple[float, float]:
    names = sorted(set(groups))
    means = []
    for draw in np.random.default_rng(seed).integers(len(names), size=(n, len(names))):
        picked = [d for i in draw for d, g in zip(differences, groups, strict=True) if g == names[i]]
        means.append(sum(picked) / len(picked))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_same_draws_as_a_naive_loop() -> None:
    found = paired_interval(DIFFERENCES, USERS, n=500, seed=3)
    assert (found.low, found.high) == pytest.approx(naive(DIFFERENCES, USERS, 500, 3))
    assert found.mean == pytest.approx(sum(DIFFERENCES) / 7)
    assert (found.n, found.groups) == (7, 4)


def test_golden_value_and_seed() -> None:
    found = paired_interval(DIFFERENCES, USERS)
    assert (found.low, found.high) == pytest.approx((-0.0280000000, 0.2425000000), abs=1e-9)
    assert found == paired_interval(DIFFERENCES, USERS)
    assert found != paired_interval(DIFFERENCES, USERS, n=1000, seed=1)


def test_many_users_are_drawn_in_batches_and_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    users = [str(i) for i in range(40) for _ in range(4)]
    covered = 0
    for seed in range(100):
        differences = rng.normal(1, 1, 40).repeat(4) + rng.normal(0, 0.5, 160)
        found = paired_interval(list(differences), users, n=400, seed=seed)
        covered += found.low <= 1 <= found.high
    assert 87 <= covered <= 100  # 95 ± 3.7 standard errors; percentile intervals run a little narrow
    large = paired_interval(list(rng.normal(0, 1, 5000)), [str(i) for i in range(5000)], n=2000)
    assert large.high - large.low == pytest.approx(2 * 1.96 / math.sqrt(5000), rel=0.1)


def test_users_are_drawn_and_not_examples() -> None:
    alike = paired_interval([1.0] * 50 + [0.0] * 50, ["a"] * 50 + ["b"] * 50)
    assert (alike.low, alike.high) == (0, 1)


def test_one_user_has_no_interval() -> None:
    found = paired_interval([0.1, 0.3], ["ann", "ann"])
    assert found.mean == pytest.approx(0.2)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.defined
    assert not found.clear


def test_few_users_are_never_clear() -> None:
    assert not Interval(0.2, 0.1, 0.3, n=50, groups=5).clear
    assert Interval(0.2, 0.1, 0.3, n=50, groups=6).clear
    assert Interval(-0.2, -0.3, -0.1, n=50, groups=6).clear
    assert not Interval(0.2, -0.1, 0.3, n=50, groups=6).clear


@pytest.mark.parametrize(
    ("differences", "groups", "level", "why"),
    [
        ([], [], 0.95, "0 differences"),
        ([0.1], ["a", "b"], 0.95, "1 differences and 2 groups"),
        ([math.nan, 1.0], ["a", "b"], 0.95, "nan"),
        ([0.1], ["a"], 95, "level 95"),
    ],
)
def test_bad_input(differences: list[float], groups: list[str], level: float, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        paired_interval(differences, groups, level=level)
