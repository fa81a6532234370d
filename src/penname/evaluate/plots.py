"""The report's plots as geometry: where each mark lies, in percent of the plot.

The page draws them as SVG in percent, so that they fit any screen, keep their letters' size, and take the
page's colours in light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from penname.evaluate.metrics import METRICS
from penname.evaluate.results import Arm, Results
from penname.evaluate.tables import Pair, Table, UserMean, gain, user_means
from penname.evaluate.text import bounds, number, signed, versus

_MARGIN = 0.08  # of the span, on either side: room for the outermost tick's label
COLOURS = 6  # what the page's style has
DOTS = 400  # users in a scatter plot; more cannot be told apart, and make the page heavy


@dataclass(frozen=True)
class Mark:
    """A dot, with a line from `low` to `high` where it has an interval. Places in percent."""

    label: str
    about: str  # in words
    colour: int
    at: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Plot:
    """A metric's differences under one another."""

    metric: str
    ticks: list[tuple[float, str]]  # place in percent, label
    marks: list[Mark]
    zero: float  # place of "no difference"


@dataclass(frozen=True)
class Scatter:
    """One dot a user: the arm's mean upwards, the other's to the right; on the diagonal they are alike."""

    metric: str
    arm: str
    other: str
    colour: int
    ticks: list[tuple[float, str]]  # of both axes
    dots: list[tuple[float, float, str]]  # right, up (percent), in words
    users: int  # of whom `dots` shows some, evenly
    better: int  # users for whom the arm is better
    worse: int


def colours(arms: Sequence[Arm]) -> dict[str, int]:
    """Each arm's colour: a control has that of its arm."""
    own = {arm.name: number for number, arm in enumerate(arm for arm in arms if not arm.control)}
    return {arm.name: own.get(arm.of or arm.name, 0) % COLOURS for arm in arms}


def intervals(table: Table, pairs: Iterable[Pair], colour: dict[str, int]) -> list[Plot]:
    """For each metric its pairs' differences with their intervals; hollow: 0 is not left out."""
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.metric, []).append(pair)
    return [_intervals(metric, found[metric], colour) for metric in table.metrics if metric in found]


def scatters(results: Results, table: Table, metric: str, colour: dict[str, int]) -> list[Scatter]:
    """Each arm against the baseline by user, on one metric; controls and macro-F1 have none."""
    if METRICS[metric].aggregate == "macro_f1":
        return []
    found = []
    for arm in table.arms:
        if arm.control or arm.name == table.baseline:
            continue
        if means := user_means(results, table.task, arm.name, table.baseline, metric):
            found.append(_scatter(metric, arm.name, table.baseline, means, colour[arm.name]))
    return found


def _intervals(metric: str, pairs: Sequence[Pair], colour: dict[str, int]) -> Plot:
    edges = [edge for pair in pairs for edge in (pair.found.mean, pair.found.low, pair.found.high)]
    axis = _Axis.over([0.0, *(edge for edge in edges if math.isfinite(edge))])
    marks = []
    for pair in pairs:
        d = pair.found
        label = pair.arm if pair.kind == "baseline" else versus(pair)
        about = f"{label}: {signed(metric, d.mean)} ({bounds(metric, d)}; {d.n} examples, {d.groups} users)"
        low, high = (axis.at(d.low), axis.at(d.high)) if d.defined else (None, None)
        marks.append(Mark(label, about, colour[pair.arm], axis.at(d.mean), low, high, hollow=not d.clear))
    return Plot(metric, axis.ticks(), marks, zero=axis.at(0.0))


def _scatter(metric: str, arm: str, other: str, means: Sequence[UserMean], colour: int) -> Scatter:
    axis = _Axis.over([value for mean in means for value in (mean.arm, mean.other)])
    step = max(1, math.ceil(len(means) / DOTS))
    dots = [
        (
            axis.at(mean.other),
            axis.at(mean.arm),
            f"{mean.user}: {number(metric, mean.arm)}, {other} {number(metric, mean.other)}",
        )
        for mean in means[::step]
    ]
    gains = [gain(metric, mean.arm - mean.other) for mean in means]
    better, worse = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
    return Scatter(metric, arm, other, colour, axis.ticks(), dots, len(means), better, worse)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> _Axis:
        """An axis that holds all `values`, with a margin."""
        low, high = min(values), max(values)
        margin = (high - low) * _MARGIN or max(abs(high), 1.0) * _MARGIN
        return cls(low - margin, high + margin)

    def at(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Two to four round values, none so near the edge that its label would be cut off."""
        span = self.high - self.low
        power = 10 ** math.floor(math.log10(span / 4))
        step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 4)
        digits = max(0, -math.floor(math.log10(step)))
        room = span * _MARGIN / 2
        first, last = math.ceil((self.low + room) / step), math.floor((self.high - room) / step)
        values = [i * step for i in range(first, last + 1)]
        return [(self.at(value), f"{value:.{digits}f}".replace("-", "−")) for value in values]
