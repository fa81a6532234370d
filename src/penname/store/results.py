"""What the store's calls return: small frozen counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self


@dataclass(frozen=True)
class Added:
    """What an add did. Items that the store already held, unchanged, count nowhere but in `same`."""

    users: int = 0  # users that were not there before
    new: int = 0  # documents that were not there before
    same: int = 0  # documents that were there with the same content
    changed: int = 0  # documents that replaced another content under the same id
    requests: int = 0  # requests new or changed
    preferences: int = 0  # preferences new or changed
    profiles: int = 0  # profiles new
    bad: int = 0  # rows that could not be read or kept

    def __add__(self, other: Self) -> Self:
        mine, theirs = asdict(self), asdict(other)
        return type(self)(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True)
class Erased:
    """How many rows of a user were deleted. `requests` counts all that named the user."""

    documents: int = 0
    vectors: int = 0
    gists: int = 0
    profiles: int = 0
    preferences: int = 0
    requests: int = 0
    keys: int = 0  # the user's own; a service's key only loses the user


class Span(NamedTuple):
    """How many documents a user has, and when the first and the last dated one were written."""

    documents: int
    first: datetime | None
    last: datetime | None


class Group(NamedTuple):
    """Users who wrote together, in author order, and how many documents they share."""

    users: tuple[str, ...]
    documents: int


class TrainedFolder(NamedTuple):
    """The folder of something that was trained from a store, and when the store was last told so (UTC)."""

    path: Path  # absolute
    method: str
    added_at: datetime


class Key(NamedTuple):
    """A key of the HTTP service, without its secret, which nobody keeps.

    A user's key acts for that user; a service's key, whose `user` is None, for the users that it was given.
    """

    id: str  # may stand in logs
    user: str | None
    name: str  # for people to read
    made_at: datetime  # UTC

    @property
    def service(self) -> bool:
        """Whether it is a service's key."""
        return self.user is None


class Schema(NamedTuple):
    """The schema a database has (None: none yet) and the newest that this version knows."""

    current: str | None
    head: str
