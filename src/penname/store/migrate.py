"""Bringing a database to the newest schema, once, whoever else tries at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Inspector, inspect, text

from penname.errors import StoreSchemaError
from penname.store.database import Database
from penname.store.schema import HEAD, VERSION_TABLE, metadata

if TYPE_CHECKING:
    from alembic.config import Config

_LOCK = 0x70656E6E616D65  # "penname": the advisory lock of those who upgrade


def current(connection: Connection) -> str | None:
    """The database's schema, without loading Alembic; None where penname has made no tables yet."""
    # Asked first, as PostgreSQL gives a transaction up after an error.
    if connection.dialect.name == "sqlite":
        found = text("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = :name")
    else:
        found = text("SELECT to_regclass(:name)")
    if connection.scalar(found, {"name": VERSION_TABLE}) is None:
        return None
    version: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    return version


def upgrade(database: Database) -> None:
    """Makes or upgrades the tables, in one transaction.

    Raises:
        StoreSchemaError: made by a newer penname, or the database is another program's.
    """
    with database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        version = current(connection)  # again, under the lock: another process may have been faster
        if version == HEAD:
            return
        refuse_newer(version, database.where)
        if version is None:
            _refuse_foreign(inspect(connection), database)
        _run(connection)


def refuse_newer(version: str | None, where: str) -> None:
    """Raises StoreSchemaError where `version` is none that this penname knows."""
    if version is not None and version > HEAD:
        raise StoreSchemaError(
            f"{where} was made by a newer penname (schema {version}; this one knows {HEAD}): "
            "upgrade with `pip install --upgrade penname`"
        )


def config() -> Config:
    """Alembic's settings: the migrations inside this package, and no file beside it."""
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", "penname.store:migrations")
    return settings


def _run(connection: Connection) -> None:
    from alembic import command

    settings = config()
    settings.attributes["connection"] = connection
    command.upgrade(settings, HEAD)


def _refuse_foreign(tables: Inspector, database: Database) -> None:
    """penname adds its tables to no other program's: on SQLite to no file that has any."""
    found = tables.get_table_names()
    if database.is_sqlite:
        others = [name for name in found if name != VERSION_TABLE]
    else:
        others = [name for name in found if name in metadata.tables]
    if others:
        raise StoreSchemaError(
            f"{database.where} holds tables of another program ({', '.join(others[:3])} …): "
            "give penname a file, database or schema of its own"
        )
