"""Erasing: first the rows, then their bytes."""

from __future__ import annotations

import time

from sqlalchemy import Connection, FromClause, delete, exists, func, insert, select

from penname.errors import StoreBusyError, StoreError
from penname.store.database import Database
from penname.store.results import Erased
from penname.store.schema import (
    documents,
    erasures,
    gists,
    keys,
    metadata,
    preferences,
    profiles,
    request_users,
    requests,
    users,
    vectors,
)


def delete_user(connection: Connection, user_pk: int) -> Erased:
    """Deletes the user, all that cascades from there, and whole requests; notes that bytes are left."""

    def count(rows: FromClause, column: str = "user_pk") -> int:
        query = select(func.count()).select_from(rows).where(rows.c[column] == user_pk)
        return connection.scalar(query) or 0

    counts = {table.name: count(table) for table in (documents, gists, profiles, preferences, keys)}
    counts["vectors"] = count(documents.join(vectors), "documents_user_pk")
    naming = select(request_users.c.request_pk).where(request_users.c.user_pk == user_pk)
    counts["requests"] = connection.execute(delete(requests).where(requests.c.pk.in_(naming))).rowcount
    connection.execute(delete(users).where(users.c.pk == user_pk))
    if connection.dialect.name == "sqlite":
        connection.execute(insert(erasures))
    return Erased(**counts)


def scrub(database: Database, user: str) -> None:
    """`compact` after an erase on SQLite; its errors say what has been done already."""
    try:
        compact(database)
    except StoreError as error:
        raise type(error)(
            f"user {user!r} is erased: the rows are gone, but the file may still hold their bytes. "
            f"{error}. Then open the store again, or call its compact(), to finish."
        ) from error


def compact(database: Database, patience: float | None = None) -> None:
    """Rewrites the database without what was deleted. On SQLite: VACUUM, then the log is emptied.

    Args:
        database: the store's.
        patience: seconds to wait for other processes; None: the store's time-out. SQLite only.

    Raises:
        StoreBusyError: another process read or wrote all the time.
        StoreFullError: there is no room for the second copy that this needs for a while.
    """
    with database.bare() as connection:
        if not database.is_sqlite:
            for table in metadata.sorted_tables:
                connection.exec_driver_sql(f"VACUUM FULL {table.name}")
            return
        done = connection.scalar(select(func.max(erasures.c.pk)))
        seconds = database.busy_timeout if patience is None else patience
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(seconds * 1000)}")
        try:
            _rewrite(connection, database.where, seconds)
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(database.busy_timeout * 1000)}")
    if done is not None:  # later erases, of other processes, are theirs to finish
        with database.write() as connection:
            connection.execute(delete(erasures).where(erasures.c.pk <= done))


def unfinished(connection: Connection) -> bool:
    """Whether an erase left bytes behind: its process was killed, or found the file in use."""
    return bool(connection.scalar(select(exists().where(erasures.c.pk > 0))))


def _rewrite(connection: Connection, where: str, patience: float) -> None:
    connection.exec_driver_sql("VACUUM")
    # The log still holds pages as they were. SQLite waits for those who read them, but not for another
    # connection that is emptying the log just now, as every thousand pages one that commits does.
    deadline = time.monotonic() + patience
    while connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar():
        if time.monotonic() > deadline:
            raise StoreBusyError(
                f"{where}: the log cannot be emptied while another process or thread reads: let it finish"
            )
        time.sleep(0.01)
