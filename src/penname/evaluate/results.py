"""What an evaluation found, and its summary: means, and paired differences to the first arm.

An arm is one way of writing (no profile, one author's, the group's). The first arm that occurs is what the
others are compared with, on the requests that both arms have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from penname.errors import BadInputError, UnknownNameError
from penname.evaluate.metrics import METRICS, Metric
from penname.evaluate.statistics import Interval, paired_interval
from penname.records import Draft, Profile, Request


@dataclass(frozen=True)
class Row:
    """One draft with its scores.

    `request` is the held-out request, the same for all arms; `draft.request` is what this arm made of it
    (with the first author alone, say).

    Raises:
        BadInputError: the request has no real text, or a score is nan or infinite.
        UnknownNameError: a score is not in `METRICS`.
    """

    arm: str
    request: Request
    draft: Draft
    scores: dict[str, float]  # by name in METRICS

    def __post_init__(self) -> None:
        if not self.gold.strip():
            raise BadInputError(f"request {self.request.id!r} has no real text to compare a draft with")
        for name, value in self.scores.items():
            if name not in METRICS:
                raise UnknownNameError(name, METRICS)
            if not math.isfinite(value):
                raise BadInputError(
                    f"the {name} of arm {self.arm!r} on request {self.request.id!r} is {value}"
                )

    @property
    def gold(self) -> str:
        """What the user really wrote."""
        return self.request.gold or ""


@dataclass(frozen=True)
class Results:
    """Everything an evaluation found.

    Raises:
        BadInputError: no rows, or two rows of one arm for the same request.
    """

    rows: list[Row]  # arms are ordered as they first occur
    profiles: dict[str, Profile]  # by user
    model: str
    seconds: dict[str, float]  # by stage
    seed: int
    title: str

    def __post_init__(self) -> None:
        if not self.rows:
            raise BadInputError("there are no drafts to report on")
        seen = set()
        for row in self.rows:
            if (row.arm, row.request.id) in seen:
                raise BadInputError(f"arm {row.arm!r} has two drafts for request {row.request.id!r}")
            seen.add((row.arm, row.request.id))

    @property
    def arms(self) -> list[str]:
        """In the order in which they first occur."""
        return list(dict.fromkeys(row.arm for row in self.rows))

    @property
    def metrics(self) -> dict[str, Metric]:
        """Those that any row has, in the order of `METRICS`."""
        return {name: m for name, m in METRICS.items() if any(name in row.scores for row in self.rows)}

    @property
    def users(self) -> list[str]:
        """Everyone who was written for, in the order in which they first occur."""
        return list(dict.fromkeys(user for row in self.rows for user in row.request.users))

    def by_request(self) -> list[list[Row]]:
        """Each request's rows in the order of `arms`; requests in the order in which they first occur."""
        place = {arm: i for i, arm in enumerate(self.arms)}
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.request.id, []).append(row)
        return [sorted(rows, key=lambda row: place[row.arm]) for rows in found.values()]


@dataclass(frozen=True)
class Line:
    """One arm and metric. `difference` is None for the first arm and where no request is shared with it."""

    arm: str
    metric: str
    mean: float  # over all of the arm's rows
    n: int  # rows
    users: int
    difference: Interval | None  # this arm − the first arm, on the requests that both have


def summary(results: Results) -> list[Line]:
    """Means and differences, metric by metric and within it arm by arm; arms without a metric are left out.

    The interval's groups are users; a request of several users counts for the first of them.
    """
    arms = results.arms
    lines = []
    for metric in results.metrics:
        scored = {arm: _scored(results, arm, metric) for arm in arms}
        for arm, rows in scored.items():
            if rows:
                against = _difference(rows, scored[arms[0]], metric, results.seed) if arm != arms[0] else None
                mean = fmean(row.scores[metric] for row in rows.values())
                users = len({row.request.users[0] for row in rows.values()})
                lines.append(Line(arm, metric, mean, len(rows), users, against))
    return lines


def leading(results: Results, limit: int | None = None) -> list[list[Row]]:
    """The first request of each user or group, those with the most arms first: what to show of many."""
    first: dict[tuple[str, ...], list[Row]] = {}
    for rows in results.by_request():
        first.setdefault(rows[0].request.users, rows)
    return sorted(first.values(), key=lambda rows: -len(rows))[:limit]


def _scored(results: Results, arm: str, metric: str) -> dict[str, Row]:
    """The arm's rows that have the metric, by request id."""
    return {row.request.id: row for row in results.rows if row.arm == arm and metric in row.scores}


def _difference(rows: dict[str, Row], base: dict[str, Row], metric: str, seed: int) -> Interval | None:
    shared = [request for request in rows if request in base]
    if not shared:
        return None
    differences = [rows[request].scores[metric] - base[request].scores[metric] for request in shared]
    return paired_interval(differences, [rows[request].request.users[0] for request in shared], seed=seed)
