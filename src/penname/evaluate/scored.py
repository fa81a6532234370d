"""The rows of one task of an evaluation, by arm and example, and their scores as the statistics take them."""

from __future__ import annotations

from typing import Any

from penname.errors import UnknownTaskError
from penname.evaluate.answers import class_pairs
from penname.evaluate.metrics import METRICS
from penname.evaluate.results import Results, Row
from penname.evaluate.statistics import Comparison, aggregate, compare
from penname.tasks import Task
from penname.tasks import task as find_task


class Scored:
    """One task's rows, by arm and example."""

    def __init__(self, results: Results, task: str) -> None:
        self.rows: dict[str, dict[str, Row]] = {}
        self.user: dict[str, str] = {}
        golds: dict[str, None] = {}
        self.task = _known(task)
        for row in results.rows:
            if row.task == task:
                self.rows.setdefault(row.arm, {})[row.example] = row
                self.user[row.example] = row.users[0]
                golds[self._gold(row)] = None
        choices = self.task.choices if self.task else ()
        self._labels = choices or tuple(sorted(golds))
        self.classes = len(choices) or None  # macro-F1 is over all of a task's labels, seen or not

    def of(self, arm: str, metric: str) -> dict[str, Any]:
        """The arm's scores by example: numbers, or for macro-F1 (right class, answered class)."""
        rows = self.rows.get(arm, {})
        if METRICS[metric].aggregate == "macro_f1":
            answers, golds = [row.answer for row in rows.values()], [self._gold(row) for row in rows.values()]
            return dict(zip(rows, class_pairs(answers, golds, self._labels), strict=True))
        return {example: row.scores[metric] for example, row in rows.items() if metric in row.scores}

    def compare(
        self, arm: str, other: str, metric: str, seed: int, only: set[str] | None = None, n: int = 10_000
    ) -> Comparison | None:
        """`arm` − `other` on the examples that both have, of `only` if given; None where they share none."""
        ours, theirs = self.of(arm, metric), self.of(other, metric)
        shared = [example for example in ours if example in theirs and (only is None or example in only)]
        if not shared:
            return None
        return compare(
            [ours[example] for example in shared],
            [theirs[example] for example in shared],
            [self.user[example] for example in shared],
            aggregate=METRICS[metric].aggregate,
            n=n,
            seed=seed,
            classes=self.classes,
        )

    def aggregate(self, metric: str, values: dict[str, Any]) -> float:
        """One number of scores by example."""
        return aggregate(list(values.values()), METRICS[metric].aggregate, self.classes)

    def _gold(self, row: Row) -> str:
        """The real answer, read as the model's is."""
        label = self.task.parse(row.gold) if self.task and self.task.choices else None
        return label or row.gold.strip()


def _known(name: str) -> Task | None:
    """The task of that name; None for rows of a task that this version does not know."""
    try:
        return find_task(name)
    except UnknownTaskError:
        return None
