"""Which folders were trained from a store: where else an erase has to look."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from sqlalchemy import insert, select, update

from penname.records import check_text
from penname.store.database import Database
from penname.store.results import TrainedFolder
from penname.store.schema import from_micros, to_micros, trained


def add_folder(database: Database, path: Path | str, method: str) -> None:
    """Notes the folder; one that is noted already keeps its place and gets the new method and time."""
    where = check_text(str(Path(path).expanduser().resolve()))
    values = {"method": check_text(method), "added_at": to_micros(datetime.now(UTC))}
    with database.write() as connection:
        known = connection.execute(update(trained).where(trained.c.path == where).values(values))
        if not known.rowcount:
            connection.execute(insert(trained), {"path": where, **values})


def folders(database: Database) -> list[TrainedFolder]:
    """All folders, in the order in which they were first noted."""
    query = select(trained.c.path, trained.c.method, trained.c.added_at).order_by(trained.c.pk)
    with database.read() as connection:
        rows = connection.execute(query).all()
    return [
        TrainedFolder(Path(row.path), row.method, cast(datetime, from_micros(row.added_at))) for row in rows
    ]
