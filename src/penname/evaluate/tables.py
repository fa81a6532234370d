"""What the rows of an evaluation say: the numbers and verdicts behind the console, the page and the trackers.

A table is made for each task. Means are over all rows of an arm; differences are over the examples that both
arms have, so they need not be the differences of the means. An example of several users counts for the first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from penname.evaluate.groups import buckets, by_group
from penname.evaluate.metrics import METRICS
from penname.evaluate.results import Arm, Results, Row
from penname.evaluate.scored import Scored
from penname.evaluate.statistics import ENOUGH, Comparison, holm, per_user, worst_decile
from penname.tasks import Task

GAINS = "gains"
UNCONTROLLED = "gains (no control was run)"
IMPERSONAL = "gains, but so does the control: not personalisation"
UNCLEAR = "no clear difference"
WORSE = "worse"
FEW = "too few users"

_TAKES_THE_USER_AWAY = ("swap-user", "random-profile", "swap-vector")
"""Controls under which a gain is not personalisation. A shorter history or another order of the authors still
shows the model its own user: those are compared, and decide nothing."""

_ROUGHLY = 2_000  # resamples for a part of the examples: there are many parts, each with wide intervals


@dataclass(frozen=True)
class Cell:
    """One arm and metric, over all rows of the arm that have the score."""

    arm: str
    metric: str
    mean: float  # aggregated as the metric says: mean, root mean square or macro-F1
    n: int  # rows
    users: int
    worst: float | None  # mean over the worst tenth of users; None for macro-F1, which a user alone has not


@dataclass(frozen=True)
class Pair:
    """`arm` − `other` on one metric, over the examples that both have."""

    kind: Literal["baseline", "users", "control"]  # why the two are compared; users: all authors or one
    arm: str
    other: str
    metric: str
    found: Comparison
    p: float  # found.p after Holm's correction over all pairs of the task; nan where undefined


@dataclass(frozen=True)
class Slice:
    """One arm, no control, and one main metric on a part of the examples."""

    part: str  # "single authors", "history of 5–9", "users unlike most"
    arm: str
    metric: str
    mean: float
    n: int
    users: int
    against: Comparison | None  # the arm − the baseline, on the part; not corrected for the many parts


@dataclass(frozen=True)
class Counts:
    """What went wrong with an arm's drafts."""

    rows: int
    empty: int  # drafts of blanks
    unreadable: int  # drafts that are not empty, in which the task finds no answer
    cut: int  # drafts that ended at the token limit


@dataclass(frozen=True)
class Verdict:
    """What a difference to the baseline comes to: GAINS, UNCONTROLLED, IMPERSONAL, UNCLEAR, WORSE or FEW."""

    arm: str
    metric: str
    words: str


@dataclass(frozen=True)
class Table:
    """All that is said of one task."""

    task: str
    arms: tuple[Arm, ...]  # those that have rows of this task
    baseline: str
    metrics: list[str]
    main: list[str]  # the metrics that verdicts are given on: the task's official ones, and bits per byte
    examples: int
    users: int
    cells: dict[tuple[str, str], Cell]  # by (arm, metric)
    pairs: list[Pair]
    slices: list[Slice]
    counts: dict[str, Counts]  # by arm
    verdicts: list[Verdict]

    def against(self, arm: str, metric: str) -> Pair | None:
        """The arm's comparison with the baseline."""
        return next(self.pairs_of("baseline", arm, metric), None)

    def pairs_of(self, kind: str, arm: str | None = None, metric: str | None = None) -> Iterator[Pair]:
        """The pairs of a kind, of one arm and metric if they are given."""
        for pair in self.pairs:
            if pair.kind == kind and arm in (None, pair.arm) and metric in (None, pair.metric):
                yield pair

    def parts(self) -> list[tuple[str, list[Slice]]]:
        """Each part of the examples with its slices."""
        return [(part, list(found)) for part, found in groupby(self.slices, lambda each: each.part)]

    def verdicts_of(self, arm: str) -> dict[str, list[str]]:
        """Verdict → the metrics it is given on."""
        found: dict[str, list[str]] = {}
        for verdict in self.verdicts:
            if verdict.arm == arm:
                found.setdefault(verdict.words, []).append(verdict.metric)
        return found


@dataclass(frozen=True)
class UserMean:
    """One user's means in two arms, over the examples of that user that both have."""

    user: str
    arm: float
    other: float
    n: int


def summary(results: Results) -> list[Table]:
    """A table for each task, in the order of `Results.tasks`. Same results, same numbers.

    They are kept with the results, as making them takes a while and every face of a report asks for them.
    """
    if not results.tables:
        results.tables.extend(_table(results, task) for task in results.tasks)
    return list(results.tables)


def user_means(results: Results, task: str, arm: str, other: str, metric: str) -> list[UserMean]:
    """Each user's means in two arms; users in the order in which they first occur. Not for macro-F1."""
    scored = Scored(results, task)
    ours, theirs = scored.of(arm, metric), scored.of(other, metric)
    shared = [example for example in ours if example in theirs]
    if not shared:
        return []
    users = [scored.user[example] for example in shared]
    kind, number = METRICS[metric].aggregate, Counter(users)
    mean = per_user([ours[example] for example in shared], users, kind)
    base = per_user([theirs[example] for example in shared], users, kind)
    return [UserMean(user, mean[user], base[user], number[user]) for user in number]


def leading(results: Results, task: str, limit: int | None = None) -> list[list[Row]]:
    """The first example of each user or group, those with the most arms first: what to show of many."""
    first: dict[tuple[str, ...], list[Row]] = {}
    for rows in results.by_example(task):
        first.setdefault(rows[0].users, rows)
    return sorted(first.values(), key=lambda rows: -len(rows))[:limit]


def gain(metric: str, difference: float) -> float:
    """`difference` with the sign turned so that more is better; 0 where neither direction is."""
    return {"higher": difference, "lower": -difference, "neither": 0.0}[METRICS[metric].better]


def _table(results: Results, task: str) -> Table:
    scored = Scored(results, task)
    arms = tuple(arm for arm in results.arms if arm.name in scored.rows)
    metrics, main = _metrics(results, task, scored.task)
    pairs = _pairs(results, scored, arms, metrics)
    return Table(
        task=task,
        arms=arms,
        baseline=results.arms[0].name,
        metrics=metrics,
        main=main,
        examples=len(scored.user),
        users=len(set(scored.user.values())),
        cells=dict(_cells(scored, arms, metrics)),
        pairs=pairs,
        slices=list(_slices(results, scored, arms, main)),
        counts={arm.name: _counts(list(scored.rows[arm.name].values())) for arm in arms},
        verdicts=list(_verdicts(arms, main, pairs)),
    )


def _metrics(results: Results, task: str, known: Task | None) -> tuple[list[str], list[str]]:
    """(all that rows have or that answers allow, those that verdicts are given on), official order first."""
    official = known.metrics if known else ()
    found = set(results.metrics(task))
    if "accuracy" in found and "macro_f1" in official:
        found.add("macro_f1")
    metrics = [name for name in METRICS if name in found]
    main = [name for name in official if name in found]
    if not main:
        main = [name for name in metrics if METRICS[name].better != "neither"]
    if "bits_per_byte" in found and "bits_per_byte" not in main:
        main.append("bits_per_byte")
    return metrics, main


def _cells(
    scored: Scored, arms: Sequence[Arm], metrics: Sequence[str]
) -> Iterator[tuple[tuple[str, str], Cell]]:
    for arm in arms:
        for metric in metrics:
            if values := scored.of(arm.name, metric):
                users = [scored.user[example] for example in values]
                mean, worst = scored.aggregate(metric, values), _worst(metric, list(values.values()), users)
                yield (arm.name, metric), Cell(arm.name, metric, mean, len(values), len(set(users)), worst)


def _worst(metric: str, values: Sequence[float], users: Sequence[str]) -> float | None:
    better, kind = METRICS[metric].better, METRICS[metric].aggregate
    return None if kind == "macro_f1" or better == "neither" else worst_decile(values, users, better, kind)


def _pairs(results: Results, scored: Scored, arms: Sequence[Arm], metrics: Sequence[str]) -> list[Pair]:
    """Every comparison of the task, with Holm's correction over all of them."""
    pairs = [
        Pair(kind, arm, other, metric, found, math.nan)
        for kind, arm, other in _compared(results.arms[0], arms)
        for metric in metrics
        if metric != "margin"  # each way of ordering has a scale of its own
        and (found := scored.compare(arm, other, metric, results.seed))
    ]
    tested = [number for number, pair in enumerate(pairs) if pair.found.defined]
    for number, p in zip(tested, holm([pairs[number].found.p for number in tested]), strict=True):
        pairs[number] = replace(pairs[number], p=p)
    return pairs


def _compared(
    baseline: Arm, arms: Sequence[Arm]
) -> Iterator[tuple[Literal["baseline", "users", "control"], str, str]]:
    """(kind, arm, other): each arm with the baseline, all authors with one, a method with its controls."""
    for arm in arms:
        if arm != baseline:
            yield "baseline", arm.name, baseline.name
    real = [arm for arm in arms if not arm.control]
    for arm in real:
        for other in real:
            same = arm.method == other.method and (arm.users, other.users) == ("all", "one")
            if same and other != baseline:
                yield "users", arm.name, other.name
    names = {arm.name for arm in arms}
    for arm in arms:
        if arm.control and arm.of in names:
            yield "control", arm.of, arm.name


def _slices(results: Results, scored: Scored, arms: Sequence[Arm], main: Sequence[str]) -> Iterator[Slice]:
    baseline, arms = results.arms[0].name, [arm for arm in arms if not arm.control]
    for part, examples in _parts(scored, arms, results.groups):
        for metric in main:
            for arm in arms:
                values = {e: v for e, v in scored.of(arm.name, metric).items() if e in examples}
                if not values:
                    continue
                against = (
                    scored.compare(arm.name, baseline, metric, results.seed, examples, _ROUGHLY)
                    if arm.name != baseline
                    else None
                )
                users = len({scored.user[example] for example in values})
                mean = scored.aggregate(metric, values)
                yield Slice(part, arm.name, metric, mean, len(values), users, against)


def _parts(scored: Scored, arms: Sequence[Arm], labels: Mapping[str, str]) -> Iterator[tuple[str, set[str]]]:
    """Single authors and several apart, then by history, then by the users' groups (majority first).

    Nothing where all examples are of one part; an example whose user is in no group is in no such part.
    """
    users: dict[str, int] = {}
    history: dict[str, int] = {}
    for arm in arms:
        if not arm.control:  # a control may have had somebody else's history, or less of it
            for example, row in scored.rows[arm.name].items():
                users[example] = len(row.users)
                history[example] = max(history.get(example, 0), row.history)
    groups = {example for example, number in users.items() if number > 1}
    if groups and len(groups) < len(users):
        yield "single authors", set(users) - groups
        yield "several authors", groups
    by_history, names = buckets(list(history.values())), list(history)
    if len(by_history) > 1:
        for label, places in by_history:
            yield f"history of {label}", {names[place] for place in places}
    known = [example for example in users if scored.user[example] in labels]
    by_label = by_group([scored.user[example] for example in known], labels)
    if len(by_label) > 1:
        for label, places in by_label:
            yield f"users {label}", {known[place] for place in places}


def _counts(rows: Sequence[Row]) -> Counts:
    return Counts(
        rows=len(rows),
        empty=sum(not row.text.strip() for row in rows),
        unreadable=sum(row.answer is None and bool(row.text.strip()) for row in rows),
        cut=sum(row.finish == "length" for row in rows),
    )


def _verdicts(arms: Sequence[Arm], main: Sequence[str], pairs: Sequence[Pair]) -> Iterator[Verdict]:
    """A gain counts when its interval leaves out 0 and no control that takes the user away shows it."""
    of = {(pair.kind, pair.arm, pair.other, pair.metric): pair.found for pair in pairs}
    base = {(pair.arm, pair.metric): pair.found for pair in pairs if pair.kind == "baseline"}
    for arm in arms:
        controls = [c.name for c in arms if c.of == arm.name and c.control in _TAKES_THE_USER_AWAY]
        for metric in main:
            if METRICS[metric].better == "neither" or arm.control or (arm.name, metric) not in base:
                continue
            checks = [
                (base.get((name, metric)), of.get(("control", arm.name, name, metric))) for name in controls
            ]
            yield Verdict(arm.name, metric, _verdict(metric, base[arm.name, metric], checks))


def _verdict(
    metric: str,
    found: Comparison,
    checks: Sequence[tuple[Comparison | None, Comparison | None]],
) -> str:
    """`checks`: for each control (the control − the baseline, the arm − the control)."""

    def gains(compared: Comparison) -> bool:
        return compared.clear and gain(metric, compared.mean) > 0

    run = [(control, over) for control, over in checks if control and over]
    if found.groups < ENOUGH:
        return FEW
    if not found.clear:
        return UNCLEAR
    if not gains(found):
        return WORSE
    if not run:
        return UNCONTROLLED
    return GAINS if all(gains(over) or not gains(control) for control, over in run) else IMPERSONAL
