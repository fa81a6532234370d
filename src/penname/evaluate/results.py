"""What an evaluation found: one row for each arm and example, and what the rows were made with.

An arm is one way of writing (a method, for one author or for all, perhaps under a control). The first arm is
the baseline that the others are compared with, on the examples that both have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from penname.errors import BadInputError, UnknownNameError
from penname.evaluate.metrics import METRICS


@dataclass(frozen=True)
class Arm:
    """One way of writing.

    `users` is "one" (the first author with a history) or "all". A control has its name in `control`, such as
    "swap-user", and in `of` the name of the arm that it is the control of.
    """

    name: str  # unique in a run: "step-back · all · swap-user"
    method: str  # stages joined by +, as `penname.writer` has them, or "in-context"
    users: str = "one"
    control: str = ""
    of: str = ""


@dataclass(frozen=True)
class Row:
    """One arm's draft for one example, with its scores: a line of rows.jsonl.

    Raises:
        BadInputError: no real text, or a score is nan or infinite.
        UnknownNameError: a score is not in `METRICS`.
    """

    key: str  # hash of all that decides the row: what was asked of which model, with which settings
    arm: str
    task: str
    example: str  # the request's id, the same for all arms
    users: tuple[str, ...]  # who really wrote, in author order; the first stands for all in intervals
    input: str
    gold: str  # what they really wrote
    text: str  # the draft, as it was written
    answer: str | None  # what the task reads in the draft; None: nothing can be read
    finish: str  # "stop", "length", or "unwritten": no metric needed a draft yet
    scores: dict[str, float]  # by name in METRICS, of this example
    reasoning: str = ""  # what the model said to itself first; no part of the draft
    history: int = 0  # documents that the first author with any had for this request
    profiles: tuple[str, ...] = ()  # the texts of those in the prompt
    documents: tuple[str, ...] = ()  # the ids of those in the prompt
    dropped: tuple[str, ...] = ()  # what did not fit, in words
    prompt_tokens: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        if not self.gold.strip():
            raise BadInputError(f"example {self.example!r} has no real text to compare a draft with")
        for name, value in self.scores.items():
            if name not in METRICS:
                raise UnknownNameError(name, METRICS)
            if not math.isfinite(value):
                raise BadInputError(f"the {name} of arm {self.arm!r} on example {self.example!r} is {value}")

    def values(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self)


_TUPLES = ("users", "profiles", "documents", "dropped")


def row_of(values: dict[str, Any]) -> Row:
    """The row that `Row.values` gave.

    Raises:
        BadInputError: a field is missing, unknown or of another type.
    """
    try:
        return Row(**{**values, **{name: tuple(values[name]) for name in _TUPLES}})
    except (TypeError, KeyError, AttributeError) as error:
        raise BadInputError(f"no row of an evaluation: {error}") from None


@dataclass(frozen=True)
class Results:
    """Everything an evaluation found.

    Raises:
        BadInputError: no rows, a row of an arm that is not listed, or two rows of one arm for one example of
            a task.
    """

    rows: list[Row]
    arms: tuple[Arm, ...]  # the first is the baseline
    title: str
    model: str
    data: str  # the data set, its version and the split: "proposals 3f2a91bc1d20, test split"
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    judge: str = ""  # the model that judged, if one did
    remarks: tuple[str, ...] = ()  # what a reader must know: a judge that had also given rewards
    # What each user is like, "like most" or "unlike most": the majority is the larger group.
    groups: Mapping[str, str] = field(default_factory=dict)
    # What `tables.summary` made of them, which keeps it here.
    tables: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.rows:
            raise BadInputError("there are no drafts to report on")
        names = {arm.name for arm in self.arms}
        seen = set()
        for row in self.rows:
            if row.arm not in names:
                raise BadInputError(f"a row is of the arm {row.arm!r}, which is not among {sorted(names)}")
            place = (row.arm, row.task, row.example)
            if place in seen:
                raise BadInputError(f"arm {row.arm!r} has two drafts for example {row.example!r}")
            seen.add(place)

    @property
    def tasks(self) -> list[str]:
        """In the order in which they first occur."""
        return list(dict.fromkeys(row.task for row in self.rows))

    def metrics(self, task: str) -> list[str]:
        """The scores that any row of the task has, in the order of `METRICS`."""
        found = {name for row in self.rows if row.task == task for name in row.scores}
        return [name for name in METRICS if name in found]

    def by_example(self, task: str) -> list[list[Row]]:
        """Each example's rows in the order of `arms`; examples in the order in which they first occur."""
        place = {arm.name: number for number, arm in enumerate(self.arms)}
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.task == task:
                found.setdefault(row.example, []).append(row)
        return [sorted(rows, key=lambda row: place[row.arm]) for rows in found.values()]
