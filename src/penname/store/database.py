"""The connection to a database: opening it, and transactions that wait, commit and fail as promised."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from penname.errors import MissingPackageError, StoreError, StoreReadOnlyError
from penname.store.failures import translated

_BEGIN = "penname_begin"  # execution option: the words that begin the transaction on SQLite
_SECRETS = ("password", "sslpassword", "passfile")


class Database:
    """An engine with three kinds of transaction: `read`, `write` and none (`bare`).

    Args:
        location: a file or a URL, as in `Store`.
        busy_timeout: seconds that a call waits for other processes.
        create: whether an SQLite file that is not there is made.

    Raises:
        StoreError: the location is none that penname can use.
        MissingPackageError: PostgreSQL without its driver.
    """

    def __init__(self, location: str | Path, busy_timeout: float, create: bool = True) -> None:
        self.url = _url(location)
        self.busy_timeout = busy_timeout
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.shown = _shown(self.url)
        self.engine = self._sqlite(create) if self.is_sqlite else self._postgresql()
        self._process = os.getpid()

    @property
    def where(self) -> str:
        """The database in an error's words: a file's path, or the URL without its password."""
        return self.url.database or "" if self.is_sqlite else self.shown

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent snapshot; others go on writing."""
        with self._connected() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """All or nothing. On SQLite this is the only writer from its first statement on, so that what it
        has read stays true until it commits."""
        with self._connected() as connection:
            connection = connection.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
            with connection.begin():
                yield connection

    @contextmanager
    def bare(self) -> Iterator[Connection]:
        """No transaction: for VACUUM and checkpoints."""
        with self._connected() as connection:
            if self.is_sqlite:
                yield connection.execution_options(**{_BEGIN: ""})
            else:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        if self._process != os.getpid():  # forked: the parent's connections are not ours to use or close
            self.engine.dispose(close=False)
            self._process = os.getpid()
        with translated(self.url, self.where), self.engine.connect() as connection:
            yield connection

    def _sqlite(self, create: bool) -> Engine:
        if "uri" not in self.url.query:
            file = Path(self.url.database or "")
            if not create and not file.exists():
                raise StoreError(f"there is no store at {file}: check the name, or import something into it")
            _make_file(file)
        # The driver begins no transactions by itself: `begun` does, in the words that each needs.
        options = {"timeout": self.busy_timeout, "isolation_level": None}
        engine = create_engine(self.url, connect_args=options, hide_parameters=True)

        @event.listens_for(engine, "connect")
        def connected(connection: sqlite3.Connection, _: object) -> None:
            for pragma in ("foreign_keys = ON", "synchronous = FULL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {pragma}").close()
            _use_wal(connection, self.busy_timeout)

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            words = connection.get_execution_options().get(_BEGIN, "BEGIN")
            if words:
                connection.exec_driver_sql(words)

        return engine

    def _postgresql(self) -> Engine:
        try:
            engine = create_engine(self.url, pool_pre_ping=True, hide_parameters=True)
        except ImportError as error:
            raise MissingPackageError(
                "psycopg", "a PostgreSQL store", "pip install 'penname[postgresql]'"
            ) from error

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _: object) -> None:
            connection.execute(f"SET lock_timeout = {round(self.busy_timeout * 1000)}")
            connection.execute("SET client_encoding = 'UTF8'")
            connection.commit()

        return engine


def _url(location: str | Path) -> URL:
    text = str(location)
    if "://" not in text:
        if not text or text == ":memory:":
            raise StoreError("a store needs a file (or a URL): penname keeps what it is told")
        return URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # a port that is no number
        raise StoreError("the store's URL cannot be read: write postgresql://user@host/database") from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != "sqlite":
        raise StoreError(f"a store's URL begins with sqlite:// or postgresql://, not {url.drivername}://")
    if not url.database or url.database == ":memory:":
        raise StoreError("a store needs a file (sqlite:///FILE): penname keeps what it is told")
    return url


def _shown(url: URL) -> str:
    hidden = {name: "***" for name in _SECRETS if name in url.query}
    shown = url.update_query_dict(hidden) if hidden else url
    return shown.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


def _make_file(path: Path) -> None:
    """An empty file that only its owner can read, where there is none; SQLite's log takes its mode from it.

    An existing file is never opened here: closing it again would drop this process's locks on it.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if path.is_dir():
            raise StoreError(f"{path} is a folder: name a file in it") from None
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path}: there is no folder {path.parent}: make it first") from None
    except OSError as error:
        raise StoreReadOnlyError(f"{path}: the file cannot be made ({error.strerror})") from error


def _use_wal(connection: sqlite3.Connection, patience: float) -> None:
    """WAL mode, which the file keeps. Two processes may turn a fresh file at once, and for this statement
    SQLite does not always wait by itself."""
    deadline = time.monotonic() + patience
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    while mode != "wal":
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise StoreError("SQLite cannot keep a log (WAL) there: put the store on a local disk")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
