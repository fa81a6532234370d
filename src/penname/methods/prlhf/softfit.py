"""Where a user of a run with soft prompts lies, as that user's preferences have it (arXiv 2402.05133, 4.3).

A handful of preferences does not tell thousands of numbers: the row is looked for along the few directions in
which the users of the training differ, which a run keeps with its table. Where a user lies along them is the
user's place z, (k,), and a normal prior of their own spread holds it near 0. Each preference's margin is
taken as linear near the place where it was read; so the likeliest place is the minimum of a convex function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from penname.errors import TrainedError
from penname.methods.prlhf.answers import Answers, Question
from penname.methods.prlhf.jobs import Example, with_reference
from penname.methods.prlhf.reward import head_of, reference
from penname.methods.prlhf.soft import SoftTable
from penname.methods.prlhf.table import Learnt
from penname.methods.prlhf.texts import TextReader
from penname.methods.prlhf.users import GENERIC, soft_prompts
from penname.train.folder import Trained
from penname.train.index import saw
from penname.train.kept import Asked
from penname.train.model import Trainable
from penname.train.portions import portions
from penname.train.preferences.data import Pair, Prepared, Rated, fit

Floats = NDArray[np.float64]
Read = TypeVar("Read")


class Turn(Protocol):
    """Has the model read a portion: who shares the model with others does it in turn."""

    def __call__(self, read: Callable[[], Read], /) -> Read:
        """What `read` gives."""
        ...


def _now(read: Callable[[], Read]) -> Read:
    return read()


PASSES = 5  # over the preferences from one beginning, at most
ENOUGH = 0.05  # nats by which a pass after the second must promise to do better


@dataclass(frozen=True, eq=False)
class Start:
    """Where a fit begins: the row at place 0, which the prior holds to, and where the table's row lies."""

    row: torch.Tensor
    place: Floats  # (k,)


@dataclass(frozen=True, eq=False)
class Line:
    """A preference's margin β Δ near a place: margin + slope · (z − place)."""

    margin: float  # above 0 where the user's preference is foretold
    slope: Floats  # (k,)
    place: Floats  # (k,)


@dataclass(frozen=True, eq=False)
class Reading:
    """All of a user's preferences as they were read at one place."""

    place: Floats  # (k,)
    lines: list[Line]

    @property
    def lost(self) -> float:
        """Σ log(1 + exp(−margin)) + |z|²/2, in nats: what the likeliest place has least of."""
        return float(np.logaddexp(0, -self._margins).sum() + self.place @ self.place / 2)

    @property
    def right(self) -> float:
        """The share of the preferences in the right order."""
        return float((self._margins > 0).mean())

    @property
    def _margins(self) -> Floats:
        return np.array([line.margin for line in self.lines])


class SoftFit:
    """Fits users of a run, one at a time, to their preferences. One thread at a time may have it read.

    Args:
        model: the run's own, frozen.

    Raises:
        TrainedError: the run has no table of soft prompts, or none with directions.
    """

    def __init__(self, trained: Trained, model: Trainable) -> None:
        users = SoftTable.open(trained, model.reader.width)
        if users is None or "directions" not in users.table.shared:
            raise TrainedError(
                f"{trained.path} has no table of users, with the directions in which they differ"
            )
        settings = trained.settings
        device = model.reader.device
        shared = {name: torch.from_numpy(np.array(one)) for name, one in users.table.shared.items()}
        self._path = trained.path
        self._users = users
        self._model = model
        self._texts = TextReader(model, settings.get("task"))
        self._head = head_of(trained, model)
        self._generic = shared["generic"].to(device)
        self._clusters = shared["clusters"].to(device) if "clusters" in shared else None
        self._directions = shared["directions"].to(device)
        self._limit = min(int(settings["max_tokens"]), model.context) - int(settings["user_tokens"])
        self._beta = 1.0 if self._head is not None else float(settings["beta"])
        self._ratings = settings["loss"] == "kto"
        self.portion = int(settings["portion"])

    def start(self, user: str) -> Start:
        """Where a fit of this user begins.

        Who is new to the run begins at the generic user, however often, so that the same preferences always
        make the same row. Who was in its training begins at the row as it stands.
        """
        # Nobody's offset is 0; nobody's weights of clusters are the generic ones.
        neutral = torch.zeros_like(self._generic) if self._users.kind == "individual" else self._generic
        found = self._users.own(user)
        nowhere = np.zeros(len(self._directions))
        if found is None:
            return Start(neutral, nowhere)
        own = torch.from_numpy(np.array(found)).to(neutral)
        if saw(self._path, user):
            return Start(own, nowhere)
        axes = self._directions.flatten(1).double().cpu().numpy()
        moved = (own - neutral).flatten().double().cpu().numpy()
        return Start(neutral, np.linalg.lstsq(axes.T, moved, rcond=1e-6)[0])

    def fitting(self, prepared: Prepared) -> Prepared:
        """Those that fit into the run's limit of tokens. Raises BadInputError where none does."""
        return fit(prepared, self._texts.lengths, self._limit)

    def examples(self, items: Sequence[Pair | Rated]) -> list[Example]:
        """As token ids, without what the reference says of them."""
        # Margins have no use for KTO's answers to other prompts.
        return [replace(one, other=()) for one in self._texts.examples(items, {})]

    def referenced(
        self, examples: Sequence[Example], turn: Turn = _now, portion: int | None = None
    ) -> list[Example]:
        """With the frozen reference's log-probabilities, which a reward model has no use for.

        Raises:
            TrainedError: all weights were trained: there is no reference any more.
        """
        if self._head is not None:
            return list(examples)
        found = []
        for some in portions(examples, lambda example: example.tokens, portion or self.portion):
            found += turn(partial(self._referenced, some))
        return found

    def lines(
        self,
        start: Start,
        place: Floats,
        examples: Sequence[Example],
        turn: Turn = _now,
        portion: int | None = None,
    ) -> list[Line]:
        """The examples' lines at a place: the model reads each once, forward and backward."""
        found = []
        for some in portions(examples, lambda example: example.tokens, portion or self.portion):
            margins, slopes = turn(partial(self._outcome, start, place, some))
            found += [Line(float(one), slope, place) for one, slope in zip(margins, slopes, strict=True)]
        return found

    def fitted(
        self,
        start: Start,
        examples: Sequence[Example],
        turn: Turn = _now,
        portion: int | None = None,
    ) -> tuple[Reading, Reading]:
        """What the preferences are at the start, and at the likeliest place that was found.

        By Bradley-Terry under a standard normal prior. Margins can be flat where the user lies and go up
        only further off: then their lines lead nowhere. So where some preference is still in the wrong order,
        a second search begins at an end of the direction in which users differ most.
        """

        def read(place: Floats) -> Reading:
            return Reading(place, self.lines(start, place, examples, turn, portion))

        nowhere = np.zeros(len(self._directions))
        before = read(nowhere)
        found = _searched(before, read)
        if found.right < 1:
            end = nowhere.copy()
            end[0] = 1.0  # as far as users go on average
            nearer = min(read(end), read(-end), key=_lost)
            found = min(found, _searched(nearer, read), key=_lost)
        return before, found

    def put(self, user: str, start: Start, place: Floats, preferences: int) -> None:
        """Give the user the row at a place. Raises as `UserTable.put` does."""
        self._users.table.put(user, np.asarray(self._row(start, place).cpu()), preferences)

    def learnt(self, user: str) -> Learnt | None:
        """What the user's row was made from, and when; None where there is none."""
        return self._users.table.learnt(user)

    def erase(self, user: str) -> None:
        """Take the user's row away. Raises as `UserTable.erase` does."""
        self._users.table.erase(user)

    def _referenced(self, examples: Sequence[Example]) -> list[Example]:
        with reference(self._model):
            return with_reference(examples, self._ask)

    def _row(self, start: Start, place: Floats) -> torch.Tensor:
        moved = torch.einsum("k,k...->...", torch.from_numpy(place).to(start.row), self._directions)
        return start.row + moved

    def _outcome(self, start: Start, place: Floats, examples: Sequence[Example]) -> tuple[Floats, Floats]:
        """The examples' margins (n,) at a place, and their slopes (n, k) along the directions."""
        # Each example has a copy of the user's row: one backward pass tells each one's slope.
        row = self._row(start, place)
        copies = row.expand(len(examples), *row.shape).clone().requires_grad_()

        def users(numbers: Sequence[int]) -> torch.Tensor:
            return soft_prompts(copies[list(numbers)], self._generic, self._clusters)

        asked = [
            Question(number, one.prompt, answer)
            for number, one in enumerate(examples)
            for answer in one.answers
        ]
        values = Answers(self._model.reader, users, self._head).values(asked).view(len(examples), -1)
        ratios = values - torch.tensor([one.reference for one in examples], device=values.device)
        if self._ratings:
            liked = torch.tensor([1 if one.liked else -1 for one in examples], device=values.device)
            margins = self._beta * ratios[:, 0] * liked
        else:
            margins = self._beta * (ratios[:, 0] - ratios[:, 1])
        [grads] = torch.autograd.grad(margins.sum(), copies)
        slopes = grads.flatten(1) @ self._directions.flatten(1).T
        return margins.detach().double().cpu().numpy(), slopes.double().cpu().numpy()

    def _ask(self, asked: Sequence[Asked]) -> list[float]:
        questions = [Question(GENERIC, prompt, answer) for prompt, answer in asked]
        return Answers(self._model.reader).all(questions, self.portion)


def _lost(reading: Reading) -> float:
    return reading.lost


def _searched(begun: Reading, read: Callable[[Floats], Reading]) -> Reading:
    """The best of a few places, each the likeliest by the lines at the best before it.

    Where a place does worse than the lines promised, half the way to it is tried.
    """
    best = tried = begun
    for number in range(1, PASSES):
        if tried is best:
            place, promised = likeliest(best.lines, np.zeros_like(best.place), best.place)
            if number > 1 and best.lost - promised < ENOUGH:
                break
        else:
            place = (tried.place + best.place) / 2
        tried = read(place)
        best = min(best, tried, key=_lost)
    return best


def likeliest(lines: Sequence[Line], centre: Floats, start: Floats) -> tuple[Floats, float]:
    """The minimum of Σ log(1 + exp(−margin)) + |z − centre|²/2 over places z, and its value: convex.

    Args:
        centre: of the prior, (k,).
        start: where the search begins, (k,).
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]
    from scipy.special import expit  # type: ignore[import-untyped]

    slopes = np.stack([line.slope for line in lines])
    fixed = np.array([line.margin - line.slope @ line.place for line in lines])

    def lost(z: Floats) -> tuple[float, Floats]:
        margins, away = fixed + slopes @ z, z - centre
        return float(np.logaddexp(0, -margins).sum() + away @ away / 2), away - slopes.T @ expit(-margins)

    found = minimize(lost, start, jac=True, method="L-BFGS-B")
    return found.x, float(found.fun)
