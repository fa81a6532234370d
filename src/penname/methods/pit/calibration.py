"""How far a gap can be believed: as a probability, and beside the texts' lengths. Pure functions of numbers.

A pair that was held out is asked about in both directions: r(y_w, y_l) of a text that is better than its
draft, and r(y_l, y_w) of one that is not. A gap r is read as the probability σ(r / T) that the text is better
(temperature scaling, arXiv 1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 10  # of equal width; few enough that each has some of a small share held out

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Gaps that were given about the same probability."""

    probability: float  # their mean
    better: float  # share of the texts that were really better
    count: int


@dataclass(frozen=True)
class Side:
    """The pairs whose better text is on one side in length."""

    pairs: int
    accuracy: float | None  # share whose gap is above 0; None where there are no pairs


@dataclass(frozen=True)
class LengthBias:
    """Whether a gap says more than which text is the longer. Lengths in characters."""

    longer: Side  # the better text is the longer one
    shorter: Side
    correlation: float | None  # Spearman's, of gap and log length ratio; None where one of them is constant


@dataclass(frozen=True)
class Calibration:
    """What pairs held out say of the gaps. Losses and errors are of the very pairs that T was fitted on."""

    pairs: int
    temperature: float
    accuracy: float  # share of better texts with a gap above 0
    worse_accuracy: float  # share of worse texts with a gap below 0
    log_loss: float  # nats of a gap, as σ(r / T)
    log_loss_raw: float  # with T = 1
    error: float  # expected calibration error
    error_raw: float  # with T = 1
    bins: tuple[Bin, ...]
    length: LengthBias


def probability(gap: float, temperature: float) -> float:
    """σ(gap / T): how likely the text is to be better. Of −inf it is 0."""
    x = gap / temperature
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def fit_temperature(better: ArrayLike, worse: ArrayLike) -> float:
    """The T > 0 with the lowest log loss of σ(r / T); 1 where no gap says anything.

    Labels are (n + 1) / (n + 2) instead of 1, as Platt's scaling has them (Advances in Large Margin
    Classifiers, 1999, section 2.2): else T would be 0 where all n gaps happen to be on the right side.

    Args:
        better: gaps of texts that are better than their drafts, (pairs,).
        worse: gaps of texts that are worse, (pairs,).
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    margins = np.concatenate([np.asarray(better, float), -np.asarray(worse, float)])
    scale = float(np.abs(margins).mean()) if margins.size else 0.0
    if scale == 0.0:
        return 1.0
    label = (margins.size + 1) / (margins.size + 2)

    def lost(log_t: float) -> float:
        x = margins / scale / math.exp(log_t)
        return float((label * np.logaddexp(0, -x) + (1 - label) * np.logaddexp(0, x)).mean())

    # Convex in 1 / T, so that there is one lowest place. Where gaps point the wrong way it is T = ∞, and a
    # thousand times the gaps' size stands for it: all probabilities are about a half.
    found = minimize_scalar(lost, bounds=(math.log(1e-3), math.log(1e3)), method="bounded")
    return scale * math.exp(float(found.x))


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> tuple[Bin, ...]:
    """Bins of equal width that hold something, from the lowest probability up.

    Args:
        probabilities: in [0, 1], (n,).
        labels: whether each was really better, (n,).
    """
    said, true = np.asarray(probabilities, float), np.asarray(labels, float)
    places = np.minimum((said * bins).astype(int), bins - 1)
    return tuple(
        Bin(float(said[at].mean()), float(true[at].mean()), int(at.sum()))
        for at in (places == place for place in range(bins))
        if at.any()
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Σ count |probability − share that was better| / n: the expected calibration error."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.probability - one.better) for one in bins) / total if total else 0.0


def length_bias(
    better: ArrayLike, worse: ArrayLike, better_lengths: ArrayLike, worse_lengths: ArrayLike
) -> LengthBias:
    """Accuracy by which text is the longer, and how gaps go with lengths.

    Args:
        better, worse: gaps of both directions, (pairs,) each.
        better_lengths, worse_lengths: of the texts themselves, above 0, (pairs,) each.
    """
    right = np.asarray(better, float) > 0
    ratios = np.log(np.asarray(better_lengths, float)) - np.log(np.asarray(worse_lengths, float))
    gaps = np.concatenate([np.asarray(better, float), np.asarray(worse, float)])
    return LengthBias(
        _side(right[ratios > 0]), _side(right[ratios < 0]), _rank(gaps, np.concatenate([ratios, -ratios]))
    )


def calibrate(
    better: ArrayLike, worse: ArrayLike, better_lengths: ArrayLike, worse_lengths: ArrayLike
) -> Calibration:
    """All of it, of one pair at least. Arguments as of `length_bias`."""
    gaps = np.concatenate([np.asarray(better, float), np.asarray(worse, float)])
    pairs = len(gaps) // 2
    labels = np.arange(len(gaps)) < pairs
    temperature = fit_temperature(better, worse)
    bins, raw = (reliability(_sigmoid(gaps / t), labels) for t in (temperature, 1.0))
    return Calibration(
        pairs=pairs,
        temperature=temperature,
        accuracy=float((gaps[:pairs] > 0).mean()),
        worse_accuracy=float((gaps[pairs:] < 0).mean()),
        log_loss=_log_loss(gaps / temperature, labels),
        log_loss_raw=_log_loss(gaps, labels),
        error=calibration_error(bins),
        error_raw=calibration_error(raw),
        bins=bins,
        length=length_bias(better, worse, better_lengths, worse_lengths),
    )


def draw(found: Calibration, file: Path) -> None:
    """Draw the bins as a PNG: the share that was better over the probability; on the diagonal they agree."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes: Any = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=1)
    said, true = [one.probability for one in found.bins], [one.better for one in found.bins]
    axes.plot(said, true, color="#2a6f97", marker="o", zorder=2)
    for one in found.bins:
        axes.annotate(
            f"{one.count:,}", (one.probability, one.better), (6, -10), textcoords="offset points", fontsize=8
        )
    axes.set(
        xlim=(0, 1),
        ylim=(-0.03, 1.03),
        aspect="equal",
        xlabel="probability that the text is better",
        ylabel="share that was better",
        title=f"{found.pairs:,} pairs held out, both ways; T = {found.temperature:.3g}",
    )
    figure.savefig(file, dpi=120)


def _side(right: NDArray[np.bool_]) -> Side:
    return Side(len(right), float(right.mean()) if len(right) else None)


def _rank(one: Floats, other: Floats) -> float | None:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    if not (np.ptp(one) and np.ptp(other)):
        return None
    return float(spearmanr(one, other).statistic)


def _sigmoid(x: Floats) -> Floats:
    from scipy.special import expit  # type: ignore[import-untyped]

    found: Floats = expit(x)
    return found


def _log_loss(x: Floats, labels: NDArray[np.bool_]) -> float:
    return float(np.logaddexp(0, np.where(labels, -x, x)).mean())
