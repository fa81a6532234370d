"""The low-rank personalised reward: it learns who likes what, from preferences alone."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from penname.errors import BadInputError
from penname.methods.prlhf.comparisons import Pairs, batches, by_user, independent
from penname.methods.prlhf.lowrank import LowRankConfig, LowRankReward, fit

TEXTS, WIDTH, USERS = 40, 6, 30
SMALL = LowRankConfig(rank=2, epochs=8)


def tastes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features (TEXTS, WIDTH), and rewards (USERS, TEXTS): half the users want what the other half do not."""
    features = rng.normal(size=(TEXTS, WIDTH)) + 3.0
    likes = np.where(np.arange(USERS) % 2 == 0, 1.0, -1.0)
    return features, 4 * np.outer(likes, features[:, 0] - 3) + 2 * (features[:, 1] - 3)


def drawn(rewards: np.ndarray, rng: np.random.Generator, each: int = 60) -> Pairs:
    """`each` random pairs a user, chosen as the rewards say."""
    user = np.repeat(np.arange(len(rewards)), each)
    first = rng.integers(TEXTS, size=len(user))
    second = (first + rng.integers(1, TEXTS, size=len(user))) % TEXTS
    better = rewards[user, first] > rewards[user, second]
    return Pairs(user, np.where(better, first, second), np.where(better, second, first))


def right(scores: np.ndarray, pairs: Pairs) -> float:
    """The share of pairs that scores (users, TEXTS) order as they were chosen."""
    return float(np.mean(scores[pairs.user, pairs.chosen] > scores[pairs.user, pairs.rejected]))


@pytest.fixture(scope="module")
def trained() -> tuple[np.ndarray, np.ndarray, LowRankReward, np.ndarray]:
    rng = np.random.default_rng(0)
    features, rewards = tastes(rng)
    reward, weights = fit(features, drawn(rewards, rng), USERS, SMALL)
    return features, rewards, reward, weights


def test_users_who_want_opposites_are_both_learnt(trained):
    features, rewards, reward, weights = trained
    held = drawn(rewards, np.random.default_rng(1))
    scores = reward.basis(features) @ weights.T
    assert right(scores.T, held) > 0.9
    generic = np.tile(reward.basis(features) @ reward.generic, (USERS, 1))
    assert right(generic, held) < 0.75
    assert right(np.roll(scores.T, 1, 0), held) < right(generic, held)


def test_it_holds_for_texts_that_no_pair_named(trained):
    _, _, reward, weights = trained
    features, rewards = tastes(np.random.default_rng(2))
    held = drawn(rewards, np.random.default_rng(3))
    assert right((reward.basis(features) @ weights.T).T, held) > 0.85


def test_all_weights_lie_on_the_simplex(trained):
    features, _, reward, weights = trained
    basis = reward.basis(features)
    far = reward.fit_user(basis[[0] * 500], basis[[1] * 500])
    for rows in (weights, reward.generic[None], far[None]):
        assert (rows >= 0).all()
        np.testing.assert_allclose(rows.sum(1), 1)


def test_a_new_user_is_known_from_a_few_preferences(trained):
    features, rewards, reward, _ = trained
    basis = reward.basis(features)
    for kind in (0, 1):
        few = list(combinations(range(8), 2))
        chosen, rejected = np.array(
            [p if rewards[kind, p[0]] > rewards[kind, p[1]] else p[::-1] for p in few]
        ).T
        weights = reward.fit_user(basis[chosen], basis[rejected])
        held = drawn(rewards[[kind]], np.random.default_rng(4), 300)
        assert right((basis @ weights)[None], held) > 0.85


def test_a_new_user_gets_what_a_user_of_the_training_with_the_same_pairs_has(trained):
    features, rewards, _, _ = trained
    pairs = drawn(rewards, np.random.default_rng(5))
    reward, weights = fit(features, pairs, USERS, SMALL)
    basis, own = reward.basis(features), pairs.user == 7
    new = reward.fit_user(basis[pairs.chosen[own]], basis[pairs.rejected[own]])
    np.testing.assert_allclose(new, weights[7], atol=1e-9)


def test_without_preferences_the_weights_are_the_generic_ones(trained):
    features, rewards, reward, _ = trained
    none = np.zeros((0, len(reward.generic)))
    np.testing.assert_array_equal(reward.fit_user(none, none), reward.generic)
    pairs = drawn(rewards[:5], np.random.default_rng(6))
    _, weights = fit(features, pairs, 6, SMALL)
    np.testing.assert_array_equal(weights[5], reward.generic)


def test_the_posterior_is_near_the_integral(trained):
    """Parity with a sum over a fine grid of the plane in which users of rank 2 differ."""
    features, _, reward, _ = trained
    basis = reward.basis(features)
    chosen, rejected = np.array([(0, 1), (2, 3), (4, 5), (6, 7)]).T
    gaps = basis[chosen] - basis[rejected]
    told = reward.fit_user(basis[chosen], basis[rejected])
    # Any weights are the generic ones and a step in the plane; a user's own scale is the reward's reach.
    axes = np.linalg.svd(np.eye(3) - 1 / 3)[0][:, :2]
    line = np.linspace(-6, 6, 241)
    z = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    weights = 1 / 3 + z @ axes.T / reward.reach
    log = -reward.trust * np.logaddexp(0, -gaps @ weights.T).sum(0) - (z**2).sum(1) / 2
    share = np.exp(log - log.max())
    exact = (share[:, None] * weights).sum(0) / share.sum()
    assert np.abs(told - exact).max() < 0.25 * np.abs(exact - reward.generic).max()


def test_one_user_with_one_pair_is_enough_to_train_on():
    reward, weights = fit(np.eye(3), Pairs(*np.array([[0], [1], [2]])), 1, SMALL)
    scores = reward.basis(np.eye(3)) @ weights[0]
    assert scores[1] > scores[2]


def test_the_same_seed_gives_the_same_and_the_order_of_pairs_does_not_matter_much(trained):
    features, rewards, _, _ = trained
    pairs = drawn(rewards, np.random.default_rng(7))
    one, first = fit(features, pairs, USERS, SMALL)
    two, second = fit(features, pairs, USERS, SMALL)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(one.head, two.head)
    back = slice(None, None, -1)
    _, turned = fit(features, Pairs(pairs.user[back], pairs.chosen[back], pairs.rejected[back]), USERS, SMALL)
    np.testing.assert_allclose(turned, first, atol=0.02)


def test_it_is_kept_as_arrays_and_comes_back_the_same(trained):
    features, _, reward, _ = trained
    back = LowRankReward.from_arrays(load(save(reward.arrays())))
    basis = reward.basis(features)
    np.testing.assert_array_equal(back.basis(features), basis)
    np.testing.assert_array_equal(
        back.fit_user(basis[:3], basis[3:6]), reward.fit_user(basis[:3], basis[3:6])
    )


def test_progress_is_told_after_each_pass(trained):
    features, rewards, _, _ = trained
    told: list[tuple[int, int, float]] = []
    fit(features, drawn(rewards, np.random.default_rng(8)), USERS, SMALL, progress=lambda *a: told.append(a))
    assert [(done, total) for done, total, _ in told] == [(n, 8) for n in range(1, 9)]
    assert told[-1][2] < told[0][2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
@settings(max_examples=60)
def test_independent_comparisons_are_the_rank_of_the_pairs(rows):
    """Parity with linear algebra: the rank of the matrix with 1 at the chosen and −1 at the rejected text."""
    rows = [row for row in rows if row[1] != row[2]] or [(0, 0, 1)]
    user, chosen, rejected = np.array(rows).T
    found = independent(user, chosen, rejected, 4)
    for who in range(4):
        mine = user == who
        matrix = np.eye(7)[chosen[mine]] - np.eye(7)[rejected[mine]]
        assert found[who] == (np.linalg.matrix_rank(matrix) if mine.any() else 0)


def test_a_ranking_counts_as_its_independent_comparisons():
    chosen, rejected = np.array(list(combinations(range(5), 2))).T
    [user] = by_user(Pairs(np.zeros(10, dtype=int), chosen, rejected), 1)
    assert user.weight * len(user.chosen) == pytest.approx(4)


def test_batches_hold_every_user_once_and_not_too_many_pairs():
    sizes = [3, 1, 9, 2, 2, 5]
    user = np.repeat(np.arange(6), sizes)
    pairs = Pairs(user, np.arange(len(user)) + 1, np.zeros(len(user), dtype=int))
    made = batches(by_user(pairs, 6), np.arange(6)[::-1], 5)
    assert [at for batch in made for at in batch] == [5, 4, 3, 2, 1, 0]
    assert all(len(batch) == 1 or sum(sizes[at] for at in batch) <= 5 for batch in made)


@pytest.mark.parametrize(
    ("user", "chosen", "rejected", "said"),
    [
        ([], [], [], "no preferences"),
        ([0], [1, 2], [2], "as many"),
        ([0, 3], [1, 2], [2, 1], r"pair 1: user is 3; it must be 0 to 2"),
        ([0], [4], [2], r"pair 0: chosen is 4; it must be 0 to 3"),
        ([0], [1], [-1], r"pair 0: rejected is -1"),
        ([0], [2], [2], "text 2 is preferred to itself"),
        ([0], [1.5], [2], "whole numbers"),
    ],
)
def test_pairs_that_cannot_be_are_refused(user, chosen, rejected, said):
    with pytest.raises(BadInputError, match=said):
        fit(np.eye(4), Pairs(np.array(user), np.array(chosen), np.array(rejected)), 3, SMALL)


def test_features_that_cannot_be_are_refused(trained):
    _, _, reward, _ = trained
    pairs = Pairs(np.array([0]), np.array([0]), np.array([1]))
    with pytest.raises(BadInputError, match="row 1 of 3 is not finite"):
        fit(np.array([[0.0], [np.nan], [1.0]]), pairs, 1, SMALL)
    with pytest.raises(BadInputError, match="the same features"):
        fit(np.ones((3, 2)), pairs, 1, SMALL)
    with pytest.raises(BadInputError, match=r"\(texts, 6\) is needed"):
        reward.basis(np.ones((2, 5)))
    with pytest.raises(BadInputError, match="1 chosen and 2 rejected"):
        reward.fit_user(np.ones((1, 3)), np.ones((2, 3)))


def test_arrays_that_do_not_fit_are_refused(trained):
    _, _, reward, _ = trained
    arrays = reward.arrays()
    with pytest.raises(BadInputError, match="lacks head"):
        LowRankReward.from_arrays({name: value for name, value in arrays.items() if name != "head"})
    with pytest.raises(BadInputError, match="do not fit together"):
        LowRankReward.from_arrays(arrays | {"generic": np.ones(7)})
    with pytest.raises(BadInputError, match="not finite"):
        LowRankReward.from_arrays(arrays | {"reach": np.zeros(1)})


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"trust": 0.0}, {"weight_decay": -1.0}, {"epochs": 0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(BadInputError, match=next(iter(wrong))):
        LowRankConfig(**wrong)
