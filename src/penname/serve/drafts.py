"""The latest drafts of each user, in memory: what an explanation is read from. The store holds none of it.

A draft of several authors holds what several users wrote: it is found only by who may act for all of them.
Users may be erased by another process, which cannot drop what is kept here: so the store is asked whether
they are still there before anything is shown, and now and then (`sweep`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from penname.records import Draft

LATEST = 50  # requests kept of each user, or group of users who write together
MEMORY = 256 * 2**20  # bytes of all that is kept, about


@dataclass(frozen=True)
class Kept:
    """What came of one request: the drafts in the order of the answer's choices."""

    id: str
    made_at: datetime  # UTC
    drafts: tuple[Draft, ...]
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Of the users in the store (`Store.numbers`), as they were when the drafts were begun."""

    @property
    def users(self) -> tuple[str, ...]:
        """Whom it was written for, in author order."""
        return self.drafts[0].request.users


class Drafts:
    """The latest drafts of each user, the oldest of all going first where memory is short. Thread-safe.

    Args:
        latest: requests kept of each user, or group of users who write together.
        memory: bytes of all that is kept, about. What alone is larger is not kept.
        numbers: as `Store.numbers`; without it nobody is ever erased elsewhere.
    """

    def __init__(
        self,
        latest: int = LATEST,
        memory: int = MEMORY,
        numbers: Callable[[Iterable[str]], Mapping[str, int]] = lambda _: {},
    ) -> None:
        self._latest = latest
        self._numbers = numbers
        self._memory = memory
        self._kept: OrderedDict[str, tuple[Kept, int]] = OrderedDict()  # by id, oldest first
        self._total = 0
        self._lock = threading.Lock()

    def keep(self, kept: Kept) -> None:
        """Keep the drafts of a request."""
        size = sum(len(draft.model_dump_json().encode("utf-8", "replace")) for draft in kept.drafts)
        group = frozenset(kept.users)
        with self._lock:
            self._kept[kept.id] = (kept, size)
            self._total += size
            own = [one.id for one, _ in self._kept.values() if frozenset(one.users) == group]
            for id in own[: -self._latest]:  # noqa: A001
                self._drop(id)
            while self._total > self._memory:
                self._drop(next(iter(self._kept)))

    def get(self, id: str, users: Collection[str]) -> Kept | None:  # noqa: A002
        """What is kept under this id, where all its users are among `users`; else None."""
        with self._lock:
            found = self._kept.get(id)
        if found is None or not set(found[0].users) <= set(users):
            return None
        return next(iter(self._there([found[0]])), None)

    def latest(self, users: Collection[str]) -> list[Kept]:
        """All whose users are all among `users`, the newest first."""
        allowed = set(users)
        with self._lock:
            found = [one for one, _ in reversed(self._kept.values()) if set(one.users) <= allowed]
        return self._there(found)

    def sweep(self) -> None:
        """Drop all of users who were erased by another process."""
        with self._lock:
            everything = [one for one, _ in self._kept.values()]
        self._there(everything)

    def users_of(self, id: str) -> tuple[str, ...]:  # noqa: A002
        """Whom what is kept under this id was written for; nobody where there is nothing."""
        with self._lock:
            found = self._kept.get(id)
        return found[0].users if found else ()

    def together(self, user: str) -> set[str]:
        """Those with whom the user wrote what is kept."""
        with self._lock:
            groups = [one.users for one, _ in self._kept.values() if user in one.users]
        return {name for group in groups for name in group if name != user}

    def forget(self, user: str) -> int:
        """Drop all that the user took part in; returns the number of drafts."""
        with self._lock:
            found = [one for one, _ in self._kept.values() if user in one.users]
            for one in found:
                self._drop(one.id)
        return sum(len(one.drafts) for one in found)

    @property
    def size(self) -> int:
        """Bytes of all that is kept, about."""
        return self._total

    def _there(self, found: Collection[Kept]) -> list[Kept]:
        """Those whose users all are who they were; the others are dropped."""
        now = self._numbers({user for one in found for user in one.users}) if found else {}
        there = [one for one in found if all(now.get(user) == one.numbers.get(user) for user in one.users)]
        if len(there) < len(found):
            left = {one.id for one in there}
            with self._lock:
                for one in found:
                    if one.id not in left and one.id in self._kept:
                        self._drop(one.id)
        return there

    def _drop(self, id: str) -> None:  # noqa: A002
        self._total -= self._kept.pop(id)[1]
