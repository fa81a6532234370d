"""What is PostgreSQL's own: the driver, the URL, the upgrade, waiting for others' locks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url

import stores
from penname.errors import (
    MissingPackageError,
    StoreBusyError,
    StoreError,
    StoreReadOnlyError,
    StoreSchemaError,
)
from penname.records import Authored, Document
from penname.store import Schema, Store
from penname.store.schema import HEAD


@pytest.fixture
def url() -> str:
    return stores.empty_database()


@pytest.fixture
def other(url: str) -> Iterator[Engine]:
    """The same database by another program."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


def test_a_database_without_tables_asks_for_an_upgrade(url: str) -> None:
    with pytest.raises(StoreSchemaError, match=r"no tables of penname yet .* run `penname db upgrade`"):
        Store(url)
    with Store(url, check=False) as store:
        assert store.schema == Schema(None, HEAD)
        with pytest.raises(StoreSchemaError, match=r"tables are missing .* run `penname db upgrade`"):
            store.n_users  # noqa: B018
        assert store.upgrade() == Schema(HEAD, HEAD)
    with Store(url) as store:
        assert store.n_users == 0


def test_another_programs_tables_are_left_alone(url: str, other: Engine) -> None:
    with other.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE users (id int)")
    with Store(url, check=False) as store:
        with pytest.raises(StoreSchemaError, match=r"another program \(users"):
            store.upgrade()
        assert store.schema.current is None
    with other.begin() as connection:  # in a schema of its own there is room
        connection.exec_driver_sql("CREATE SCHEMA own")
    separate = f"{url}&options=-csearch_path%3Down"
    with Store(separate, check=False) as store:
        store.upgrade()
        assert store.add_user("a").id == "a"


def test_a_newer_schema_is_refused(url: str, other: Engine) -> None:
    with Store(url, check=False) as store:
        store.upgrade()
    with other.begin() as connection:
        connection.exec_driver_sql("UPDATE penname_schema SET version_num = '9999'")
    with pytest.raises(StoreSchemaError, match="newer penname"):
        Store(url)
    with Store(url, check=False) as store, pytest.raises(StoreSchemaError, match="newer penname"):
        store.upgrade()


def test_writers_wait_only_for_writers_of_the_same_user(url: str, other: Engine) -> None:
    with Store(url, check=False, busy_timeout=0.05) as store:
        store.upgrade()
        alice, bob = store.add_user("alice"), store.add_user("bob")
        with other.begin() as connection:
            connection.exec_driver_sql("SELECT * FROM users WHERE id = 'alice' FOR UPDATE")
            assert bob.add([Document(text="goes on")]).new == 1
            assert alice.documents() == []
            with pytest.raises(StoreBusyError):
                alice.add([Document(text="waits")])
        assert alice.add([Document(text="waits")]).new == 1


def test_a_role_that_may_only_read_gets_a_clear_error(url: str) -> None:
    with Store(url, check=False) as store:
        store.upgrade()
    with (
        Store(f"{url}&options=-cdefault_transaction_read_only%3Don") as reader,
        pytest.raises(StoreReadOnlyError, match="cannot be written"),
    ):
        reader.add_user("a")


def test_connections_that_the_server_cut_are_opened_again(url: str, other: Engine) -> None:
    with Store(url, check=False) as store:
        store.upgrade()
        with other.begin() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        store.add([Authored(user="a", document=Document(text="t"))])
        assert store.user("a").count == 1


def test_passwords_are_not_shown() -> None:
    for secret in ("postgresql://u:pa55@localhost/db", "postgresql://localhost/db?password=pa55"):
        with Store(secret, check=False) as store:
            assert "pa55" not in store.url + repr(store)
            assert store.url.startswith("postgresql://")


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"postgresql://u:\*\*\*@.*No such file") as caught:
        Store(f"postgresql://u:pa55@/db?host={tmp_path}")
    assert "pa55" not in str(caught.value)


def test_a_missing_driver_is_answered_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'penname\[postgresql\]'"):
        Store("postgresql://localhost/db")
