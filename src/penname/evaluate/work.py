"""What is done to an example's draft: it is written, scored by the model, measured, judged.

Each step takes all items of a window that need it, so that models see full batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from penname.evaluate.judges import Case, Duel, anchored, pairwise
from penname.evaluate.metrics import bits_per_byte
from penname.evaluate.results import Arm, Row
from penname.evaluate.scoring import JUDGED, UNWRITTEN, Scorer
from penname.lm.base import LanguageModel, Sampling, Score
from penname.methods.pen import Pen, written
from penname.records import Draft, Request
from penname.tasks import PromptTexts, Task, continuation


@dataclass
class Item:
    """One arm's turn at one example."""

    arm: Arm
    example: Request  # as it is held out
    task: Task
    pen: Pen
    draft: Draft  # with its prompt; the text comes later
    sampling: Sampling
    key: str
    metrics: tuple[str, ...]
    row: Row


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add what the block takes to the stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    def move_to(self, total: dict[str, float]) -> None:
        """Add all seconds to those of `total`, and begin at nothing again."""
        for stage, taken in self.seconds.items():
            total[stage] = total.get(stage, 0.0) + taken
        self.seconds = {}


@dataclass
class Work:
    """The steps, with what they share."""

    scorer: Scorer
    texts: PromptTexts
    clock: Clock
    remark: Callable[[str], None]  # takes what a reader of the figures must know

    def write(self, items: Sequence[Item]) -> None:
        """The drafts of items that have none; all are drawn in one way."""
        if not items:
            return
        with self.clock.time("write"):
            drafts = written([item.draft for item in items], [item.pen for item in items], items[0].sampling)
        for item, draft in zip(items, drafts, strict=True):
            item.row = replace(
                item.row,
                text=draft.text,
                reasoning=draft.reasoning,
                answer=item.task.parse(draft.text, item.example.options),
                finish=draft.finish,
                prompt_tokens=draft.prompt_tokens,
                tokens=draft.completion_tokens,
            )

    def score(self, items: Sequence[Item]) -> None:
        """How likely the real texts are; one model writes all the items.

        Where it reasons first, after what it reasoned: log p([z; y]) − log p(z), both after the prompt.
        """
        if not items:
            return
        golds = [item.example.gold or "" for item in items]
        with self.clock.time("score"):
            likely = self._likely(items, golds)
            if items[0].pen.format is not None:
                reasoned = self._likely(items, [""] * len(items))
                likely = [_beyond(both, first) for both, first in zip(likely, reasoned, strict=True)]
        for item, bits in zip(items, bits_per_byte(likely, golds), strict=True):
            item.row = replace(item.row, scores={**item.row.scores, "bits_per_byte": bits})

    def _likely(self, items: Sequence[Item], texts: Sequence[str]) -> list[Score]:
        """log p of the texts after the items' prompts, each with what was reasoned before it."""
        model = items[0].pen.model
        said = [
            text if item.pen.format is None else item.pen.format.join(item.row.reasoning, text)
            for item, text in zip(items, texts, strict=True)
        ]
        return model.score(
            [item.draft.prompt for item in items],
            [continuation(text, model.shape) for text in said],
            [item.pen.prefix for item in items],
        )

    def measure(self, items: Sequence[Item]) -> None:
        """The scores of drafts that a row lacks."""
        near = [item for item in items if item.row.finish != "unwritten" and "similarity" in lacking(item)]
        with self.clock.time("embed"):
            found = self.scorer.similarities([(item.example, item.row.text) for item in near])
        _add(near, found)
        by_task: dict[str, list[Item]] = {}
        for item in items:
            if item.row.finish != "unwritten":
                by_task.setdefault(item.task.name, []).append(item)
        with self.clock.time("measure"):
            for some in by_task.values():
                drafts = [(item.example, item.row.text) for item in some]
                _add(some, self.scorer.texts(some[0].task, drafts, [lacking(item) for item in some]))

    def judged(
        self, judge: LanguageModel, baseline: str, items: Sequence[Item], rows: Sequence[Row]
    ) -> list[Row]:
        """The rows with the judge's scores: of each draft alone, and against the baseline's."""
        base = {(row.task, row.example): row for row in rows if row.arm == baseline}
        alone: dict[str, Case] = {}
        duels: dict[str, Duel] = {}
        for item, row in zip(items, rows, strict=True):
            if row.finish == "unwritten":
                continue
            request = f"{item.task.instruction}\n{row.input}"
            other = base.get((row.task, row.example))
            if "judge" in item.metrics and "judge" not in row.scores:
                alone[row.key] = Case(request, row.gold, row.text)
            if "win" in item.metrics and "win" not in row.scores and other and other.finish != "unwritten":
                duels[row.key] = Duel(request, row.gold, row.text, other.text)
        with self.clock.time("judge"):
            marks = dict(
                zip(alone, anchored(judge, list(alone.values()), self.texts, self.remark), strict=True)
            )
            verdicts = dict(
                zip(duels, pairwise(judge, list(duels.values()), self.texts, self.remark), strict=True)
            )
        found = []
        for row in rows:
            scores = dict(row.scores)
            if row.key in marks:
                scores["judge"] = marks[row.key]
            if row.key in verdicts:
                scores["win"] = verdicts[row.key].win
                scores["flips"] = float(verdicts[row.key].flipped)
            found.append(replace(row, scores=scores))
        return found


def _beyond(both: Score, first: Score) -> Score:
    """What the rest of a text scores, from the scores of all of it and of its beginning."""
    return Score(both.total - first.total, both.tokens - first.tokens, both.per_token[first.tokens :])


def _add(items: Sequence[Item], scores: Sequence[dict[str, float]]) -> None:
    """Put scores into the items' rows; those that are there stay."""
    for item, found in zip(items, scores, strict=True):
        item.row = replace(item.row, scores={**found, **item.row.scores})


def lacking(item: Item) -> tuple[str, ...]:
    """The scores that the item's row should have and has not; those of a judge come later."""
    return tuple(n for n in item.metrics if n not in item.row.scores and n not in (*JUDGED, "macro_f1"))


def draftless(item: Item) -> bool:
    """Whether one of the item's metrics needs a draft, or what is reasoned before, and there is none yet."""
    needs = bool(set(item.metrics) - set(UNWRITTEN)) or item.pen.format is not None
    return needs and item.row.finish == "unwritten"
