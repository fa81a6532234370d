"""The migrations: they make the tables that the code expects, and refuse what is not theirs."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, make_url

import stores
from penname.errors import StoreSchemaError
from penname.store import Schema, Store
from penname.store.migrate import config
from penname.store.schema import HEAD, VERSION_TABLE, metadata


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_the_migrations_make_the_tables_of_the_code(backend: str, tmp_path: Path) -> None:
    location = stores.fresh(backend, tmp_path)
    url = make_url(f"sqlite:///{location}" if backend == "sqlite" else location)
    engine = create_engine(url if backend == "sqlite" else url.set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    engine.dispose()
    assert differences == []


def test_the_newest_migration_is_the_one_that_the_code_names() -> None:
    script = ScriptDirectory.from_config(config())
    assert script.get_heads() == [HEAD]
    for step in script.walk_revisions():
        assert Path(step.path).name.startswith(f"{step.revision}_")


def test_a_newer_file_is_refused_untouched(tmp_path: Path) -> None:
    file = stores.fresh("sqlite", tmp_path)
    with contextlib.closing(sqlite3.connect(file)) as raw, raw:
        raw.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(StoreSchemaError, match=rf"newer penname \(schema 9999; this one knows {HEAD}\)"):
        Store(file)
    with Store(file, check=False) as store:
        assert store.schema == Schema("9999", HEAD)
        with pytest.raises(StoreSchemaError, match="newer penname"):
            store.upgrade()


def test_a_file_of_the_first_schema_is_brought_up_to_date_with_all_that_it_holds(tmp_path: Path) -> None:
    file = stores.fresh("sqlite", tmp_path)
    with Store(file) as store:
        store.add_user("ann", "Ann")
    with contextlib.closing(sqlite3.connect(file)) as raw, raw:
        for table in ("trained", "key_users", "keys"):
            raw.execute(f"DROP TABLE {table}")
        raw.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0001'")
    with Store(file) as store:
        assert store.schema == Schema(HEAD, HEAD)
        assert store.user("ann").name == "Ann"
        assert store.trained() == []
        assert store.keys() == []


def test_another_programs_file_is_refused_untouched(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(file)) as raw, raw:
        raw.execute("CREATE TABLE songs (title)")
    with pytest.raises(StoreSchemaError, match=r"another program \(songs"):
        Store(file)
    with contextlib.closing(sqlite3.connect(file)) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == [("songs",)]


def test_a_store_that_is_up_to_date_opens_without_alembic(tmp_path: Path) -> None:
    file = stores.fresh("sqlite", tmp_path)
    code = "import sys; from penname.store import Store; Store(sys.argv[1]); print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
