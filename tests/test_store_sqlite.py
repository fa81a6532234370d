"""The SQLite file: erased bytes, kills, several processes, and everything that can be wrong with a file."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

import stores
from penname.errors import (
    BadInputError,
    PennameError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    UnknownUserError,
)
from penname.records import Authored, Document, Preference, Profile, Request, User
from penname.store import Store

SECRET = "Xylophonsekret"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(stores.fresh("sqlite", tmp_path))


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python of its own that runs `code`, with its output as a pipe."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def bytes_of(file: Path) -> bytes:
    return b"".join(one.read_bytes() for one in sorted(file.parent.iterdir()))


def plant(store: Store) -> None:
    """The secret in everything that is kept of a user, in small and in large."""
    long = f"{SECRET} " * 5000
    store.add(
        [
            User(id=f"u-{SECRET}", name=SECRET),
            *(
                Authored(
                    user=f"u-{SECRET}",
                    document=Document(
                        id=f"{n}{SECRET}",
                        title=SECRET,
                        text=long if n % 5 == 0 else SECRET,
                        fields={SECRET: SECRET},
                    ),
                )
                for n in range(40)
            ),
            Profile(user=f"u-{SECRET}", text=SECRET, fingerprint=SECRET, model=SECRET),
            Preference(user=f"u-{SECRET}", kind="choice", prompt=SECRET, chosen=long, rejected=SECRET),
            Request(id=SECRET, task=SECRET, input=long, users=("other", f"u-{SECRET}"), gold=SECRET),
        ]
    )
    user = store.user(f"u-{SECRET}")
    user.put_gists({SECRET: long})
    # A vector whose bytes are the secret's, as float32 are four of them each.
    import numpy as np

    padded = SECRET.encode().ljust(16)[:16]
    user.put_vectors(f"m{SECRET}", {f"1{SECRET}": np.frombuffer(padded, dtype="<f4")})


def test_erased_bytes_are_gone_from_all_files(file: Path) -> None:
    with Store(file) as store, Store(file) as second:
        store.add(Authored(user="other", document=Document(text=f"kept {n} " * 50)) for n in range(100))
        second.n_users  # noqa: B018 - a second connection that lies idle
        plant(store)
        assert SECRET.encode() in bytes_of(file)
        erased = store.user(f"u-{SECRET}").erase()
        assert erased.documents == 40
        assert (erased.vectors, erased.gists, erased.requests) == (1, 1, 1)
        assert SECRET.encode() not in bytes_of(file)
        assert store.user("other").count == 100
    assert SECRET.encode() not in bytes_of(file)


def test_a_reader_keeps_bytes_for_a_while_and_the_error_says_so(file: Path) -> None:
    with Store(file, busy_timeout=0.05) as store:
        plant(store)
        reader = sqlite3.connect(file, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM users").fetchone()
        with pytest.raises(StoreBusyError, match=r"is erased: the rows are gone, but .* bytes.*compact"):
            store.user(f"u-{SECRET}").erase()
        with pytest.raises(UnknownUserError):
            store.user(f"u-{SECRET}")
        with pytest.raises(StoreBusyError):
            store.compact()
        Store(file).close()  # opens, although the reader is still there
        assert SECRET.encode() in bytes_of(file)
        reader.execute("COMMIT")
        Store(file).close()  # and the next opening finishes the work
        assert SECRET.encode() not in bytes_of(file)
        reader.close()


def test_an_erase_that_was_killed_is_finished_by_the_next_opening(file: Path) -> None:
    with Store(file) as store:
        plant(store)
    child = python(
        """
        import os, signal, sys
        from sqlalchemy import event
        from sqlalchemy.engine import Engine
        from penname.store import Store

        @event.listens_for(Engine, "before_cursor_execute")
        def before(connection, cursor, statement, *rest):
            if statement == "VACUUM":
                os.kill(os.getpid(), signal.SIGKILL)

        Store(sys.argv[1]).user(sys.argv[2]).erase()
        """,
        file,
        f"u-{SECRET}",
    )
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert SECRET.encode() in bytes_of(file)
    with Store(file) as store:
        assert SECRET.encode() not in bytes_of(file)
        assert [user.id for user in store.users()] == ["other"]


def test_a_kill_keeps_every_acknowledged_batch(file: Path) -> None:
    child = python(
        """
        import itertools, sys
        from penname.records import Authored, Document
        from penname.store import Store

        items = (Authored(user="a", document=Document(id=str(n), text="x" * 500)) for n in itertools.count())
        Store(sys.argv[1]).add(items, batch=50, on_batch=lambda added: print(added.new, flush=True))
        """,
        file,
    )
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(5)]
    child.kill()
    told += [int(line) for line in child.communicate()[0].splitlines() if line.strip()]
    with Store(file) as store:
        alice = store.user("a")
        assert alice.count >= told[-1]
        assert alice.count % 50 == 0  # whole batches only
        assert {int(one.id) for one in alice.documents()} == set(range(alice.count))
    with contextlib.closing(sqlite3.connect(file)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_processes_open_a_new_file_and_write_at_once(tmp_path: Path) -> None:
    code = """
        import sys
        from penname.records import Authored, Document
        from penname.store import Store

        print("ready", flush=True)
        sys.stdin.readline()
        with Store(sys.argv[1]) as store:
            for n in range(20):
                item = [Authored(user=u, document=Document(id=f"{sys.argv[2]}-{n}", text="t")) for u in "ab"]
                store.add(item)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "new.db")]
    children = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:  # all are loaded: now they start together
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0, 0]
    with Store(tmp_path / "new.db") as store:
        assert store.n_users == 2
        assert store.user("a").count == store.user("b").count == 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own_connections(file: Path) -> None:
    with Store(file) as store:
        store.add_user("parent")
        assert in_child(lambda: str(store.add_user("child"))) == ""
        assert [user.id for user in store.users()] == ["child", "parent"]


def test_another_writer_is_waited_for_and_then_an_error(file: Path) -> None:
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with Store(file, busy_timeout=0.01) as store:
        assert store.n_users == 0  # readers go on
        with pytest.raises(StoreBusyError, match=r"store\.db: another process"):
            store.add_user("a")
        writer.execute("ROLLBACK")
        store.add_user("a")
    writer.close()


def test_a_full_disk_loses_nothing_that_was_acknowledged(file: Path) -> None:
    def small(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 100").close()

    event.listen(Pool, "connect", small)
    told: list[int] = []
    items = (Authored(user="a", document=Document(id=f"{n}", text="x" * 2000)) for n in range(10_000))
    try:
        with Store(file) as store, pytest.raises(StoreFullError, match="disk is full"):
            store.add(items, batch=10, on_batch=lambda added: told.append(added.new))
    finally:
        event.remove(Pool, "connect", small)
    with Store(file) as store:
        assert store.user("a").count == told[-1] > 0
        assert store.add_user("b").add([Document(text="goes on")]).new == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on file sizes")
def test_a_limit_on_file_sizes_is_told_and_loses_nothing(file: Path) -> None:
    import resource

    told: list[int] = []
    items = (Authored(user="a", document=Document(id=f"{n}", text="x" * 2000)) for n in range(1000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(file) as store:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
            with pytest.raises(StoreError, match="limit on file sizes"):
                store.add(items, batch=10, on_batch=lambda added: told.append(added.new))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert store.user("a").count == told[-1] > 0


def test_a_read_only_file_can_be_read(file: Path) -> None:
    with Store(file) as store:
        store.add_user("a")
        with Store(f"sqlite:///file:{file}?mode=ro&uri=true") as reader:
            assert reader.user("a").documents() == []
            with pytest.raises(StoreReadOnlyError, match="cannot be written"):
                reader.add_user("b")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    Store(folder / "there.db").close()
    (folder / "there.db").chmod(0o444)
    folder.chmod(0o555)
    open_for_all(tmp_path)
    for name in ("there.db", "new.db"):
        told = in_child(lambda name=name: Store(folder / name).close(), unprivileged=True)
        assert told.startswith(f"StoreReadOnlyError: {folder / name}"), told


def test_a_new_file_is_private(tmp_path: Path) -> None:
    with Store(tmp_path / "new.db") as store:
        store.add_user("a")
        modes = {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    assert modes == {0o600}


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be one" * 100, b"SQLite format 3\0" * 999]
)
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"notes\.txt"):
        Store(file)
    assert file.read_bytes() == content


def test_a_damaged_file_is_an_error(file: Path) -> None:
    with Store(file) as store:
        store.add(Authored(user="a", document=Document(id=f"{n}", text="x" * 999)) for n in range(300))
    content = bytearray(file.read_bytes())
    content[8192:-4096] = b"\xa5" * (len(content) - 12288)
    file.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"), Store(file) as store:
        store.user("a").documents()


def test_places_that_cannot_be_are_explained(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    for place, why in [
        (tmp_path, "is a folder"),
        (f"sqlite:///file:{tmp_path}?mode=rw&uri=true", "is a folder"),
        (tmp_path / "missing" / "x.db", "there is no folder .*missing: make it first"),
        (tmp_path / "plain" / "x.db", "there is no folder"),
        (":memory:", "needs a file"),
        ("", "needs a file"),
        ("sqlite://", "needs a file"),
        ("postgresql+asyncpg://host/db", "not postgresql.asyncpg://"),
        ("mysql://host/db", "not mysql://"),
        ("postgresql://host:port/db", "cannot be read"),
    ]:
        with pytest.raises(StoreError, match=why):
            Store(place)


def test_the_place_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENNAME_DB", str(tmp_path / "named.db"))
    with Store() as store:
        assert store.url == f"sqlite:///{tmp_path / 'named.db'}"
    assert (tmp_path / "named.db").exists()


def test_errors_do_not_quote_what_users_wrote(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as raw:
        raw.execute("CREATE TRIGGER no BEFORE INSERT ON documents BEGIN SELECT RAISE(ABORT, 'no'); END")
    with Store(file) as store:
        alice = store.add_user("a")
        with pytest.raises(StoreError) as caught:
            alice.add([Document(text=SECRET)])
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert not isinstance(caught.value, BadInputError)


def test_every_connection_is_durable_and_checks_keys(file: Path) -> None:
    seen: list[tuple[object, ...]] = []

    def look(connection: sqlite3.Connection, *_: object) -> None:
        names = ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        seen.append(tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names))

    event.listen(Pool, "checkout", look)
    try:
        with Store(file, busy_timeout=7) as store:
            store.add_user("a")
    finally:
        event.remove(Pool, "checkout", look)
    assert seen[-1] == ("wal", 2, 1, 1, 7000)


# --- helpers


def open_for_all(path: Path) -> None:
    """Lets other accounts pass through the folders that pytest makes for its own account only."""
    for folder in (path, *path.parents):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o055)


def in_child(call: Callable[[], object], unprivileged: bool = False) -> str:
    """Runs `call` in a forked child; "" or the error it raised. Root becomes nobody where asked."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = "another error"
        try:
            if unprivileged and os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            call()
            told = ""
        except PennameError as error:
            told = f"{type(error).__name__}: {error}"
        finally:  # no more of pytest in here
            os.write(writing, told.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(pid, 0)
    return told
