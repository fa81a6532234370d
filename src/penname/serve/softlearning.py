"""Learning at once in a run of soft prompts: the model is warm, and reads nothing but a new preference.

What a preference says is kept as a line: its margin near the place where it was read (`softfit.Line`). With
the lines of a user's latest preferences in memory, a new one costs the model one reading of its own answers,
and then a convex function of a few numbers is minimised. The row is put at once. Afterwards `refine` reads
all of them where they lie best, as `adapt` does, in the background and behind all requests.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np

from penname.errors import BadInputError
from penname.methods.prlhf.adapt import newest, noted
from penname.methods.prlhf.jobs import Example
from penname.methods.prlhf.softfit import Floats, Line, SoftFit, Start, likeliest
from penname.methods.prlhf.table import Learnt
from penname.records import Preference, digest, prompt_values
from penname.serve.compute import compute
from penname.store import Store
from penname.train.base import load_run
from penname.train.folder import Trained
from penname.train.preferences.data import Pair, Rated

_USERS = 1024  # whose lines are kept: some 10 kB each, and no text
_AT_ONCE = 512  # tokens of preferences that are read in a request, where it is more than the new one's
_PORTION = 1  # tokens that the background reads at once: one preference, as a request waits for it
_QUIET = 1.0  # seconds after a request in which the background reads nothing: the next is likely then
_PATIENCE = 10.0  # seconds that it waits for quiet, at most, before it reads all the same

T = TypeVar("T")
Item = Pair | Rated


class _Read(NamedTuple):
    """What is kept of a preference."""

    line: Line
    reference: tuple[float, ...]  # log-probabilities of its answers, which no place changes


@dataclass(eq=False)
class _Kept:
    """What is kept of a user."""

    start: Start
    centre: Floats  # of the prior while some lines are not there yet: where the row stood
    place: Floats  # where the row is
    row: Learnt | None  # what the table says of the row that this was made from
    read: dict[str, _Read] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)  # the latest preferences, which the row is fitted to


class _Turns:
    """The background goes behind requests."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ahead = 0
        self._last = -_QUIET  # when the last request ended

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Around a request."""
        with self._changed:
            self._ahead += 1
        try:
            yield
        finally:
            with self._changed:
                self._ahead -= 1
                self._last = time.monotonic()
                self._changed.notify_all()

    def behind(self, read: Callable[[], T], /) -> T:
        """What the background reads at once."""
        end = time.monotonic() + _PATIENCE
        with self._changed:
            while (left := min(self._wait(), end - time.monotonic())) > 0:
                self._changed.wait(left)
        return compute(read)

    def _wait(self) -> float:
        """Seconds until it may be quiet."""
        return _QUIET if self._ahead else self._last + _QUIET - time.monotonic()


class SoftLearning:
    """Fits users of one run. Threads may use it at once.

    Raises:
        TrainedError: the run cannot be used, or kept no reference to fit by.
    """

    def __init__(self, store: Store, trained: Trained) -> None:
        self._store = store
        self._trained = trained
        self._fit = compute(lambda: SoftFit(trained, load_run(trained)))
        self._lock = threading.Lock()  # of two fits of a user the later one must know both preferences
        self._turns = _Turns()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        fit, start = self._fit, self._start("")
        hello = fit.examples([Pair(None, "Say hello.", "Hello.", "Hi.")])
        fit.lines(start, start.place, fit.referenced(hello, compute), compute)

    def learn(self, user: str, latest: Preference) -> int:
        """How many preferences the user's row is fitted to; 0 where there are none, and nothing was done.

        Where lines of older ones are not there, as after a restart, the row as it stands is what the prior
        holds to: it was made from them, and they join by `refine`.

        Args:
            latest: the preference that has just been stored; it is read before others.

        Raises:
            UnknownUserError: the user was erased meanwhile.
        """
        with self._turns.ahead(), self._lock:
            try:
                items = self._items(user)
            except BadInputError:  # nothing but ratings that make no pair, or that are too long
                return 0
            with noted(self._store, user, self._trained):
                kept = self._of(user)
                new = [key for key in items if key not in kept.read]
                if new or set(kept.wanted) != set(items):
                    kept.wanted = list(items)
                    self._read_some(kept, {key: items[key] for key in _ordered(new, items, latest)})
                    self._settle(user, kept)
            return len(items)

    def refine(self, user: str) -> None:
        """Fit the user's row to the latest preferences, all read anew; what came meanwhile is not lost.

        Raises:
            UnknownUserError, BadInputError: erased, or no preference that can be used.
        """
        with self._lock:
            items = self._items(user)
            kept = self._of(user)
            kept.wanted = list(items)
            known = {key: one.reference for key, one in kept.read.items()}
        examples = self._referenced(
            dict(zip(items, self._fit.examples(list(items.values())), strict=True)), known
        )
        _, found = self._fit.fitted(kept.start, list(examples.values()), self._turns.behind, _PORTION)
        with self._lock, noted(self._store, user, self._trained):
            if self._of(user) is not kept:  # erased meanwhile, or fitted by another process
                return
            lines = zip(examples.items(), found.lines, strict=True)
            kept.read |= {key: _Read(line, one.reference) for (key, one), line in lines}
            kept.centre = np.zeros_like(kept.centre)
            kept.place = found.place
            if set(kept.wanted) == set(items):
                self._put(user, kept)
            else:
                self._settle(user, kept)

    @property
    def users(self) -> list[str]:
        """Of whom something is kept in memory."""
        return list(self._kept)

    def forget(self, user: str) -> None:
        """Drop what is in memory of an erased user, and a row that was put while the user was erased."""
        with self._lock:
            self._kept.pop(user, None)
            self._fit.erase(user)

    def _items(self, user: str) -> dict[str, Item]:
        """The user's latest preferences that can be read, by their hash, the newest last."""
        found = self._fit.fitting(newest(self._store, user, self._trained))
        return {_key(item): item for item in found.items}

    def _of(self, user: str) -> _Kept:
        """What is kept of the user; made anew where the table has another row, or none any more."""
        row = self._fit.learnt(user)
        kept = self._kept.get(user)
        if kept is None or kept.row != row:
            start = self._start(user)
            kept = self._kept[user] = _Kept(start, start.place, start.place, row)
        self._kept.move_to_end(user)
        while len(self._kept) > _USERS:
            self._kept.popitem(last=False)
        return kept

    def _start(self, user: str) -> Start:
        return compute(lambda: self._fit.start(user))

    def _read_some(self, kept: _Kept, items: Mapping[str, Item]) -> None:
        """Read the first of these, and as many more as cost little."""
        examples = dict(zip(items, self._fit.examples(list(items.values())), strict=True))
        taken: list[str] = []
        tokens = 0
        for key, one in examples.items():
            tokens += one.tokens
            if taken and tokens > _AT_ONCE:
                break
            taken.append(key)
        read = self._fit.referenced([examples[key] for key in taken], compute)
        lines = self._fit.lines(kept.start, kept.place, read, compute)
        for key, one, line in zip(taken, read, lines, strict=True):
            kept.read[key] = _Read(line, one.reference)

    def _settle(self, user: str, kept: _Kept) -> None:
        """Put the row where the lines that are there have it."""
        kept.read = {key: kept.read[key] for key in kept.wanted if key in kept.read}
        if not kept.read:  # one that was taken back: `refine` knows the others
            return
        whole = len(kept.read) == len(kept.wanted)
        centre = np.zeros_like(kept.centre) if whole else kept.centre
        kept.place, _ = likeliest([one.line for one in kept.read.values()], centre, kept.place)
        self._put(user, kept)

    def _put(self, user: str, kept: _Kept) -> None:
        compute(lambda: self._fit.put(user, kept.start, kept.place, len(kept.wanted)))
        kept.row = self._fit.learnt(user)

    def _referenced(
        self, examples: dict[str, Example], known: Mapping[str, tuple[float, ...]]
    ) -> dict[str, Example]:
        """The examples with the reference's log-probabilities, asked for where they are not known."""
        new = [key for key in examples if key not in known]
        asked = self._fit.referenced([examples[key] for key in new], self._turns.behind, _PORTION)
        found = {key: replace(one, reference=known[key]) for key, one in examples.items() if key in known}
        found |= zip(new, asked, strict=True)
        return {key: found[key] for key in examples}


def _key(item: Item) -> str:
    """A hash of all that decides the item's line."""
    liked = item.liked if isinstance(item, Rated) else None
    return digest([prompt_values(item.prompt), item.answers, item.about, liked])


def _ordered(keys: Sequence[str], items: Mapping[str, Item], latest: Preference) -> list[str]:
    """What the latest preference is about comes first, then the newest."""
    texts = {text for text in (latest.chosen, latest.rejected, latest.completion) if text is not None}

    def about_it(key: str) -> bool:
        return items[key].prompt == latest.prompt and not texts.isdisjoint(items[key].answers)

    newest = list(reversed(keys))
    return sorted(newest, key=lambda key: not about_it(key))
