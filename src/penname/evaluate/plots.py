"""The report's plots as geometry: where each mark lies, in percent of the plot's width.

The page draws them as rows of SVG in percent, so that they fit any screen, keep their letters' size, and take
the page's colours in light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from penname.evaluate.results import Line, Results
from penname.evaluate.text import bounds, number, signed

_MARGIN = 0.08  # of the span, on either side: room for the outermost tick's label


@dataclass(frozen=True)
class Mark:
    """A dot, with a line from `low` to `high` where it has an interval. Places in percent."""

    arm: int  # number of the arm: its colour
    about: str  # in words
    at: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Plot:
    """A metric's marks, in rows under one another."""

    metric: str
    ticks: list[tuple[float, str]]  # place in percent, label
    rows: list[tuple[str, list[Mark]]]  # label, marks
    zero: float | None = None  # place of 0 in percent, where 0 means "no difference"


def differences(results: Results, lines: Sequence[Line]) -> list[Plot]:
    """For each metric, how far each arm lies from the first, with its interval; hollow: 0 is not left out."""
    plots = []
    for metric in results.metrics:
        found = [(line, line.difference) for line in lines if line.metric == metric and line.difference]
        if not found:
            continue
        edges = [edge for _, d in found for edge in (d.mean, d.low, d.high) if math.isfinite(edge)]
        axis = _Axis.over([0.0, *edges])
        rows = []
        for line, d in found:
            about = f"{line.arm}: {signed(metric, d.mean)} ({bounds(line)}; {d.n} requests, {d.groups} users)"
            low, high = (axis.at(d.low), axis.at(d.high)) if d.defined else (None, None)
            mark = Mark(results.arms.index(line.arm), about, axis.at(d.mean), low, high, hollow=not d.clear)
            rows.append((line.arm, [mark]))
        plots.append(Plot(metric, axis.ticks(), rows, zero=axis.at(0.0)))
    return plots


def by_writer(results: Results) -> list[Plot]:
    """For each metric, the mean score of each arm for each user or group that was written for."""
    plots = []
    for metric in results.metrics:
        scores: dict[tuple[str, ...], dict[str, list[float]]] = {}
        for row in results.rows:
            if metric in row.scores:
                arms = scores.setdefault(row.request.users, {})
                arms.setdefault(row.arm, []).append(row.scores[metric])
        means = {users: {arm: fmean(found) for arm, found in arms.items()} for users, arms in scores.items()}
        axis = _Axis.over([mean for arms in means.values() for mean in arms.values()])
        rows = []
        for users, of_arm in means.items():
            marks = [
                Mark(i, f"{arm}: {number(metric, of_arm[arm])}", axis.at(of_arm[arm]))
                for i, arm in enumerate(results.arms)
                if arm in of_arm
            ]
            rows.append((" + ".join(users), marks))
        plots.append(Plot(metric, axis.ticks(), rows))
    return plots


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
        """Two to five round values, none so near the edge that its label would be cut off."""
        span = self.high - self.low
        power = 10 ** math.floor(math.log10(span / 4))
        step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 5)
        digits = max(0, -math.floor(math.log10(step)))
        room = span * _MARGIN / 2
        first, last = math.ceil((self.low + room) / step), math.floor((self.high - room) / step)
        values = [i * step for i in range(first, last + 1)]
        return [(self.at(value), f"{value:.{digits}f}".replace("-", "−")) for value in values]
