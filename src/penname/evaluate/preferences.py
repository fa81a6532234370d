"""Held-out preferences put in order: which way of ordering agrees with each user, and with how many users.

    held = read("held-out.jsonl", history="train.jsonl")
    arms = plan(["none", "p-dpo:run", "p-rm:run2"], ["swap-vector"])
    results = evaluate(held, "model", arms, Path("out"))

Every pair of every user is a row, scored 1 where the answer that the user preferred comes first, 0.5 where
neither does, and 0 otherwise. Rows, tables, tests and the report are those of all evaluations.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from penname.errors import BadInputError, UnknownControlError, UnknownMethodError
from penname.evaluate.folder import RunFolder, open_run, read_run
from penname.evaluate.held import HeldOut, group_names, words
from penname.evaluate.orders import (
    Asked,
    ByModel,
    ByReward,
    Form,
    InContext,
    OnePerUser,
    Order,
    Remembering,
    base_model,
    read_index,
)
from penname.evaluate.results import Arm, Results, Row
from penname.evaluate.statistics import compare, per_user, worst_decile
from penname.evaluate.work import Clock
from penname.lm.config import ModelConfig
from penname.paths import trained_dir
from penname.tasks import PromptTexts
from penname.train.folder import open_trained

NAME = "preferences"
"""Of the benchmark, and of its one task."""

METHODS = {
    "none": "the base model's mean log-probability per token of each answer",
    "none:total": "the base model's log-probability of each whole answer",
    "preferences-in-context": "the same as none, after some of the user's own known preferences",
    "preferences-in-context:random": "the same, with these drawn by lot",
    "p-dpo": "the implicit reward of a run of P-DPO: p-dpo:DIR",
    "p-rm": "the reward of a run of P-RM: p-rm:DIR",
    "one-per-user": "a run for each user: one-per-user:DIR, with runs.json in it",
}
CONTROLS = {
    "swap-vector": "another user's trained vector (or run) in the user's place",
    "swap-user": "another user's known preferences in the user's place",
}

WINDOW = 128  # pairs worked on together: full batches, and what a kill can lose


@dataclass(frozen=True)
class Settings:
    """What all rows of a run are made with."""

    k: int = 3  # known preferences of the user in a prompt, at most
    seed: int = 0  # of lots and intervals


@dataclass(frozen=True)
class Share:
    """How many pairs an arm puts right: of all users, or of a group of them."""

    arm: str
    part: str  # "" for all
    right: float  # share of the pairs
    low: float  # of its 95 % interval, bootstrap over users; nan with one user
    high: float
    by_user: float  # mean of the users' own shares
    worst: float  # mean of the worst tenth of these
    pairs: int
    users: int


def plan(methods: Sequence[str], controls: Sequence[str] = ()) -> tuple[Arm, ...]:
    """The arms of a run: the first method is the baseline; each arm's controls follow it.

    Raises:
        UnknownMethodError, UnknownControlError: a name that is not there.
        BadInputError: no method, `one-per-user` without a folder, or a control that nothing is subject to.
        TrainedError: a result of training that cannot be used.
    """
    if not methods:
        raise BadInputError("no method to evaluate: name one with --method")
    for control in controls:
        if control not in CONTROLS:
            raise UnknownControlError(control, CONTROLS)
    arms: list[Arm] = []
    for method in dict.fromkeys(methods):
        arms.append(Arm(method, method))
        subject = _subject_to(method)
        arms += [
            Arm(f"{method} · {control}", method, control=control, of=method)
            for control in dict.fromkeys(controls)
            if control == subject
        ]
    for control in controls:
        if not any(arm.control == control for arm in arms):
            raise BadInputError(
                f"the control {control!r} changes nothing here: no method of this run uses "
                + ("users' vectors" if control == "swap-vector" else "users' known preferences")
            )
    return tuple(arms)


def _subject_to(method: str) -> str:
    """The control that takes the user away from a method; "" where nothing of the user is in it."""
    kind, path = _parsed(method)
    if kind == "one-per-user":
        read_index(path)
        return "swap-vector"
    if kind in ("p-dpo", "p-rm"):
        return "swap-vector" if _has_users(path, kind) else ""
    return "swap-user" if kind.startswith("preferences-in-context") else ""


def _has_users(path: Path, kind: str) -> bool:
    return open_trained(path, kind).settings.get("users") not in ("none", "pooled")


def _parsed(method: str) -> tuple[str, Path]:
    """(name in METHODS, folder where it has one).

    Raises:
        UnknownMethodError: no such method.
        BadInputError: one-per-user without a folder.
    """
    kind, _, rest = method.partition(":")
    if kind in ("p-dpo", "p-rm"):
        return kind, Path(rest).expanduser() if rest else trained_dir(kind)
    if kind == "one-per-user":
        if not rest:
            raise BadInputError("one-per-user needs the folder of the runs: one-per-user:DIR")
        return kind, Path(rest).expanduser()
    if method not in METHODS:
        raise UnknownMethodError(method, METHODS)
    return method, Path()


def evaluate(
    held: HeldOut,
    base: ModelConfig,
    arms: Sequence[Arm],
    folder: Path,
    *,
    settings: Settings = Settings(),
    texts: PromptTexts | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> Results:
    """Put every pair in order in every arm; rows go to `folder` as they are made.

    A folder that holds rows already is gone on with: what is there is kept, and only what is new computed.

    Args:
        base: the base model, which transformers runs; the reference of the runs of P-DPO.
        texts: of prompts, where `held` has a task or text about users.
        progress: called with (arm, done, total) as the work goes on.
        note: called with a sentence where something is worth saying.

    Raises:
        BadInputError: the folder was made with other settings, a run was trained with prompts in another
            task's form, or no arm can order any pair.
        TrainedError: a result of training cannot be used, or is of another base model.
        PromptTooLongError: a pair does not fit into a model's context.
    """
    run = _Run(held, base, arms, settings, texts or PromptTexts.load(), progress, note)
    with open_run(folder, run.fixed()) as opened:
        return run.go(opened)


class _Run:
    """The state of one evaluation."""

    def __init__(
        self,
        held: HeldOut,
        base: ModelConfig,
        arms: Sequence[Arm],
        settings: Settings,
        texts: PromptTexts,
        progress: Callable[[str, int, int], None],
        note: Callable[[str], None],
    ) -> None:
        self.held, self.base, self.arms, self.settings = held, base, arms, settings
        self.progress, self.note = progress, note
        self.form = Form(held.task, texts)
        self.scores = Remembering(base_model(base))
        self.remarks = list(held.remarks)
        self.clock = Clock()

    def fixed(self) -> dict[str, object]:
        """What every row of a folder must have in common."""
        return {
            "data": f"{NAME} {self.held.version}",
            "history": self.held.history_version,
            "model": self.base.model,
            "weights": self.scores.model.fingerprint,
            "task": self.held.task,
            "k": self.settings.k,
            "seed": self.settings.seed,
            "judge": None,
        }

    def go(self, folder: RunFolder) -> Results:
        """Do what is not done yet; the results of all arms asked for."""
        groups = group_names(self.held)
        folder.write(self.arms, self.remarks, groups)
        rows: list[Row] = []
        found: list[Arm] = []
        order: Order | None = None
        last = ""
        for arm in self.arms:
            if arm.method != last:
                order = None  # the one before goes before the next comes: each may hold a model
                order, last = self._order(arm.method), arm.method
            assert order is not None
            if mine := self._arm(folder, arm, order):
                found.append(arm)
                rows += mine
        if not rows:
            raise BadInputError(f"no arm can order any pair: {'; '.join(self.remarks)}")
        folder.write(self.arms, self.remarks, groups)
        known = read_run(folder.path)
        return Results(
            rows=rows,
            arms=tuple(found),
            title=folder.path.resolve().name,
            model=self.base.model,
            data=f"{NAME} {self.held.version}",
            seed=self.settings.seed,
            seconds=dict(folder.seconds),
            remarks=tuple(known["remarks"]),
            groups=known["groups"],
        )

    def _order(self, method: str) -> Order:
        """What orders the pairs of an arm."""
        kind, path = _parsed(method)
        if kind.startswith("preferences-in-context"):
            if not self.held.history:
                raise BadInputError(f"{method} needs preferences that are known: name them with --history")
            by_lot = kind.endswith(":random")
            known, k, seed = self.held.history, self.settings.k, self.settings.seed
            return InContext(self.scores, self.form, known, k, seed, by_lot=by_lot)
        if kind in ("none", "none:total"):
            return ByModel(self.scores, self.form, total=kind == "none:total")
        order = OnePerUser(path, self._trained) if kind == "one-per-user" else self._trained(path, kind)
        strangers = sum(not order.knows(user) for user in self.held.users)
        if strangers and (kind == "one-per-user" or _has_users(path, kind)):
            self._remark(f"{method}: {strangers} of {len(self.held.users)} users are unknown to it")
        return order

    def _trained(self, path: Path, *kinds: str) -> Order:
        trained = open_trained(path, *(kinds or ("p-dpo", "p-rm")))
        task = trained.settings.get("task", self.held.task) or ""
        if task != self.held.task:
            learnt, asked = (f"--task {one}" if one else "no --task" for one in (task, self.held.task))
            raise BadInputError(f"{path} was trained with {learnt} and is asked with {asked}: say the same")
        from penname.methods.prlhf.reward import open_reward

        return ByReward(open_reward(trained.path, self.base))

    def _arm(self, folder: RunFolder, arm: Arm, order: Order) -> list[Row]:
        """The arm's rows; those that are not in the folder are made, window by window."""
        stands_in = _stand_ins(arm, self.held.users, order, self.settings.seed)
        rows: list[Row] = []
        for start in range(0, len(self.held.pairs), WINDOW):
            window = self.held.pairs[start : start + WINDOW]
            with self.clock.time("prepare"):
                asked = [
                    one
                    for pair in window
                    if (user := stands_in.get(pair.user, pair.user)) is not None
                    and (one := order.ask(pair, user)) is not None
                ]
                fresh = [one for one in asked if one.key not in folder.rows]
            with self.clock.time("score"):
                margins = order.margins(fresh) if fresh else []
                made = dict(zip((one.key for one in fresh), margins, strict=True))
            mine = [self._row(folder, arm, one, made) for one in asked]
            if new := [row for row in mine if (row.arm, row.key) not in folder.placed]:
                folder.append(new)
                self.clock.move_to(folder.seconds)
                folder.write(self.arms, self.remarks)
            rows += mine
            self.progress(arm.name, min(start + WINDOW, len(self.held.pairs)), len(self.held.pairs))
        if missing := len(self.held.pairs) - len(rows):
            self._remark(
                f"{arm.name}: {missing} of {len(self.held.pairs)} pairs are left out, as it has nothing of "
                "their users, or nothing that fits into the prompt"
            )
        return rows

    def _row(self, folder: RunFolder, arm: Arm, asked: Asked, made: Mapping[str, float]) -> Row:
        if asked.key not in made:
            return replace(folder.rows[asked.key], arm=arm.name)
        held, margin = asked.held, made[asked.key]
        first = held.chosen if margin > 0 else held.rejected
        preferred = 0.5 if margin == 0 else float(margin > 0)
        return Row(
            key=asked.key,
            arm=arm.name,
            task=NAME,
            example=held.id,
            users=(held.user,),
            input="\n\n".join(filter(None, (words(held.prompt), f"Not preferred: {held.rejected}"))),
            gold=held.chosen,
            text=first,
            answer=first,
            finish="stop",
            scores={"preferred": preferred, "margin": margin},
            history=len(self.held.history.get(held.user, ())),
            documents=asked.shown,
            dropped=asked.dropped,
        )

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)
            self.note(text)


def _stand_ins(arm: Arm, users: Sequence[str], order: Order, seed: int) -> dict[str, str | None]:
    """Under a control, somebody else whom the arm knows, for each user: one by lot. None: there is nobody."""
    if not arm.control:
        return {}
    known = [user for user in users if order.knows(user)]
    found: dict[str, str | None] = {}
    for user in users:
        others = [one for one in known if one != user]
        lot = random.Random(f"{seed} {arm.control} {user}")  # noqa: S311 - a lot, no secret
        found[user] = lot.choice(others) if others else None
    return found


def shares(results: Results) -> list[Share]:
    """What each arm puts right, over all users and then over each group of users, the largest first."""
    sizes = Counter(results.groups.values())
    parts = [("", None), *((f"users {name}", name) for name in sorted(sizes, key=lambda one: -sizes[one]))]
    found = []
    for part, group in parts:
        for arm in results.arms:
            rows = [
                row
                for row in results.rows
                if row.arm == arm.name and (group is None or results.groups.get(row.users[0]) == group)
            ]
            if rows:
                found.append(_share(arm.name, part, rows, results.seed))
    return found


def _share(arm: str, part: str, rows: Sequence[Row], seed: int) -> Share:
    right, users = [row.scores["preferred"] for row in rows], [row.users[0] for row in rows]
    spread = compare(right, [0.0] * len(right), users, seed=seed)  # against nothing: the share's own interval
    each = per_user(right, users)
    return Share(
        arm=arm,
        part=part,
        right=spread.mean,
        low=spread.low,
        high=spread.high,
        by_user=sum(each.values()) / len(each),
        worst=worst_decile(right, users),
        pairs=len(rows),
        users=len(each),
    )
