"""Histories in memory: what a retriever has read and built of each user, until that user's history changes.

The database is asked for one number, the history's version, at each request. While it is the same, documents,
indices and vectors come from here. Everything is kept per user of one store and is reached only through that
user, so nothing of one user can reach another. What is kept of an erased user is never found again, and goes
when the retriever is next asked about the user, is told to `forget` or `sweep`, or needs the memory.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Container, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from penname.errors import UnknownUserError
from penname.records import Document

if TYPE_CHECKING:
    from penname.store import UserStore

CACHE_BYTES = 256 * 2**20  # of one retriever, estimated; the user asked about last is kept whatever its size
PARTS = 8  # built things kept of one user: postings, vectors, and the rest indices for different dates
_DOCUMENT_BYTES = 1500  # a Document without its text, and its place in the tables here; measured

T = TypeVar("T")
# Which user of which store: a copy of a store holds the same users, and other documents.
Owner = tuple[str, str]


class History:
    """One user's documents at one version of the history, and what was built of them."""

    def __init__(self, version: int, documents: list[Document], grew: Callable[[int], None]) -> None:
        self.documents = documents  # undated first, then by date: `Histories.past` cuts by bisection
        self.version = version
        self.undated = sum(d.written_at is None for d in self.documents)
        self.dates = [d.written_at for d in self.documents if d.written_at is not None]
        self.bytes = sum(_DOCUMENT_BYTES + len(d.title) + len(d.text) for d in self.documents)
        self._places = {d.id: place for place, d in enumerate(self.documents)}
        self._grew = grew
        self._parts: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.RLock()  # reentrant: an index is built of postings, which are a part too

    def places(self, ids: Collection[str]) -> set[int]:
        """Where in `documents` those of `ids` are that are there."""
        return {self._places[i] for i in ids if i in self._places}

    def part(self, key: Hashable, build: Callable[[], tuple[T, int]]) -> T:
        """What `build` gave for `key`, built when it is not there: a value and its size in bytes.

        Threads that want the same part wait for the one that builds it.
        """
        with self._lock:
            if key not in self._parts:
                self._keep(key, build())
            self._parts.move_to_end(key)
            value: T = self._parts[key][0]
            return value

    def _keep(self, key: Hashable, part: tuple[Any, int]) -> None:
        self._parts[key] = part
        change = part[1]
        while len(self._parts) > PARTS:
            _, (_, size) = self._parts.popitem(last=False)
            change -= size
        self._grew(change)


@dataclass(frozen=True, eq=False)
class Past:
    """The documents of a user's history that may be used for one request, oldest first."""

    user: UserStore
    history: History
    places: tuple[int, int, frozenset[int]]  # first, end, and those between that are excluded
    documents: list[Document]

    def mask(self) -> NDArray[np.bool_]:
        """Which documents of the history belong to this past, (n,)."""
        first, end, excluded = self.places
        mask = np.zeros(len(self.history.documents), dtype=np.bool_)
        mask[first:end] = True
        mask[list(excluded)] = False
        return mask


class Histories:
    """The histories of the users asked about last, within `limit` bytes (estimated). Thread-safe."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._total = 0
        self._kept: OrderedDict[Owner, History] = OrderedDict()
        self._lock = threading.Lock()

    def past(self, user: UserStore, before: datetime | None, exclude: Collection[str]) -> Past:
        """What `user` wrote strictly before `before` (None: everything), without the ids in `exclude`."""
        history = self._history(user)
        first, end = 0, len(history.documents)
        if before is not None:
            moment = before.replace(tzinfo=UTC) if before.tzinfo is None else before
            first = history.undated
            end = first + bisect_left(history.dates, moment)
        excluded = frozenset(place for place in history.places(exclude) if first <= place < end)
        documents = history.documents[first:end]
        if excluded:
            documents = [d for place, d in enumerate(documents, start=first) if place not in excluded]
        return Past(user, history, (first, end, excluded), documents)

    def forget(self, user: UserStore) -> None:
        """Drop what is kept of this user."""
        with self._lock:
            self._drop(_owner(user))

    def sweep(self, there: Callable[[Collection[str]], Container[str]]) -> None:
        """See `Retriever.sweep`."""
        with self._lock:
            owners = list(self._kept)
        left = there([user for _, user in owners])
        with self._lock:
            for owner in owners:
                if owner[1] not in left:
                    self._drop(owner)

    def _history(self, user: UserStore) -> History:
        owner = _owner(user)
        try:
            # Read before the documents: a change in between then only means reading them again next time.
            version = user.history_version
            with self._lock:
                kept = self._kept.get(owner)
                if kept is not None and kept.version == version:
                    self._kept.move_to_end(owner)
                    return kept
            documents = user.documents()
        except UnknownUserError:
            self.forget(user)
            raise
        return self._keep(owner, version, documents)

    def _keep(self, owner: Owner, version: int, documents: list[Document]) -> History:
        def grew(change: int) -> None:
            self._account(owner, history, change)

        history = History(version, documents, grew)
        with self._lock:
            kept = self._kept.get(owner)
            if kept is not None and kept.version == version:  # another thread was faster
                return kept
            self._drop(owner)
            self._kept[owner] = history
            self._total += history.bytes
            self._shrink()
        return history

    def _account(self, owner: Owner, history: History, change: int) -> None:
        with self._lock:
            history.bytes += change
            if self._kept.get(owner) is history:
                self._total += change
                self._shrink()

    def _shrink(self) -> None:
        while self._total > self._limit and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def _drop(self, owner: Owner) -> None:
        history = self._kept.pop(owner, None)
        if history is not None:
            self._total -= history.bytes


def _owner(user: UserStore) -> Owner:
    return (user.store_url, user.id)
