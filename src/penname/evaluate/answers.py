"""Scores of answers that are one of a few labels: right or wrong, near or far.

Each takes the answers as `Task.parse` read them (None: nothing could be read) and the right ones, in order.
The rules for what could not be read are those of LaMP's own evaluation (arXiv 2304.11406).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from penname.errors import BadInputError, UnknownMetricError
from penname.evaluate.metrics import METRICS


def accuracy(answers: Sequence[str | None], golds: Sequence[str]) -> list[float]:
    """1 where the answer is the right one, else 0; blanks around either do not count."""
    _check(answers, golds)
    return [float(a is not None and a.strip() == g.strip()) for a, g in zip(answers, golds, strict=True)]


def errors(answers: Sequence[str | None], golds: Sequence[str], choices: Sequence[str]) -> list[float]:
    """|answer − right number|: the `mae` of each example; its square is the `rmse`.

    What is no number counts as the farther from the right one of the lowest and the highest choice (LaMP-3:
    of 1 and 5). A number outside of the choices counts as it stands.

    Raises:
        BadInputError: a right answer or a choice is no number, or there are no choices.
    """
    _check(answers, golds)
    bounds = [_number(choice) for choice in choices]
    known = [bound for bound in bounds if bound is not None]
    if not known or len(known) < len(bounds):
        raise BadInputError(f"the choices {list(choices)!r} must be numbers, for errors to be measured")
    low, high = min(known), max(known)
    found = []
    for place, (answer, gold) in enumerate(zip(answers, golds, strict=True)):
        right = _number(gold)
        if right is None:
            raise BadInputError(f"the right answer of example {place}, {gold[:40]!r}, is no number")
        value = None if answer is None else _number(answer)
        found.append(max(abs(low - right), abs(high - right)) if value is None else abs(value - right))
    return found


def class_pairs(
    answers: Sequence[str | None], golds: Sequence[str], choices: Sequence[str]
) -> list[tuple[int, int]]:
    """(right class, answered class) as places in `choices`, for macro-F1; −1: no label of these.

    An answer of −1 is a miss for the right class and a false alarm for none, as in LaMP.

    Raises:
        BadInputError: there are no choices.
    """
    _check(answers, golds)
    if not choices:
        raise BadInputError("macro-F1 needs the task's labels: give its choices")
    place = {choice.strip(): number for number, choice in enumerate(choices)}
    return [
        (place.get(gold.strip(), -1), -1 if answer is None else place.get(answer.strip(), -1))
        for answer, gold in zip(answers, golds, strict=True)
    ]


def answer_scores(
    answers: Sequence[str | None], golds: Sequence[str], metrics: Sequence[str], choices: Sequence[str] = ()
) -> list[dict[str, float]]:
    """`accuracy`, `mae` and `rmse`, those of them that `metrics` names, a dict an example.

    `rmse` is the squared error, whose mean's root is the RMSE. `macro_f1` has no score of one example.

    Raises:
        BadInputError: as `errors`.
        UnknownMetricError: a metric is not in `METRICS`.
    """
    for name in metrics:
        if name not in METRICS:
            raise UnknownMetricError(name, METRICS)
    columns: dict[str, list[float]] = {}
    if "accuracy" in metrics:
        columns["accuracy"] = accuracy(answers, golds)
    if {"mae", "rmse"} & set(metrics):
        far = errors(answers, golds, choices)
        columns |= {"mae": far, "rmse": [value * value for value in far]}
    names = [name for name in columns if name in metrics]
    return [{name: columns[name][i] for name in names} for i in range(len(golds))]


def _check(answers: Sequence[str | None], golds: Sequence[str]) -> None:
    if len(answers) != len(golds):
        raise BadInputError(f"{len(answers)} answers to {len(golds)} questions: give one each, or None")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
