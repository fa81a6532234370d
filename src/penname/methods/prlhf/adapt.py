"""A new or changed user: that user's own part is fitted to a handful of preferences, and nothing else moves.

Of a run with soft prompts only o_u, or w_u with clusters, moves (arXiv 2402.05133, section 4.3). A handful of
preferences does not tell thousands of numbers: the row is looked for along the few directions in which the
users of the training differ, which a run keeps with its table, and a normal prior of their own spread holds
it near its start. Of the low-rank form w_u is computed. The shared weights, the generic user and all other
rows stay as they are, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from penname.errors import BadInputError, TrainedError, UnknownUserError
from penname.methods.erase import forget
from penname.methods.prlhf.answers import Answers, Question
from penname.methods.prlhf.config import FEATURED
from penname.methods.prlhf.jobs import Example, with_reference
from penname.methods.prlhf.reward import head_of, reference
from penname.methods.prlhf.soft import SoftTable
from penname.methods.prlhf.texts import TextReader
from penname.methods.prlhf.users import GENERIC, soft_prompts
from penname.store import Store
from penname.train.base import load_run
from penname.train.folder import Trained, open_trained
from penname.train.kept import Asked
from penname.train.model import Trainable
from penname.train.portions import portions
from penname.train.preferences.data import Prepared, fit, prepare, read_user

Floats = NDArray[np.float64]

PASSES = 5  # over the preferences, at most
ENOUGH = 0.05  # nats by which a pass after the second must promise to do better
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
    with noted(store, user, trained):
        prepared = newest(store, user, trained)
        before, after = _fitted(trained, user, prepared, model)
    return Adapted(len(prepared), before, after, time.perf_counter() - started)


def newest(store: Store, user: str, trained: Trained) -> Prepared:
    """The user's latest preferences, of the kind that the run learns from.

    Raises:
        UnknownUserError: the store has no such user.
        BadInputError: the user has no preference that can be used.
    """
    wanted: Literal["pairs", "ratings"] = "ratings" if trained.settings.get("loss") == "kto" else "pairs"
    prepared = prepare(read_user(store, user, about=bool(trained.settings.get("about"))), wanted=wanted)
    return replace(prepared, pairs=prepared.pairs[-LATEST:], rated=prepared.rated[-LATEST:])


@contextmanager
def noted(store: Store, user: str, trained: Trained) -> Iterator[None]:
    """While the user's part of a run is fitted: the store knows of the run, so that an erase looks there.

    Raises:
        UnknownUserError: the user was erased meanwhile; nothing of the user's is left in the run.
    """
    store.add_trained(trained.path, trained.method)
    yield
    try:
        store.user(user)
    except UnknownUserError:
        forget(store, user)
        raise


def _fitted(trained: Trained, user: str, prepared: Prepared, model: str | None) -> tuple[float, float]:
    """The shares of preferences in the right order before and after; the table takes the new row."""
    if trained.settings["users"] in FEATURED:
        from penname.methods.prlhf.featured import adapt_featured

        return adapt_featured(trained, user, prepared, model)
    return _adapt_soft(trained, load_run(trained, model), user, prepared)


def _adapt_soft(trained: Trained, model: Trainable, user: str, prepared: Prepared) -> tuple[float, float]:
    """The shares of preferences in the right order before and after; the table takes the new row."""
    users = SoftTable.open(trained, model.reader.width)
    if users is None:
        raise TrainedError(f"{trained.path} has no table of users")
    settings = trained.settings
    reader = TextReader(model, settings.get("task"))
    limit = min(int(settings["max_tokens"]), model.context) - int(settings["user_tokens"])
    prepared = fit(prepared, reader.lengths, limit)
    # Each example has a copy of the user's row: one backward pass tells each one's slope. Margins have no use
    # for KTO's answers to other prompts.
    laid = enumerate(reader.examples(prepared.items, {}))
    asked = [replace(one, user=place, other=()) for place, one in laid]
    examples = _with_reference(asked, trained, model)
    one = _OneUser(users, users.own(user), model.reader.device)
    beta = float(settings["beta"]) if trained.method == "p-dpo" else 1.0
    answers = Answers(model.reader, one, head_of(trained, model))
    ratings = settings["loss"] == "kto"

    def margins(some: Sequence[Example]) -> torch.Tensor:
        """β Δ of each: above 0 where the user's preference is foretold."""
        asked = [Question(ex.user, ex.prompt, answer) for ex in some for answer in ex.answers]
        values = answers.values(asked).view(len(some), -1)
        values = values - torch.tensor([ex.reference for ex in some], device=values.device)
        if not ratings:
            return beta * (values[:, 0] - values[:, 1])
        return (
            beta * values[:, 0] * torch.tensor([1 if ex.liked else -1 for ex in some], device=values.device)
        )

    portion = int(settings["portion"])
    found, before, after = _most_likely(one, len(examples), lambda: _outcome(one, examples, margins, portion))
    users.table.put(user, one.at(found), len(examples))
    return before, after


class _OneUser:
    """A user's soft prompt, a copy for each example, as a function of where the user lies.

    Its place is given by coordinates (k,) along the directions in which the run's users differ.
    """

    def __init__(self, users: SoftTable, own: np.ndarray | None, device: torch.device) -> None:
        shared = {
            name: torch.from_numpy(np.array(one)).to(device) for name, one in users.table.shared.items()
        }
        self._shared = shared
        # Nobody's offset is 0; nobody's weights of clusters are the generic ones.
        neutral = torch.zeros_like(shared["generic"]) if users.kind == "individual" else shared["generic"]
        self._start = neutral if own is None else torch.from_numpy(np.array(own)).to(device)
        self.free = len(shared["directions"])
        self.copies = self._start[None]

    def at(self, place: Floats) -> np.ndarray:
        """The user's row at a place (k,)."""
        moved = torch.einsum(
            "k,k...->...", torch.from_numpy(place).to(self._start), self._shared["directions"]
        )
        return np.asarray((self._start + moved).cpu())

    def put(self, place: Floats, n: int) -> None:
        """Lay `n` copies of the row at `place`, each with a gradient of its own."""
        row = torch.from_numpy(self.at(place)).to(self._start)
        self.copies = row.expand(n, *row.shape).clone().requires_grad_()

    def slopes(self) -> Floats:
        """(n, k): how fast each copy's value grows along each direction, from the last backward pass."""
        assert self.copies.grad is not None
        return (self.copies.grad.flatten(1) @ self._shared["directions"].flatten(1).T).double().cpu().numpy()

    def __call__(self, users: Sequence[int]) -> torch.Tensor:
        """(copies, T_u, width)."""
        rows = self.copies[torch.tensor(users, device=self.copies.device)]
        return soft_prompts(rows, self._shared["generic"], self._shared.get("clusters"))


def _outcome(
    one: _OneUser,
    examples: Sequence[Example],
    margins: Callable[[Sequence[Example]], torch.Tensor],
    portion: int,
) -> tuple[Floats, Floats]:
    """The examples' margins (n,) where the user lies now, and their slopes (n, k) along the directions."""
    found = []
    for some in portions(examples, lambda example: example.tokens, portion):
        values = margins(some)
        values.sum().backward()  # type: ignore[no-untyped-call]
        found.append(values.detach().double().cpu().numpy())
    return np.concatenate(found), one.slopes()


def _most_likely(
    one: _OneUser, n: int, outcome: Callable[[], tuple[Floats, Floats]]
) -> tuple[Floats, float, float]:
    """The likeliest place by Bradley-Terry under a standard normal prior; the accuracies before and after.

    Margins are taken as linear where the user lies; where the place that this gives does worse, half the way
    to it is tried.
    """
    best, place, before = np.inf, np.zeros(one.free), None
    kept, after = place, 0.0
    for number in range(PASSES):
        one.put(place, n)
        margins, slopes = outcome()
        right = float((margins > 0).mean())
        before = right if before is None else before
        lost = float(np.logaddexp(0, -margins).sum() + place @ place / 2)
        if lost < best:
            best, kept, after = lost, place, right
            place, promised = _solve(margins - slopes @ kept, slopes, kept)
            if number and best - promised < ENOUGH:
                break
        else:
            place = (place + kept) / 2
    return kept, before or 0.0, after


def _solve(fixed: Floats, slopes: Floats, start: Floats) -> tuple[Floats, float]:
    """The minimum of Σ log(1 + exp(−fixed − slopes z)) + |z|²/2, and its value: convex."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]
    from scipy.special import expit  # type: ignore[import-untyped]

    def lost(z: Floats) -> tuple[float, Floats]:
        margins = fixed + slopes @ z
        return float(np.logaddexp(0, -margins).sum() + z @ z / 2), z - slopes.T @ expit(-margins)

    found = minimize(lost, start, jac=True, method="L-BFGS-B")
    return found.x, float(found.fun)


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
