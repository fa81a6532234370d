"""A low-rank personalised reward model after LoRe (arXiv 2504.14439): r_u(x, y) = w_u · R_φ(x, y).

R_φ is a linear head of a few dozen outputs on fixed features of a prompt and its answer, shared by all users;
w_u lies on the simplex. Both are learnt from users' preferences by Bradley-Terry; a new user's w_u alone is
fitted, in milliseconds, with the head as it is.

What differs from the paper. A joint point estimate of the head and of every w_u overfits where users have
few preferences. So w_u moves in the simplex around its centre, the generic weights, by K = B − 1 coordinates
z_u with a prior N(0, I), and the head is trained under each user's posterior of z_u rather than at a point
(variational EM). The posterior has closed-form updates (Jaakkola and Jordan, 2000,
doi:10.1023/A:1008932416310), the same for users of the training and for new ones. Preferences out of one
ranking repeat one another: k ranked texts make k(k − 1)/2 pairs, and no more than k − 1 independent
comparisons, so that a user's pairs are weighted to count as that many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penname.errors import BadInputError
from penname.methods.prlhf.comparisons import Comparisons, Pairs, batches, by_user, checked, independent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]
    Indices = NDArray[np.integer]

_ARRAYS = ("centre", "head", "generic")
_NUMBERS = ("reach", "trust", "updates")
_MARGIN = 1.5  # the simplex reaches this many times as far as the farthest user of the training


@dataclass(frozen=True)
class LowRankConfig:
    """Settings; the values are ours, from rank to epochs tuned on Jester's validation users."""

    rank: int = 16  # dimensions in which users may differ; the basis has one more
    confidence: float = 0.8  # how much an independent comparison counts while the head is trained
    trust: float = 1.5  # the same when users are fitted to the trained head
    epochs: int = 10  # passes over all users
    steps: int = 16  # of Adam in a pass, at least, where there are as many users
    batch_pairs: int = 200_000  # pairs of a step, at most, unless one user has more: bounds the memory
    learning_rate: float = 0.03  # Adam's, falling to 0 as a cosine
    weight_decay: float = 1e-4  # L2 on the head, in units of whitened features
    floor: float = 1e-3  # added to the features' variances (mean 1) before they are whitened
    training_updates: int = 2  # updates of a user's posterior in each pass; it starts where it was
    updates: int = 8  # updates of a new user's posterior: enough for three digits
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "steps", "batch_pairs", "training_updates", "updates"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("confidence", "trust", "learning_rate", "floor"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise BadInputError(f"weight_decay is {self.weight_decay}; it must be 0 or more")


@dataclass(frozen=True, eq=False)
class LowRankReward:
    """The shared head, trained. A text's reward for a user is `basis(features) @ weights`.

    Attributes:
        centre: (d,), what is taken off the features.
        head: (d, B), R_φ as a linear map.
        generic: (B,), the weights of a user without preferences.
        reach: how many standard deviations of users make a length of 1 in the simplex.
        trust, updates: of the settings, for users fitted later.
    """

    centre: Floats
    head: Floats
    generic: Floats
    reach: float
    trust: float = LowRankConfig.trust
    updates: int = LowRankConfig.updates

    def basis(self, features: NDArray[np.floating]) -> Floats:
        """R_φ of texts: features (n, d) to (n, B).

        Raises:
            BadInputError: the features are not finite, or not of the head's width.
        """
        return (_features(features, len(self.centre)) - self.centre) @ self.head

    def fit_user(self, chosen: NDArray[np.floating], rejected: NDArray[np.floating]) -> Floats:
        """The weights (B,) of one user, from `basis` of the chosen and the rejected texts, (p, B) each.

        The posterior mean, on the simplex. Without preferences it is `generic`. A text that stands in
        several pairs is known by its row of the basis, so that a ranking's pairs count as one ranking.

        Raises:
            BadInputError: the two differ in shape, are not finite, or not of B columns.
        """
        import numpy as np

        better, worse = (_features(rows, len(self.generic)) for rows in (chosen, rejected))
        if better.shape != worse.shape:
            raise BadInputError(
                f"{len(better)} chosen and {len(worse)} rejected texts; each pair has one of each"
            )
        if not len(better):
            return self.generic.copy()
        rows = np.unique(np.concatenate([better, worse]), axis=0, return_inverse=True)[1].reshape(2, -1)
        weight = self.trust * independent(np.zeros_like(rows[0]), rows[0], rows[1], 1)[0] / len(better)
        return self._fit(better - worse, weight)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it as named arrays, to be kept in a safetensors file."""
        import numpy as np

        kept = {name: getattr(self, name) for name in _ARRAYS}
        return kept | {name: np.array([getattr(self, name)]) for name in _NUMBERS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> LowRankReward:
        """Back from `arrays`.

        Raises:
            BadInputError: an array is missing, or their shapes do not fit together.
        """
        import numpy as np

        missing = sorted({*_ARRAYS, *_NUMBERS} - set(arrays))
        if missing:
            raise BadInputError(f"not a low-rank reward: it lacks {', '.join(missing)}")
        centre, head, generic = (np.asarray(arrays[name], dtype=np.float64) for name in _ARRAYS)
        if head.ndim != 2 or head.shape != (*centre.shape, *generic.shape) or len(generic) < 2:
            shapes = ", ".join(f"{name} {np.shape(arrays[name])}" for name in _ARRAYS)
            raise BadInputError(f"not a low-rank reward: the shapes do not fit together ({shapes})")
        reach, trust, updates = (float(arrays[name].item()) for name in _NUMBERS)
        if not all(np.isfinite(array).all() for array in (centre, head, generic)) or not 0 < reach < math.inf:
            raise BadInputError("not a low-rank reward: a number in it is not finite, or reach not above 0")
        return cls(centre, head, generic, reach, trust, int(updates))

    def _fit(self, differences: Floats, weight: float) -> Floats:
        """Weights from basis(chosen) − basis(rejected), (p, B), each counting `weight`."""
        mean, _ = _posterior(*self._split(differences), weight, _start(len(self.generic) - 1), self.updates)
        return self._weights(mean)

    def _split(self, differences: Floats) -> tuple[Floats, Floats]:
        """Rows of the basis (p, B) as what all users share, (p,), and what z turns, (p, K)."""
        return differences.mean(1), differences @ _directions(len(self.generic)) / self.reach

    def _weights(self, z: Floats) -> Floats:
        """Coordinates to weights. Where z leads out of the simplex it is shortened to end on a face."""
        moved = _directions(len(self.generic)) @ z / self.reach
        beyond = max(1.0, -moved.min() * len(moved))
        weights: Floats = (1 / len(moved) + moved / beyond).clip(0)
        weights /= weights.sum()
        return weights


def fit(
    features: NDArray[np.floating],
    pairs: Pairs,
    n_users: int,
    config: LowRankConfig = LowRankConfig(),
    *,
    progress: Callable[[int, int, float], None] = lambda *_: None,
) -> tuple[LowRankReward, Floats]:
    """Train the head and all users' weights.

    Args:
        features: (n, d), a row for each text (with its prompt).
        pairs: the preferences; in any order.
        n_users: users; those without pairs get the generic weights.
        progress: called after each pass with (pass, passes, mean loss of a user).

    Returns:
        The reward, and the users' weights (n_users, B), each row on the simplex.

    Raises:
        BadInputError: no pairs, an index out of range, a text preferred to itself, features not finite.
    """
    import numpy as np

    rows = _features(features, None)
    users = by_user(checked(pairs, len(rows), n_users), n_users)
    centre, whiten = _whitening(rows, config.floor)
    head, means = _train((rows - centre) @ whiten, users, config, progress)
    directions = _directions(config.rank + 1)
    reach = _MARGIN * (config.rank + 1) * max(1.0, float(-(means @ directions.T).min()))
    reward = LowRankReward(
        centre=centre,
        head=whiten @ (head[:, :1] + reach * head[:, 1:] @ directions.T),
        generic=np.full(config.rank + 1, 1 / (config.rank + 1)),
        reach=reach,
        trust=config.trust,
        updates=config.updates,
    )
    basis = reward.basis(rows)
    weights = np.tile(reward.generic, (n_users, 1))
    for user in users:
        differences = basis[user.chosen] - basis[user.rejected]
        weights[user.index] = reward._fit(differences, config.trust * user.weight)
    return reward, weights


def _train(
    rows: Floats,
    users: Sequence[Comparisons],
    config: LowRankConfig,
    progress: Callable[[int, int, float], None],
) -> tuple[Floats, Floats]:
    """Variational EM on whitened features: the head (d, 1 + K), [all users' part, what z turns], and
    each user's mean of z, (users, K)."""
    import numpy as np
    import torch

    rng = np.random.default_rng(config.seed)
    features = torch.tensor(rows, dtype=torch.float32)
    start = np.column_stack(
        [np.zeros(rows.shape[1]), 0.1 * rng.standard_normal((rows.shape[1], config.rank))]
    )
    head = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    optimiser = torch.optim.Adam([head], lr=config.learning_rate, betas=(0.9, 0.98))
    states = [_start(config.rank) for _ in users]
    pairs = min(config.batch_pairs, math.ceil(sum(len(user.chosen) for user in users) / config.steps))
    for epoch in range(config.epochs):
        total = 0.0
        runs = batches(users, rng.permutation(len(users)), pairs)
        for step, batch in enumerate(runs):
            done = (epoch + step / len(runs)) / config.epochs
            optimiser.param_groups[0]["lr"] = config.learning_rate * (1 + math.cos(math.pi * done)) / 2
            rewards = rows @ head.detach().numpy().astype(np.float64)
            drawn = np.empty((len(batch), config.rank))
            for place, at in enumerate(batch):
                user = users[at]
                x = rewards[user.chosen] - rewards[user.rejected]
                weight = config.confidence * user.weight
                states[at] = _posterior(x[:, 0], x[:, 1:], weight, states[at], config.training_updates)
                mean, covariance = states[at]
                drawn[place] = mean + np.linalg.cholesky(covariance) @ rng.standard_normal(config.rank)
            loss = _loss(features @ head, [users[at] for at in batch], torch.tensor(drawn).float())
            total += float(loss.detach()) * len(batch)
            penalty = config.weight_decay / 2 * head[:, 1:].square().sum()
            optimiser.zero_grad()
            (loss + penalty).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        states = _standardise(head.detach(), states)
        progress(epoch + 1, config.epochs, total / len(users))
    return head.detach().numpy().astype(np.float64), np.array([mean for mean, _ in states])


def _loss(rewards: Tensor, users: Sequence[Comparisons], z: Tensor) -> Tensor:
    """Mean over users of −log σ(r_u(chosen) − r_u(rejected)), weighted; rewards (n, 1 + K), z (users, K)."""
    import numpy as np
    import torch

    counts = [len(user.chosen) for user in users]
    chosen = torch.from_numpy(np.concatenate([user.chosen for user in users]))
    rejected = torch.from_numpy(np.concatenate([user.rejected for user in users]))
    weight = torch.tensor([user.weight for user in users]).repeat_interleave(torch.tensor(counts))
    who = torch.arange(len(users)).repeat_interleave(torch.tensor(counts))
    x = rewards.index_select(0, chosen) - rewards.index_select(0, rejected)
    gaps = x[:, 0] + (x[:, 1:] * z.index_select(0, who)).sum(1)
    return (torch.nn.functional.softplus(-gaps) * weight).sum() / len(users)


def _posterior(
    shared: Floats, x: Floats, weight: float, start: tuple[Floats, Floats], updates: int
) -> tuple[Floats, Floats]:
    """The Gaussian posterior of z, (K,) and (K, K), under N(0, I) and Π σ(shared + x · z)^weight.

    shared (p,), x (p, K). Each update is the exact posterior under the quadratic lower bound of log σ that
    is tight at ψ = sqrt(E[(shared + x · z)²]).
    """
    import numpy as np

    mean, covariance = start
    pull = weight / 2 * x.sum(0)
    for _ in range(updates):
        gap = shared + x @ mean
        psi = np.sqrt(gap**2 + ((x @ covariance) * x).sum(1)).clip(1e-6)
        curve = weight * np.tanh(psi / 2) / (2 * psi)
        covariance = np.linalg.inv(np.eye(len(mean)) + x.T @ (curve[:, None] * x))
        mean = covariance @ (pull - x.T @ (curve * shared))
    return mean, covariance


def _start(rank: int) -> tuple[Floats, Floats]:
    import numpy as np

    return np.zeros(rank), np.eye(rank)


def _standardise(head: Tensor, states: Sequence[tuple[Floats, Floats]]) -> list[tuple[Floats, Floats]]:
    """Make the users' z have mean 0 and covariance I by changing the head in place, and no reward.

    The expanded parameters of PX-EM (Liu, Rubin and Wu, 1998): it keeps the prior true and learns faster.
    """
    import numpy as np
    import torch

    means = np.array([mean for mean, _ in states])
    centre = means.mean(0)
    spread = np.cov(means.T, bias=True).reshape(len(centre), -1) + np.mean([c for _, c in states], axis=0)
    root = np.linalg.cholesky(spread)
    head[:, 0] += head[:, 1:] @ torch.tensor(centre).float()
    head[:, 1:] = head[:, 1:] @ torch.tensor(root).float()
    back = np.linalg.inv(root)
    return [(back @ (mean - centre), back @ covariance @ back.T) for mean, covariance in states]


def _directions(size: int) -> Floats:
    """(B, B − 1): orthonormal columns, each summing to 0 (Helmert's), along which weights may move."""
    import numpy as np
    from scipy.linalg import helmert  # type: ignore[import-untyped]

    return np.asarray(helmert(size).T, dtype=np.float64)


def _whitening(rows: Floats, floor: float) -> tuple[Floats, Floats]:
    """The mean (d,) and a map (d, d') after which the features are uncorrelated, with rows of length about 1.

    Embeddings lie in a narrow cone, most of their variance along a few directions; a head on them as they
    are learns those directions first and the rest hardly at all.
    """
    import numpy as np

    centre = rows.mean(0)
    _, widths, turn = np.linalg.svd(rows - centre, full_matrices=False)
    kept = widths > 1e-6 * max(widths.max(), 1e-12)
    if not kept.any():
        raise BadInputError("all texts have the same features; there is nothing to tell them apart by")
    variances = widths[kept] ** 2 / len(rows)
    return centre, turn[kept].T / np.sqrt((variances + floor * variances.mean()) * kept.sum())


def _features(features: NDArray[np.floating], width: int | None) -> Floats:
    """As float64, checked."""
    import numpy as np

    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        raise BadInputError(f"an array (texts, {width or 'features'}) is needed; it is {rows.shape}")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise BadInputError(f"row {bad} of {len(rows)} is not finite")
    return rows
