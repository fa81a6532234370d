"""A new or changed user: that user's own part is fitted to a handful of preferences, and nothing else moves.

Of a run with soft prompts only o_u, or w_u with clusters, is trained (arXiv 2402.05133, section 4.3). With a
handful of preferences and thousands of numbers, o_u moves along the few directions in which the users of the
training differ, which a run keeps with its table; free, it fits the handful and tells nothing of the next
preference. Of the low-rank form w_u is computed. The shared weights, the generic user and all other rows stay
as they are, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from penname.errors import BadInputError, TrainedError, UnknownUserError
from penname.methods.prlhf.answers import Answers, Question
from penname.methods.prlhf.config import FEATURED
from penname.methods.prlhf.data import Prepared, fit, prepare, read_user
from penname.methods.prlhf.erase import forget
from penname.methods.prlhf.jobs import Example, PreferenceJob, judge_pairs, judge_ratings, with_reference
from penname.methods.prlhf.reward import head_of, load_run, reference
from penname.methods.prlhf.soft import SoftTable
from penname.methods.prlhf.train import TextReader
from penname.methods.prlhf.users import GENERIC
from penname.store import Store
from penname.train.folder import Trained, open_trained
from penname.train.kept import Asked
from penname.train.model import Trainable

STEPS = 12  # of Adam, at most: a handful of preferences is fitted in seconds
RATE = 0.5  # Adam's, of coordinates in which users differ by about 1
SURE = 0.2  # mean loss at which fitting ends: further steps would only make the user's row larger
LATEST = 32  # preferences of a user that are fitted to: the newest ones


@dataclass(frozen=True)
class Adapted:
    """What came of it."""

    preferences: int  # that the user's part was fitted to
    before: float  # share of them in the right order before
    after: float  # and after
    seconds: float


def adapt(folder: Path, user: str, store: Store, *, model: str | None = None) -> Adapted:
    """Fit the user's own part in the run in `folder` to the user's preferences in the store.

    It starts where it stands, or from the generic user. The latest 32 preferences count. The store notes the
    run, so that erasing a user from the one erases from the other.

    Raises:
        UnknownUserError: the store has no such user.
        BadInputError: the user has no preference that can be used, or the run has no users.
        TrainedError: no such run, or it cannot be used.
    """
    started = time.perf_counter()
    trained = open_trained(folder, "p-dpo", "p-rm")
    if trained.settings.get("users") in ("none", "pooled"):
        raise BadInputError(f"{folder} was trained without users: it has no vector to adapt")
    store.add_trained(trained.path, trained.method)  # so that an erase looks there
    wanted: Literal["pairs", "ratings"] = "ratings" if trained.settings.get("loss") == "kto" else "pairs"
    prepared = prepare(read_user(store, user, about=bool(trained.settings.get("about"))), wanted=wanted)
    prepared = replace(prepared, pairs=prepared.pairs[-LATEST:], rated=prepared.rated[-LATEST:])
    if trained.settings["users"] in FEATURED:
        from penname.methods.prlhf.featured import adapt_featured

        before, after = adapt_featured(trained, user, prepared, model)
    else:
        before, after = _adapt_soft(trained, load_run(trained, model), user, prepared)
    try:
        store.user(user)
    except UnknownUserError:  # erased while the row was made
        forget(store, user)
        raise
    return Adapted(len(prepared), before, after, time.perf_counter() - started)


class _OneUser(torch.nn.Module):
    """A run's soft prompts with one user's part free to move. Numbers: 0 the user, `GENERIC` nobody."""

    def __init__(self, users: SoftTable, own: np.ndarray | None, device: torch.device) -> None:
        super().__init__()
        shared = {
            name: torch.from_numpy(np.array(one)).to(device) for name, one in users.table.shared.items()
        }
        self._shared = shared
        self._kind = users.kind
        # Nobody's offset is 0; nobody's weights of clusters are the generic ones.
        neutral = torch.zeros_like(shared["generic"]) if users.kind == "individual" else shared["generic"]
        self._start = neutral if own is None else torch.from_numpy(np.array(own)).to(device)
        # Along the directions in which users differ; of clusters, in their weights.
        free = len(shared["directions"]) if users.kind == "individual" else len(neutral)
        self.moved = torch.nn.Parameter(torch.zeros(free, device=device))

    @property
    def own(self) -> torch.Tensor:
        """The user's row as it stands."""
        if self._kind == "cluster":
            return self._start + self.moved
        return self._start + torch.einsum("k,ktd->td", self.moved, self._shared["directions"])

    def forward(self, users: Sequence[int]) -> torch.Tensor:
        """(users, T_u, width)."""
        if self._kind == "individual":
            soft = {0: self._shared["generic"] + self.own, GENERIC: self._shared["generic"]}
        else:
            weights = {0: self.own, GENERIC: self._shared["generic"]}
            soft = {
                user: torch.einsum("k,ktd->td", logits.softmax(-1), self._shared["clusters"])
                for user, logits in weights.items()
            }
        return torch.stack([soft[user] for user in users])


def _adapt_soft(trained: Trained, model: Trainable, user: str, prepared: Prepared) -> tuple[float, float]:
    """The shares of preferences in the right order before and after; the table takes the new row."""
    users = SoftTable.open(trained, model.reader.width)
    if users is None:
        raise TrainedError(f"{trained.path} has no table of users")
    settings = trained.settings
    reader = TextReader(model, settings.get("task"))
    limit = min(int(settings["max_tokens"]), model.context) - int(settings["user_tokens"])
    prepared = fit(prepared, reader.lengths, limit)
    examples = _with_reference(reader.examples(prepared.items, {user: 0}), trained, model)
    one = _OneUser(users, users.own(user), model.reader.device)
    head = head_of(trained, model)
    beta = float(settings["beta"]) if trained.method == "p-dpo" else 1.0
    loss = settings["loss"]
    judge = judge_ratings(beta) if loss == "kto" else judge_pairs(beta, loss)
    # α = 1: the generic user does not move, so nothing is asked of it.
    job = PreferenceJob(
        Answers(model.reader, one, head), judge, examples, examples, alpha=1.0, portion=settings["portion"]
    )
    before, after = _fit(job, one)
    users.table.put(user, one.own.detach().float().cpu().numpy(), len(examples))
    return before, after


def _fit(job: PreferenceJob, one: _OneUser) -> tuple[float, float]:
    """The most likely place of the user, where a normal prior holds it near its start."""
    optimizer = torch.optim.Adam(one.parameters(), lr=RATE)
    before = None
    for _ in range(STEPS):
        figures = {"loss": 0.0, "accuracy": 0.0}
        for portion in job.backward(range(job.size)):
            figures = {name: value + portion[name] for name, value in figures.items()}
        before = figures["accuracy"] if before is None else before
        if figures["loss"] < SURE and figures["accuracy"] == 1:
            return before, figures["accuracy"]
        prior = one.moved.square().sum() / (2 * job.size)
        prior.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return before or 0.0, job.evaluate()["accuracy"]


def _with_reference(examples: Sequence[Example], trained: Trained, model: Trainable) -> list[Example]:
    """The examples with the frozen reference's log-probabilities, which a reward model has no use for."""
    if trained.method == "p-rm":
        return list(examples)
    portion = int(trained.settings["portion"])

    def ask(asked: Sequence[Asked]) -> list[float]:
        questions = [Question(GENERIC, prompt, answer) for prompt, answer in asked]
        with reference(model):
            return Answers(model.reader).all(questions, portion)

    return with_reference(examples, ask)
