"""Real preferences that conflict: the low-rank personalised reward on Jester, beside its baselines.

100 jokes rated by 2,500 people. A preference is two jokes of one person whose ratings differ by 1 or more.
How far they differ is used by the population's mean, matrix factorisation and the joint normal distribution
alone, which see the ratings.
The split is that of the data's README: seen users have a fifth of their ratings held out, unseen users reveal
ten, and the test is all pairs among the held-out, or the other, ratings. `--split validation`, for tuning,
looks at neither: it holds out another fifth of the seen users' training ratings, and its unseen users are the
validation users. With a fifth fewer ratings to learn from, all its figures are lower.

    python benchmarks/jester.py [--data ../shared/data] [--split test] [--seed 0] [--quick]

Prints, in five to seven minutes on one core:

    arms       accuracy over all pairs, with a 95 % interval (bootstrap over users), the mean of the users'
               own accuracies, and of the worst tenth of them; one arm has each user with another's weights
    curve      unseen users' accuracy by the number of ratings revealed, 0 to 30: the test pairs are those
               among the ratings after the first thirty, the same at each point
    ablations  the number of basis dimensions; text features or one dimension a joke; fewer seen users to
               learn from (--quick: none)

The jokes' texts are embedded once by the packaged embedder, and never shown.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from penname.lm import load_embedder
from penname.methods.prlhf.comparisons import Pairs
from penname.methods.prlhf.lowrank import LowRankConfig, LowRankReward, fit

JOKES = 100
REVEALED = 10
CURVE = (0, 1, 2, 3, 5, 7, 10, 15, 20, 25, 30)
RANKS = (1, 2, 4, 8, 16, 32)
USERS = (250, 500, 1000)
ALONE_DIMENSIONS, ALONE_C = 30, 0.003  # the per-user model: principal components of the texts, sklearn's C
MF_RANK, MF_RIDGE, MF_PASSES = 5, 20.0, 15  # tuned on the validation split, ranks 5 to 10
NORMAL_PASSES, NORMAL_SHRINK = 12, 0.15  # tuned on the validation split, 0.01 to 0.45


@dataclass(frozen=True)
class Split:
    """Ratings (users, JOKES), nan where there is none; `order` is in which the unseen users reveal theirs."""

    train: np.ndarray
    seen_test: np.ndarray
    unseen: np.ndarray
    order: np.ndarray

    def revealed(self, n: int) -> np.ndarray:
        """The unseen users' first n ratings."""
        return np.where(self.order < n, self.unseen, np.nan)

    def rest(self, n: int) -> np.ndarray:
        """Their ratings after the first n."""
        return np.where(self.order >= n, self.unseen, np.nan)


def load(folder: Path, part: str) -> Split:
    """The data, split as its README says."""
    with gzip.open(folder / "ratings_public.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    number = np.array([int(row["user"][1:]) for row in rows])
    ratings = np.full((len(rows), JOKES), np.nan)
    for place, row in enumerate(rows):
        for joke, rating in row["ratings"].items():
            ratings[place, int(joke)] = rating
    fifth = (31 * number[:, None] + np.arange(JOKES)) % 5
    key = np.where(np.isnan(ratings), 1000, (31 * number[:, None] + 17 * np.arange(JOKES)) % 101)
    place = key.argsort(1).argsort(1)
    seen = number % 10 < 8
    unseen = number % 10 == (8 if part == "validation" else 9)
    hidden = fifth == 0
    test = fifth == 1 if part == "validation" else hidden
    return Split(
        train=np.where(hidden | test, np.nan, ratings)[seen],
        seen_test=np.where(test, ratings, np.nan)[seen],
        unseen=ratings[unseen],
        order=place[unseen],
    )


def preferences(ratings: np.ndarray) -> Pairs:
    """All pairs of each row whose ratings differ by 1 or more."""
    found = [np.nonzero(row[:, None] - row[None, :] >= 1) for row in ratings]
    user = np.repeat(np.arange(len(found)), [len(chosen) for chosen, _ in found])
    return Pairs(user, np.concatenate([c for c, _ in found]), np.concatenate([r for _, r in found]))


def right(scores: np.ndarray, test: np.ndarray, against: np.ndarray | None = None) -> np.ndarray:
    """Pairs of each user that `scores` order as the user does (a tie is half), and all pairs: (users, 2).

    Pairs among `test`, or of one rating of `test` and one of `against`.
    """
    other = test if against is None else against
    counts = np.zeros((len(test), 2))
    for place, (score, row, beside) in enumerate(zip(scores, test, other, strict=True)):
        gap = row[:, None] - beside[None, :]
        told = np.sign(score[:, None] - score[None, :]) * np.sign(gap)
        counted = np.abs(gap) >= 1
        if against is None:
            counted &= gap > 0  # each pair once
        counts[place] = ((1 + told[counted]) / 2).sum(), counted.sum()
    return counts


def percent(counts: np.ndarray) -> float:
    return 100 * float(counts[:, 0].sum() / counts[:, 1].sum())


def resampled(counts: np.ndarray, seed: int) -> np.ndarray:
    """Accuracy in 2,000 draws of as many users, with replacement; the same users for the same seed."""
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), 2000)
    sums = drawn @ counts
    return 100 * sums[:, 0] / sums[:, 1]


def difference(a: np.ndarray, b: np.ndarray, seed: int) -> str:
    """How far a's accuracy is above b's on the same users, with its interval."""
    low, high = np.percentile(resampled(a, seed) - resampled(b, seed), [2.5, 97.5])
    return f"{percent(a) - percent(b):+.2f} [{low:+.2f}, {high:+.2f}]"


def described(counts: np.ndarray, seed: int) -> str:
    """Accuracy with its interval, the users' mean and the worst tenth."""
    low, high = np.percentile(resampled(counts, seed), [2.5, 97.5])
    own = np.sort(100 * counts[counts[:, 1] > 0, 0] / counts[counts[:, 1] > 0, 1])
    worst = own[: max(1, len(own) // 10)].mean()
    return f"{percent(counts):6.2f} [{low:.2f}, {high:.2f}] {own.mean():6.1f} {worst:6.1f}"


class Factors:
    """Matrix factorisation of ratings by alternating ridge regressions, users' and jokes' means apart."""

    def __init__(self, ratings: np.ndarray, seed: int) -> None:
        self.joke = np.nanmean(ratings, 0)  # of all users who rated it
        self.items = np.random.default_rng(seed).normal(size=(JOKES, MF_RANK))
        left = self._left(ratings)
        for _ in range(MF_PASSES):
            users = _ridge(left, self.items)
            self.items = _ridge(left.T, users)
            # Users' factors are kept at unit size, so that one ridge suits ten ratings and eighty.
            self.items *= users.std(0)

    def predict(self, ratings: np.ndarray) -> np.ndarray:
        return self.joke + _ridge(self._left(ratings), self.items) @ self.items.T

    def _left(self, ratings: np.ndarray) -> np.ndarray:
        rest = ratings - self.joke
        known = (~np.isnan(rest)).sum(1, keepdims=True)
        return rest - np.nansum(rest, 1, keepdims=True) / (known + 1)


class Normal:
    """Ratings of all jokes as one normal distribution, by expectation and maximisation over what is missing.

    What a user has not rated is foretold from what the user has: no linear way of doing so is better, if the
    covariance is right. Its off-diagonal part is shrunk a little in each pass.
    """

    def __init__(self, ratings: np.ndarray) -> None:
        self.mean = np.nanmean(ratings, 0)
        self.covariance = np.diag(np.nanvar(ratings, 0))
        for _ in range(NORMAL_PASSES):
            unsure = np.zeros_like(self.covariance)
            filled = np.zeros_like(ratings)
            for place, row in enumerate(ratings):
                filled[place], known = self._foretold(row)
                unsure += self.covariance - known
            self.mean = filled.mean(0)
            apart = filled - self.mean
            found = (apart.T @ apart + unsure) / len(ratings)
            self.covariance = (1 - NORMAL_SHRINK) * found + NORMAL_SHRINK * np.diag(np.diag(found))

    def predict(self, ratings: np.ndarray) -> np.ndarray:
        return np.stack([self._foretold(row)[0] for row in ratings])

    def _foretold(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All of a user's ratings from those that are known, and the covariance that these take away."""
        has = ~np.isnan(row)
        pull = np.linalg.solve(self.covariance[np.ix_(has, has)], self.covariance[has]).T
        return self.mean + pull @ (row - self.mean)[has], pull @ self.covariance[has]


def _ridge(left: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Each row's least squares on the factors of the columns that it has."""
    found = np.zeros((len(left), factors.shape[1]))
    for place, row in enumerate(left):
        has = ~np.isnan(row)
        x = factors[has]
        found[place] = np.linalg.solve(x.T @ x + MF_RIDGE * np.eye(x.shape[1]), x.T @ row[has])
    return found


def pooled(pairs: Pairs, features: np.ndarray) -> np.ndarray:
    """One Bradley-Terry reward for everyone, linear in the features, from all pairs at once: (JOKES,)."""
    wins = np.zeros((JOKES, JOKES))
    np.add.at(wins, (pairs.chosen, pairs.rejected), 1 / len(pairs))

    def loss(head: np.ndarray) -> tuple[float, np.ndarray]:
        scores = features @ head
        gap = scores[:, None] - scores[None, :]
        pull = wins / (1 + np.exp(gap))
        value = (wins * np.logaddexp(0, -gap)).sum() + 1e-6 * head @ head
        return value, features.T @ (pull.sum(0) - pull.sum(1)) + 2e-6 * head

    return features @ minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x


def alone(ratings: np.ndarray, features: np.ndarray) -> np.ndarray:
    """A reward for each user from that user's own pairs only, linear in the texts' principal components."""
    turn = np.linalg.svd(features - features.mean(0), full_matrices=False)
    rows = turn[0][:, :ALONE_DIMENSIONS] * np.sqrt(JOKES)
    pairs = preferences(ratings)
    ends = np.searchsorted(pairs.user, np.arange(len(ratings) + 1))
    scores = np.zeros((len(ratings), JOKES))
    for user, (start, end) in enumerate(pairwise(ends)):
        if end == start:
            continue
        gap = rows[pairs.chosen[start:end]] - rows[pairs.rejected[start:end]]
        model = LogisticRegression(C=ALONE_C, fit_intercept=False)
        model.fit(np.concatenate([gap, -gap]), np.repeat([1, 0], len(gap)))
        scores[user] = rows @ model.coef_[0]
    return scores


def fitted(reward: LowRankReward, basis: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    """New users' weights (users, B) from the preferences among their ratings."""
    weights = np.tile(reward.generic, (len(ratings), 1))
    for user, row in enumerate(ratings):
        chosen, rejected = np.nonzero(row[:, None] - row[None, :] >= 1)
        weights[user] = reward.fit_user(basis[chosen], basis[rejected])
    return weights


def curve(split: Split, ways: dict[str, Callable[[np.ndarray], np.ndarray]], seed: int) -> None:
    """Accuracy by the number of ratings revealed, on the same pairs throughout."""
    test = split.rest(max(CURVE))
    some = (~np.isnan(test)).sum(1) > 1
    print(f"\ncurve: {some.sum()} unseen users, pairs among the ratings after the first {max(CURVE)}")
    print(f"{'ratings':>8} {'pairs':>6}  " + "  ".join(f"{name:>24}" for name in ways))
    for n in CURVE:
        known = split.revealed(n)
        each = len(preferences(known[some])) / some.sum()
        told = [described(right(way(known), test)[some], seed)[:22] for way in ways.values()]
        print(f"{n:>8} {each:>6.1f}  " + "  ".join(f"{text:>24}" for text in told))


def ablations(split: Split, pairs: Pairs, texts: np.ndarray, config: LowRankConfig) -> None:
    """The number of basis dimensions, the features, and the number of users to learn from."""
    print(f"\nablations\n{'':34}{'seen':>7}{'unseen':>8}{'s':>6}")
    everyone = len(split.train)
    tried = [(f"{rank + 1} basis dimensions", texts, rank, everyone) for rank in RANKS]
    tried.append((f"{config.rank + 1} dimensions, no text features", np.eye(JOKES), config.rank, everyone))
    tried += [(f"{number} seen users", texts, config.rank, number) for number in USERS]
    for name, features, rank, number in tried:
        end = np.searchsorted(pairs.user, number)
        some = Pairs(pairs.user[:end], pairs.chosen[:end], pairs.rejected[:end])
        started = time.perf_counter()
        reward, weights = fit(features, some, number, LowRankConfig(rank=rank, seed=config.seed))
        took = time.perf_counter() - started
        basis = reward.basis(features)
        seen = right(weights @ basis.T, split.seen_test[:number])
        unseen = right(fitted(reward, basis, split.revealed(REVEALED)) @ basis.T, split.rest(REVEALED))
        print(f"{name:34}{percent(seen):>7.2f}{percent(unseen):>8.2f}{took:>6.0f}")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    there = os.environ.get("PENNAME_DATA", Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--data", type=Path, default=Path(there))
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--features", type=Path, help="the jokes' vectors (.npy), made and kept here if absent"
    )
    parser.add_argument("--quick", action="store_true", help="without the ablations")
    return parser.parse_args(arguments)


def embedded(folder: Path, kept: Path | None) -> np.ndarray:
    """The texts' vectors, (JOKES, d)."""
    if kept and kept.exists():
        return np.load(kept, allow_pickle=False)
    vectors = load_embedder().embed(json.loads((folder / "jokes.json").read_text(encoding="utf-8")))
    if kept:
        np.save(kept, vectors, allow_pickle=False)
    return vectors


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    folder = options.data / "jester"
    split = load(folder, options.split)
    pairs = preferences(split.train)
    texts = embedded(folder, options.features)
    known, rest = split.revealed(REVEALED), split.rest(REVEALED)
    config = LowRankConfig(seed=options.seed)
    print(f"{options.split}: {len(split.train)} seen users, {len(pairs)} pairs; {len(known)} unseen users")

    started = time.perf_counter()
    reward, weights = fit(texts, pairs, len(split.train), config)
    trained = time.perf_counter() - started
    basis = reward.basis(texts)
    started = time.perf_counter()
    new = fitted(reward, basis, known)
    each = 1000 * (time.perf_counter() - started) / len(known)
    factors = Factors(split.train, options.seed)
    normal = Normal(split.train)
    mean = np.nanmean(split.train, 0)
    everyone = pooled(pairs, np.linalg.svd(texts - texts.mean(0), full_matrices=False)[0] * np.sqrt(JOKES))

    def constant(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(scores, (len(split.train), 1)), np.tile(scores, (len(known), 1))

    arms = {
        "population mean (ratings)": constant(mean),
        "matrix factorisation (ratings)": (factors.predict(split.train), factors.predict(known)),
        "joint normal (ratings)": (normal.predict(split.train), normal.predict(known)),
        "pooled reward": constant(everyone),
        "a reward per user, alone": (alone(split.train, texts), alone(known, texts)),
        "low rank, generic weights": constant(basis @ reward.generic),
        "low rank": (weights @ basis.T, new @ basis.T),
        "low rank, swapped weights": (np.roll(weights, 1, 0) @ basis.T, np.roll(new, 1, 0) @ basis.T),
    }
    title = f"{'accuracy, 95 % interval':>22}  users  worst"
    print(f"\n{'':32}{'seen: ' + title:>38}   {'unseen: ' + title:>38}")
    counts = {n: (right(a, split.seen_test), right(b, rest)) for n, (a, b) in arms.items()}
    for name, (seen, unseen) in counts.items():
        print(f"{name:32}{described(seen, options.seed):>38}   {described(unseen, options.seed):>38}")
    print("\nlow rank less another arm:")
    for name, other in counts.items():
        told = [difference(a, b, options.seed) for a, b in zip(counts["low rank"], other, strict=True)]
        if name != "low rank":
            print(f"{name:32}{told[0]:>26}{told[1]:>26}")
    print("\nseen users, pairs of a held-out and a training rating instead:")
    for name in ("population mean (ratings)", "matrix factorisation (ratings)", "low rank"):
        print(f"{name:32}{percent(right(arms[name][0], split.seen_test, split.train)):6.2f}")
    print(f"\ntraining {trained:.0f} s; fitting a new user {each:.2f} ms")

    curve(
        split,
        {
            "low rank": lambda ratings: fitted(reward, basis, ratings) @ basis.T,
            "matrix factorisation": factors.predict,
            "joint normal": normal.predict,
        },
        options.seed,
    )
    if not options.quick:
        ablations(split, pairs, texts, config)


if __name__ == "__main__":
    main()
