"""`users.db` in a run's folder: which users the run has seen, and which row of the table is whose.

It holds no user's id, only the SHA-256 of it. Four tables:

- `about`: one row with the key of the table that it goes with ("" where the run has no table);
- `seen`: users whose data the run's shared weights were trained on. An entry stays after an erase: the
  weights stay as they are, and the next erase must be able to say so;
- `rows`: user, slot in `users.safetensors`, number of preferences it was learnt from, microseconds of then;
- `spare`: slots that were used and belong to nobody now; `zeroed` 0 while old bytes may still lie there.

The journal is SQLite's rollback journal, not WAL. With it a commit waits for those who are reading, so that
a slot that was read in a transaction stays that user's until it ends; and a read-only folder opens.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penname.errors import StoreBusyError, StoreError, StoreFullError, StoreReadOnlyError, TrainedError

INDEX = "users.db"

_APPLICATION = 0x706E5F75  # "pn_u": tells an index from any other SQLite file
_FORMAT = 1
_TABLES = """
CREATE TABLE about (table_key TEXT NOT NULL);
CREATE TABLE seen (user BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE rows (
    user BLOB PRIMARY KEY,
    slot INTEGER NOT NULL UNIQUE,
    preferences INTEGER NOT NULL,
    updated INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE spare (slot INTEGER PRIMARY KEY, zeroed INTEGER NOT NULL);
"""
_KINDS: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, "another process held it for longer than the time-out; try again"),
    sqlite3.SQLITE_FULL: (StoreFullError, "the disk is full; what was there before is kept"),
    sqlite3.SQLITE_READONLY: (StoreReadOnlyError, "it cannot be written by this account"),
}


def hashed(user: str) -> bytes:
    """What stands for a user in the index: the SHA-256 of the id."""
    return hashlib.sha256(user.encode()).digest()


def create_index(folder: Path, seen: Iterable[str], table_key: str = "") -> None:
    """Makes the index of a run in a folder that is being built, and brings it to the disk.

    Args:
        folder: is there, and holds no index yet.
        seen: ids of the users whose data the shared weights were trained on; read once.
        table_key: of the table that goes with it; "": the run has none.

    Raises:
        TrainedError: there is an index already.
        StoreFullError: the disk is full.
    """
    path = folder / INDEX
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # only its owner may read it
    except FileExistsError:
        raise TrainedError(f"{path} is there already: build a run in a new folder") from None
    index = Index(folder, fresh=True)
    try:
        with index.write() as connection:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute("INSERT INTO about VALUES (?)", (table_key,))
            connection.executemany("INSERT OR IGNORE INTO seen VALUES (?)", ((hashed(u),) for u in seen))
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
    finally:
        index.close()


def saw(folder: Path, user: str) -> bool:
    """Whether the shared weights of the run in `folder` were trained on data of `user`.

    Raises:
        TrainedError: the folder holds no index, or a damaged one.
    """
    index = Index(folder)
    try:
        with index.read() as connection:
            query = "SELECT 1 FROM seen WHERE user = ?"
            return connection.execute(query, (hashed(user),)).fetchone() is not None
    finally:
        index.close()


class Index:
    """The open `users.db` of a folder. Threads may share it; a forked process must open its own.

    Args:
        folder: the run's.
        fresh: the file is empty, and its tables are about to be made.
        busy_timeout: seconds that a call waits for other processes before it raises StoreBusyError.

    Raises:
        TrainedError: there is no index, or it is damaged, or another program's or a newer penname's.
    """

    def __init__(self, folder: Path, *, fresh: bool = False, busy_timeout: float = 30.0) -> None:
        self.path = folder / INDEX
        if not self.path.is_file():
            raise TrainedError(f"{folder} holds no {INDEX}: it is no finished run, or lost a part")
        self._lock = threading.RLock()
        self._process = os.getpid()
        with self._translated():
            self._connection = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode=rw",  # makes no file; opens a read-only one as such
                uri=True,
                timeout=busy_timeout,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._translated():
                for pragma in ("synchronous = FULL", "secure_delete = ON"):
                    self._connection.execute(f"PRAGMA {pragma}")
            if not fresh:
                self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A snapshot. No commit of another process comes through before it ends, so keep it short."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and the only writer among all processes from its beginning on."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        if self._process != os.getpid():
            raise TrainedError(f"{self.path} was opened before this process forked: open it again")
        with self._lock, self._translated():
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in _KINDS:
                kind, why = _KINDS[code]
                raise kind(f"{self.path}: {why}") from error
            raise TrainedError(f"{self.path} cannot be used ({error}): restore it, or train again") from error

    def _check(self) -> None:
        with self.read() as connection:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION:
            raise TrainedError(f"{self.path} is no index of penname's: restore it, or train again")
        if version != _FORMAT:
            raise TrainedError(f"{self.path} has the format {version}; this penname reads {_FORMAT}")
