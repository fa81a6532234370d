"""The database's errors in penname's words. The SQL and values they carry are left out: users' text."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from penname.errors import (
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreSchemaError,
)

_BUSY = "{where}: another process or thread held the database for longer than the time-out; try again later"
_FULL = "{where}: the disk is full; what was acknowledged before is kept: free some space and go on"
_READ_ONLY = "{where}: the database, or the folder it lies in, cannot be written by this user"
_NOT_OURS = (
    "{where} is not a database of penname, or it is damaged ({why}): name another file, or restore a backup"
)
_BROKEN = (
    "{where} cannot be read or written ({why}); what was acknowledged before is kept: look whether the disk "
    "is full or failing, or a limit on file sizes is reached"
)
_SCHEMA = "{where}: the tables are missing or differ ({why}): run `penname db upgrade`"
_OTHER = "{where}: {why}"

_SQLITE: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, _BUSY),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, _BUSY),
    sqlite3.SQLITE_FULL: (StoreFullError, _FULL),
    sqlite3.SQLITE_IOERR: (StoreError, _BROKEN),
    sqlite3.SQLITE_READONLY: (StoreReadOnlyError, _READ_ONLY),
    sqlite3.SQLITE_PERM: (StoreReadOnlyError, _READ_ONLY),
    sqlite3.SQLITE_NOTADB: (StoreError, _NOT_OURS),
    sqlite3.SQLITE_CORRUPT: (StoreError, _NOT_OURS),
}

_POSTGRESQL: dict[str, tuple[type[StoreError], str]] = {
    "40001": (StoreBusyError, _BUSY),  # serialization failure
    "40P01": (StoreBusyError, _BUSY),  # deadlock
    "55P03": (StoreBusyError, _BUSY),  # lock not available
    "57014": (StoreBusyError, _BUSY),  # statement time-out
    "53300": (StoreBusyError, "{where}: {why}"),  # too many connections
    "53100": (StoreFullError, _FULL),
    "25006": (StoreReadOnlyError, _READ_ONLY),  # read-only transaction
    "42501": (StoreReadOnlyError, "{where}: this role may not do that ({why})"),
    "42P01": (StoreSchemaError, _SCHEMA),  # undefined table
    "42703": (StoreSchemaError, _SCHEMA),  # undefined column
}


@contextmanager
def translated(url: URL, where: str) -> Iterator[None]:
    """Raises the database's errors inside as StoreError or one of its kinds.

    Args:
        url: the database's.
        where: the database in words, without its password.
    """
    try:
        yield
    except PoolTimeoutError as error:
        raise StoreBusyError(f"{where}: too many threads use this store at once; try again later") from error
    except DBAPIError as error:
        raise _translate(error.orig, url, where) from error
    except sqlite3.Error as error:  # from a new connection's first words, which SQLAlchemy does not wrap
        raise _translate(error, url, where) from error


def _translate(error: BaseException | None, url: URL, where: str) -> StoreError:
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without the extended part
        if code == sqlite3.SQLITE_CANTOPEN:
            return _cannot_open(url, where)
        kind, text = _SQLITE.get(code, (StoreError, _OTHER))
        return kind(text.format(where=where, why=error))
    kind, text = _POSTGRESQL.get(getattr(error, "sqlstate", None) or "", (StoreError, _OTHER))
    # The primary message alone: its details may quote values.
    why = getattr(getattr(error, "diag", None), "message_primary", None) or error
    return kind(text.format(where=where, why=str(why).strip()))


def _cannot_open(url: URL, where: str) -> StoreError:
    """SQLite says only that it cannot open; the file system says why."""
    path = Path((url.database or "").removeprefix("file:"))
    if path.is_dir():
        return StoreError(f"{where} is a folder: name a file in it")
    if not path.parent.is_dir():
        return StoreError(f"{where}: there is no folder {path.parent}: make it first")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        return StoreReadOnlyError(_READ_ONLY.format(where=where))
    return StoreError(f"{where}: the file cannot be opened")
