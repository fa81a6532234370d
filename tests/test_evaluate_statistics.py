"""Bootstrap and permutation over users, Holm and groups: parity with naive loops and scipy, and edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from penname.errors import BadInputError
from penname.evaluate.groups import buckets, by_group
from penname.evaluate.metrics import Aggregate
from penname.evaluate.statistics import Comparison, aggregate, compare, effect, holm, per_user, worst_decile

DIFFERENCES = [0.21, 0.13, -0.16, 0.4, 0.3, 0.02, 0.25]
USERS = ["ann", "ann", "bo", "cy", "cy", "cy", "dee"]
ZEROS = [0.0] * 7


def example(kind: Aggregate, m: int, k: int, seed: int = 0) -> tuple[list, list, list[str]]:
    """Scores of two arms and the users."""
    rng = np.random.default_rng(seed)
    users = [f"u{i}" for i in rng.integers(k, size=m)]
    if kind == "macro_f1":
        right = rng.integers(4, size=m)
        arms = [np.where(rng.random(m) < p, right, rng.integers(-1, 4, size=m)) for p in (0.6, 0.3)]
        return *([(int(r), int(x)) for r, x in zip(right, arm, strict=True)] for arm in arms), users
    return rng.exponential(1.2, m).tolist(), rng.exponential(1, m).tolist(), users


def one(values: list, kind: Aggregate) -> float:
    """The aggregate, naively."""
    if kind == "macro_f1":
        right, answered = zip(*values, strict=True)
        return float(f1_score(right, answered, labels=range(4), average="macro", zero_division=0))
    mean = sum(values) / len(values)
    return math.sqrt(mean) if kind == "rmse" else mean


KINDS = pytest.mark.parametrize("kind", ["mean", "rmse", "macro_f1"])


@KINDS
def test_the_interval_has_the_same_draws_as_a_naive_loop(kind: Aggregate) -> None:
    a, b, users = example(kind, 30, 5)
    found = compare(a, b, users, aggregate=kind, n=200, seed=3, classes=4)
    names, means = sorted(set(users)), []
    for draw in np.random.default_rng(3).integers(len(names), size=(200, len(names))):
        picked = [j for i in draw for j, user in enumerate(users) if user == names[i]]
        means.append(one([a[j] for j in picked], kind) - one([b[j] for j in picked], kind))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert found.mean == pytest.approx(one(a, kind) - one(b, kind))
    assert found.mean == pytest.approx(aggregate(a, kind, 4) - aggregate(b, kind, 4))
    assert (found.n, found.groups) == (30, 5)


@KINDS
def test_the_exact_test_tries_all_swaps_of_users(kind: Aggregate) -> None:
    a, b, users = example(kind, 25, 6, seed=1)
    seen, names, hits = abs(one(a, kind) - one(b, kind)), sorted(set(users)), 0
    for swap in itertools.product([False, True], repeat=len(names)):
        swapped = dict(zip(names, swap, strict=True))
        first = [y if swapped[user] else x for x, y, user in zip(a, b, users, strict=True)]
        second = [x if swapped[user] else y for x, y, user in zip(a, b, users, strict=True)]
        hits += abs(one(first, kind) - one(second, kind)) >= seen - 1e-12
    assert compare(a, b, users, aggregate=kind, n=1, classes=4).p == pytest.approx(hits / 2 ** len(names))


def test_one_example_a_user_agrees_with_scipy() -> None:
    rng = np.random.default_rng(5)

    def difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean(x, axis=axis) - np.mean(y, axis=axis)

    for k, resamples in ((10, np.inf), (40, 20_000)):
        a, b = rng.normal(0.3, 1, k), rng.normal(0, 1, k)
        users = [str(i) for i in range(k)]
        found = compare(a.tolist(), b.tolist(), users, n=20_000)
        theirs = stats.permutation_test(
            (a, b), difference, permutation_type="samples", n_resamples=resamples, vectorized=True, rng=1
        )
        assert found.p == pytest.approx(theirs.pvalue, abs=1e-12 if k == 10 else 0.02)
        interval = stats.bootstrap(
            (a, b), difference, paired=True, method="percentile", n_resamples=20_000, vectorized=True, rng=1
        ).confidence_interval
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.03)


def test_golden_value_and_seed() -> None:
    found = compare(DIFFERENCES, ZEROS, USERS)
    assert (found.low, found.high) == pytest.approx((-0.0280000000, 0.2425000000), abs=1e-9)
    assert found == compare(DIFFERENCES, ZEROS, USERS)
    assert found != compare(DIFFERENCES, ZEROS, USERS, n=1000, seed=1)


def test_the_interval_covers_and_the_test_errs_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    users = [str(i) for i in range(40) for _ in range(4)]
    covered = erred = 0
    for seed in range(200):
        noise = rng.normal(0, 1, 40).repeat(4) + rng.normal(0, 0.5, 160)
        found = compare((1 + noise).tolist(), [1.0] * 160, users, n=400, seed=seed)
        covered += found.low <= 0 <= found.high
        erred += found.p < 0.05
    assert 178 <= covered <= 199  # 95 ± 4 standard errors; percentile intervals run a little narrow
    assert 1 <= erred <= 22
    large = compare(rng.normal(0, 1, 5000).tolist(), [0.0] * 5000, [str(i) for i in range(5000)], n=2000)
    assert large.high - large.low == pytest.approx(2 * 1.96 / math.sqrt(5000), rel=0.1)


def test_users_are_drawn_and_swapped_and_not_examples() -> None:
    alike = compare([1.0] * 50 + [0.0] * 50, [0.0] * 100, ["a"] * 50 + ["b"] * 50)
    assert (alike.low, alike.high) == (0, 1)
    assert alike.p == 1  # swapping either user leaves a difference of a half


def test_arms_that_are_alike_have_a_p_of_one() -> None:
    for k in (5, 30):
        users = [str(i) for i in range(k)]
        same = compare([0.1 * i for i in range(k)], [0.1 * i for i in range(k)], users, n=500)
        assert (same.mean, same.low, same.high, same.p, same.effect) == (0, 0, 0, 1, 0)
    ten = [str(i) for i in range(10)]
    assert compare([0.3] * 10, [0.1] * 10, ten).p == 2 / 2**10  # rounding must not cost a hit
    fifty = [str(i) for i in range(50)]
    assert compare([0.3] * 50, [0.1] * 50, fifty, n=99).p == 1 / 100


@pytest.mark.parametrize("seed", range(20))
def test_rounding_costs_no_hit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random(6).tolist(), rng.random(6).tolist()
    hits = compare(a, b, list("abcdef"), n=1).p * 2**6
    assert hits >= 2
    assert hits % 2 == 0  # with each swap, the one of all others: the same difference the other way round


def test_one_user_has_no_interval() -> None:
    found = compare([0.1, 0.3], [0.0, 0.0], ["ann", "ann"])
    assert found.mean == pytest.approx(0.2)
    assert all(math.isnan(value) for value in (found.low, found.high, found.effect))
    assert found.p == 1
    assert not found.defined
    assert not found.clear


def test_few_users_are_never_clear() -> None:
    def found(low: float, high: float, groups: int) -> Comparison:
        return Comparison((low + high) / 2, low, high, 0.01, 0.5, n=50, groups=groups)

    assert not found(0.1, 0.3, 5).clear
    assert found(0.1, 0.3, 6).clear
    assert found(-0.3, -0.1, 6).clear
    assert not found(-0.1, 0.3, 6).clear


@KINDS
def test_a_large_table_takes_every_resample(kind: Aggregate) -> None:
    a, b, users = example(kind, 2000, 900)
    found = compare(a, b, users, aggregate=kind, n=2000)
    assert found.low < found.mean < found.high
    assert found.p < 0.01


def test_effect_is_cohens_d_over_users() -> None:
    users = {"ann": 0.17, "bo": -0.16, "cy": 0.24, "dee": 0.25}
    values = np.array(list(users.values()))
    assert per_user(DIFFERENCES, USERS) == pytest.approx(users)
    expected = values.mean() / values.std(ddof=1)
    assert compare(DIFFERENCES, ZEROS, USERS).effect == pytest.approx(expected)
    assert effect(list(users.values())) == pytest.approx(expected)
    assert effect([0.0, 0.0]) == 0
    assert math.isnan(effect([0.3 - 0.1, 0.4 - 0.2]))  # alike but for rounding
    assert math.isnan(effect([0.3]))


def test_per_user_numbers_of_each_kind() -> None:
    assert per_user([4.0, 16.0, 9.0], ["b", "b", "a"], "rmse") == pytest.approx({"a": 3, "b": math.sqrt(10)})
    pairs = [(0, 0), (1, 0), (-1, -1), (1, 1)]
    assert per_user(pairs, ["a", "a", "b", "c"], "macro_f1") == {"a": 0.5, "b": 0, "c": 1}


def test_worst_decile_is_of_users_in_the_given_direction() -> None:
    users = [f"{i:02}" for i in range(25) for _ in range(2)]
    values = [float(i) for i in range(25) for _ in range(2)]
    assert worst_decile(values, users) == 0.5
    assert worst_decile(values, users, "lower") == 23.5
    assert worst_decile([1.0, 3.0, 9.0], ["a", "a", "b"]) == 2
    assert worst_decile([1.0, 3.0, 9.0], ["a", "a", "b"], "lower", "rmse") == 3


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_agrees_with_a_naive_one(ps: list[float]) -> None:
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    naive = {
        place: min(1, max((len(ps) - j) * ps[order[j]] for j in range(rank + 1)))
        for rank, place in enumerate(order)
    }
    assert holm(ps) == [naive[i] for i in range(len(ps))]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with pytest.raises(BadInputError, match="p-values lie between 0 and 1"):
        holm([0.1, math.nan])


def test_macro_f1_counts_classes_that_are_never_seen() -> None:
    pairs = [(0, 0), (2, 2), (2, -1)]
    assert aggregate(pairs, "macro_f1", classes=3) == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert aggregate(pairs, "macro_f1") == pytest.approx((1 + 2 / 3) / 2)
    assert aggregate([(-1, -1)], "macro_f1") == 0


@pytest.mark.parametrize(
    ("a", "groups", "options", "why"),
    [
        ([], [], {}, "no scores"),
        ([0.1], ["a", "b"], {}, "1 and 1 scores and 2 groups"),
        ([math.nan, 1.0], ["a", "b"], {}, "nan"),
        ([0.1], ["a"], {"level": 95}, "level 95"),
        ([0.1], ["a"], {"n": 0}, r"resamples \(0\)"),
        ([-0.1], ["a"], {"aggregate": "rmse"}, "squared error is below 0"),
        ([0.1], ["a"], {"aggregate": "macro_f1"}, "macro_f1 takes .*answered class"),
        ([(0, 1)], ["a"], {}, "mean takes one number"),
        ([(0, 3)], ["a"], {"aggregate": "macro_f1", "classes": 3}, "class 3 is not one of 3"),
        ([(0, -2)], ["a"], {"aggregate": "macro_f1"}, "whole number from 0"),
    ],
)
def test_bad_input(a: list, groups: list[str], options: dict, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        compare(a, a, groups, **options)


def test_arms_must_have_the_same_examples() -> None:
    with pytest.raises(BadInputError, match="2 and 1 scores"):
        compare([0.1, 0.2], [0.1], ["a", "b"])
    with pytest.raises(BadInputError, match="2 scores and 1 groups"):
        worst_decile([0.1, 0.2], ["a"])


def test_buckets_have_fixed_edges() -> None:
    assert buckets([3, 25, 0, 4, 5, 20]) == [("0", [2]), ("1–4", [0, 3]), ("5–9", [4]), ("20+", [1, 5])]
    assert buckets([]) == []
    with pytest.raises(BadInputError, match="-1 documents"):
        buckets([3, -1])


@given(st.lists(st.integers(0, 50)))
def test_each_example_is_in_one_bucket(history: list[int]) -> None:
    assert sorted(i for _, places in buckets(history) for i in places) == list(range(len(history)))


def test_groups_are_in_the_order_of_their_users() -> None:
    labels = {"a": "short", "b": "long", "c": "long", "d": "nobody here"}
    assert by_group(["a", "a", "a", "b", "c"], labels) == [("long", [3, 4]), ("short", [0, 1, 2])]
    with pytest.raises(BadInputError, match="user 'e' is in no group"):
        by_group(["e"], labels)
