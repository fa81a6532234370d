"""One evaluation from end to end: every arm writes every example, and each draft is scored and kept at once.

Work goes example by example in windows that hold all arms, so that the model sees full batches, drafts that
two arms have in common are written once, and what is finished is on disk. A row is known by the hash of all
that decides it (prompt, model, sampling, real text): what a folder has is never computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from penname.errors import BadInputError
from penname.evaluate.arms import IN_CONTEXT, Cast
from penname.evaluate.benchmarks import Loaded
from penname.evaluate.folder import RunFolder, open_run, read_run
from penname.evaluate.metrics import meteor
from penname.evaluate.results import Arm, Results, Row
from penname.evaluate.scoring import Scorer, wanted
from penname.evaluate.work import Clock, Item, Work, draftless, lacking
from penname.lm.base import LanguageModel, Sampling
from penname.methods.pen import Pen
from penname.methods.stages import TRAINED, run_folder, stages
from penname.methods.stepback import History, profile_histories
from penname.records import Draft, Request, digest, prompt_values
from penname.retrieve import retriever
from penname.retrieve.base import Embedder, Retriever
from penname.store import Store
from penname.tasks import PromptTexts, Task
from penname.tasks import task as find_task
from penname.writer import Material, Writer

if TYPE_CHECKING:
    from penname.methods.pit.improve import Improver
    from penname.methods.prlhf.method import Personal
    from penname.methods.prlhf.rerank import Reward
    from penname.methods.restpg.method import Reasoning

WINDOW = 128  # drafts worked on together: full batches, and what a kill can lose


@dataclass(frozen=True)
class Settings:
    """What all rows of a run are made with."""

    k: int = 3  # documents of each author in a prompt
    temperature: float = 0.7
    max_tokens: int | None = None  # of a draft; None: the task's own limit
    seed: int = 0
    metrics: tuple[str, ...] = ()  # those that are computed; () for all that the task has


def evaluate(
    loaded: Loaded,
    store: Store,
    model: LanguageModel,
    arms: Sequence[Arm],
    folder: Path,
    *,
    settings: Settings = Settings(),
    embedder: Embedder,
    judge: LanguageModel | None = None,
    texts: PromptTexts | None = None,
    remarks: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> Results:
    """Write and score every example of `loaded` in every arm; rows go to `folder` as they are made.

    A folder that holds rows already is gone on with: what is there is kept, whatever arms it was made for.

    Args:
        remarks: what a reader of the figures must know, in sentences.
        progress: called with (stage, done, total) as the work goes on.
        note: called with a sentence where something is worth saying.

    Raises:
        BadInputError: the folder was made with other settings, or no arm can write any example.
        As `Writer.prompts` does.
    """
    texts = texts or PromptTexts.load()
    run = _Run(loaded, store, model, arms, settings, embedder, judge, texts, remarks, progress, note)
    with open_run(folder, run.fixed()) as opened:
        return run.go(opened)


class _Run:
    """The state of one evaluation."""

    def __init__(
        self,
        loaded: Loaded,
        store: Store,
        model: LanguageModel,
        arms: Sequence[Arm],
        settings: Settings,
        embedder: Embedder,
        judge: LanguageModel | None,
        texts: PromptTexts,
        remarks: Sequence[str],
        progress: Callable[[str, int, int], None],
        note: Callable[[str], None],
    ) -> None:
        self.loaded, self.store, self.model, self.arms = loaded, store, model, arms
        self.settings, self.embedder, self.judge, self.texts = settings, embedder, judge, texts
        self.progress, self.note = progress, note
        pool = loaded.pool or loaded.requests
        self.cast = Cast(store, pool, settings.k, settings.seed)
        self.scorer = Scorer(store, embedder, pool, self.cast, [*loaded.remarks, *remarks])
        self.clock = Clock()
        self.work = Work(self.scorer, texts, self.clock, self._remark)
        self.searches: dict[str, Retriever] = {}
        self.personal: dict[
            Path | None, Personal
        ] = {}  # by the run's folder: arms of one run share its model
        self.rewards: dict[Path | None, Reward] = {}
        self.reasonings: dict[Path | None, Reasoning] = {}
        self.improvers: dict[Path | None, Improver] = {}
        self.writers = {method: self._writer(method) for method in dict.fromkeys(arm.method for arm in arms)}

    def fixed(self) -> dict[str, object]:
        """What every row of a folder must have in common."""
        judge = None
        if self.judge is not None:
            name = {"name": self.judge.name, "weights": self.judge.fingerprint}
            judge = {**name, "baseline": self.arms[0].name}
        return {
            "data": self.loaded.data,
            "model": self.model.name,
            "weights": self.model.fingerprint,
            "prompts": self.texts.fingerprint,
            "embedder": self.embedder.fingerprint,
            "k": self.settings.k,
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
            "seed": self.settings.seed,
            "judge": judge,
        }

    def go(self, folder: RunFolder) -> Results:
        """Do what is not done yet; the results of all arms asked for."""
        tasks = {one.task: find_task(one.task) for one in self.loaded.requests}
        self._check_metrics(tasks.values())
        asked = [
            (arm, example, *made)
            for example in _together(self.loaded.requests)
            for arm in self.arms
            if (made := self._asked(arm, example, tasks[example.task])) is not None
        ]
        empty = [arm.name for arm in self.arms if not any(one[0] is arm for one in asked)]
        for name in empty:
            self.note(f"{name}: there is no example that it can write")
        if len(empty) == len(self.arms):
            raise BadInputError("no arm can write any example: nobody has a history")
        folder.write(self.arms, self.scorer.remarks)
        self._say_unknown([(arm, request) for arm, _, request, _ in asked])
        self._profiles([(arm, request, material) for arm, _, request, material in asked])
        rows: list[Row] = []
        for start in _windows([example.id for _, example, _, _ in asked]):
            window = asked[start]
            rows += self._window(folder, window)
            self.progress("drafts", len(rows), len(asked))
        self._finish(folder)
        known = read_run(folder.path)  # what earlier calls had to say is true of their rows, which are kept
        judge = known["settings"]["judge"] or {}
        order = {arm.name: place for place, arm in enumerate(self.arms)}
        return Results(
            rows=sorted(rows, key=lambda row: order[row.arm]),
            arms=tuple(arm for arm in self.arms if arm.name not in empty),
            title=folder.path.resolve().name,
            model=self.model.name,
            data=self.loaded.data,
            seed=self.settings.seed,
            seconds=dict(folder.seconds),
            judge=judge.get("name", ""),
            remarks=tuple(known["remarks"]),
            groups=known["groups"],
        )

    def _asked(self, arm: Arm, example: Request, task: Task) -> tuple[Request, Material] | None:
        return self.cast.asked(arm, example, task, self.writers[arm.method].knows)

    def _say_unknown(self, asked: Sequence[tuple[Arm, Request]]) -> None:
        """Tell for how many users a trained run has nothing of their own."""
        for method, writer in self.writers.items():
            users = {user for arm, request in asked if arm.method == method for user in request.users}
            unknown = sum(not writer.knows(user) for user in users)
            if unknown:
                self._remark(
                    f"{method}: its trained run does not know {unknown} of {len(users)} users; the generic "
                    "user stands in for them"
                )

    def _check_metrics(self, tasks: Collection[Task]) -> None:
        """Refuse metrics that none of the tasks has, or that cannot be had here, before anything is made."""
        if "meteor" in self.settings.metrics:
            meteor([])
        found = {name for one in tasks for name in wanted(one, self.settings.metrics, self.judge is not None)}
        for name in self.settings.metrics:
            if name not in found:
                names = ", ".join(one.name for one in tasks)
                raise BadInputError(f"the metric {name!r} is not measured of {names}")

    def _profiles(self, asked: Sequence[tuple[Arm, Request, Material]]) -> None:
        """Every profile that a prompt will hold, made together."""
        histories = dict.fromkeys(
            History(user, request.before, request.exclude)
            for arm, request, material in asked
            if "step-back" in self.writers[arm.method].stages
            for user in material.profiles_of or request.users
        )
        if histories:
            with self.clock.time("profile"):
                profile_histories(
                    self.store,
                    self.model,
                    list(histories),
                    texts=self.texts,
                    note=self.note,
                    progress=lambda done, total: self.progress("profiles", done, total),
                )

    def _window(
        self, folder: RunFolder, asked: Sequence[tuple[Arm, Request, Request, Material]]
    ) -> list[Row]:
        with self.clock.time("prepare"):
            items = self._items(folder, asked)
            fresh = list({item.key: item for item in items if lacking(item) or draftless(item)}.values())
        if fresh:
            alike: dict[tuple[Sampling, int], list[Item]] = {}
            for item in fresh:
                alike.setdefault((item.sampling, id(item.pen.model)), []).append(item)
            for some in alike.values():
                # One after the other: what a model has just written after is soonest read again.
                self.work.write([item for item in some if draftless(item)])
                self.work.score([item for item in some if "bits_per_byte" in lacking(item)])
            self.work.measure(fresh)
        done = {item.key: item.row for item in fresh}
        rows = [replace(done.get(item.key, item.row), arm=item.arm.name) for item in items]
        if self.judge is not None:
            rows = self.work.judged(self.judge, self.arms[0].name, items, rows)
        new = [
            row
            for row in rows
            if (row.arm, row.key) not in folder.placed or row != replace(folder.rows[row.key], arm=row.arm)
        ]
        if new:
            folder.append(new)
            self.clock.move_to(folder.seconds)
            folder.write(self.arms, self.scorer.remarks)
        return rows

    def _items(
        self, folder: RunFolder, asked: Sequence[tuple[Arm, Request, Request, Material]]
    ) -> list[Item]:
        """The window's items in its order, each with its prompt and the row that the folder has of it."""
        by_arm: dict[Arm, list[int]] = {}
        for place, (arm, *_) in enumerate(asked):
            by_arm.setdefault(arm, []).append(place)
        found: dict[int, Item] = {}
        for arm, places in by_arm.items():
            writer = self.writers[arm.method]
            drafts = writer.prompts([asked[i][2] for i in places], [asked[i][3] for i in places])
            for place, draft in zip(places, drafts, strict=True):
                example = asked[place][1]
                task = find_task(example.task)
                sampling = writer.sampling(task)
                pen = writer.pen(asked[place][2], asked[place][3])
                key = _key(example, draft, sampling, pen)
                row = folder.rows.get(key) or self._blank(key, arm, example, draft)
                metrics = wanted(task, self.settings.metrics, self.judge is not None)
                found[place] = Item(arm, example, task, pen, draft, sampling, key, metrics, row)
        return [found[place] for place in range(len(asked))]

    def _writer(self, method: str) -> Writer:
        method = "none" if method == IN_CONTEXT else method
        found = stages(method)
        named = found.get("retrieval") or "lexical"
        if named not in self.searches:
            self.searches[named] = retriever(named, self.settings.seed, self.embedder)
        runs = {stage: run_folder(stage, name) for stage, name in found.items() if stage in TRAINED}
        writer = Writer(
            self.store,
            self.model,
            method,
            search=self.searches[named],
            k=self.settings.k,
            texts=self.texts,
            temperature=self.settings.temperature,
            max_tokens=self.settings.max_tokens,
            seed=self.settings.seed,
            reasoning=self.reasonings.get(runs.get("rest-pg")),
            personal=self.personal.get(runs.get("p-dpo")),
            reward=self.rewards.get(runs.get("p-rm")),
            improver=self.improvers.get(runs.get("pit")),
            note=self.note,
        )
        if writer.reasoning is not None:
            self.reasonings[runs["rest-pg"]] = writer.reasoning
        if writer.personal is not None:
            self.personal[runs["p-dpo"]] = writer.personal
        if writer.reward is not None:
            self.rewards[runs["p-rm"]] = writer.reward
        if writer.improver is not None:
            self.improvers[runs["pit"]] = writer.improver
        return writer

    def _blank(self, key: str, arm: Arm, example: Request, draft: Draft) -> Row:
        authors = self.cast.authors(example)
        return Row(
            key=key,
            arm=arm.name,
            task=example.task,
            example=example.id,
            users=authors or example.users,
            input=example.input,
            gold=example.gold or "",
            text="",
            answer=None,
            finish="unwritten",
            scores={},
            history=len(self.cast.history(authors[0], example)) if authors else 0,
            profiles=tuple(profile.text for profile in draft.profiles),
            documents=tuple(hit.document.id for hit in draft.documents),
            dropped=(*draft.notes, *draft.dropped),
        )

    def _remark(self, text: str) -> None:
        """Tell a sentence once, and keep it for whoever reads the figures."""
        if text not in self.scorer.remarks:
            self.scorer.remarks.append(text)
            self.note(text)

    def _finish(self, folder: RunFolder) -> None:
        self.clock.move_to(folder.seconds)
        folder.write(self.arms, self.scorer.remarks, self.scorer.groups())


def _key(example: Request, draft: Draft, sampling: Sampling, pen: Pen) -> str:
    """The hash of all that decides a row."""
    shown = prompt_values(draft.prompt)
    what = [example.task, example.id, example.gold, example.options]
    return digest([pen.model.fingerprint, shown, repr(sampling), what, *pen.trained])


def _together(requests: Sequence[Request]) -> list[Request]:
    """The requests with those of one text (the same id) side by side: their prompts often begin alike."""
    first: dict[str, int] = {}
    for place, request in enumerate(requests):
        first.setdefault(request.id, place)
    return sorted(requests, key=lambda one: first[one.id])


def _windows(ids: Sequence[str]) -> Iterator[slice]:
    """Runs of about WINDOW items that never part the arms of an example."""
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (end - start >= WINDOW and ids[end] != ids[end - 1]):
            yield slice(start, end)
            start = end
