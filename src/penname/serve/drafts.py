"""The latest drafts of each user, in memory: what an explanation is read from. The store holds none of it.

A draft of several authors holds what several users wrote: it is found only by who may act for all of them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
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

    @property
    def users(self) -> tuple[str, ...]:
        """Whom it was written for, in author order."""
        return self.drafts[0].request.users


class Drafts:
    """The latest drafts of each user, the oldest of all going first where memory is short. Thread-safe.

    Args:
        latest: requests kept of each user, or group of users who write together.
        memory: bytes of all that is kept, about. What alone is larger is not kept.
    """

    def __init__(self, latest: int = LATEST, memory: int = MEMORY) -> None:
        self._latest = latest
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
        return found[0] if found and set(found[0].users) <= set(users) else None

    def latest(self, users: Collection[str]) -> list[Kept]:
        """All whose users are all among `users`, the newest first."""
        allowed = set(users)
        with self._lock:
            return [one for one, _ in reversed(self._kept.values()) if set(one.users) <= allowed]

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

    def _drop(self, id: str) -> None:  # noqa: A002
        self._total -= self._kept.pop(id)[1]
