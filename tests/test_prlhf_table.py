"""The users' table: rows by user, beside a dict, through kills, growth, erases, bad files and many users."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from safetensors import safe_open
from safetensors.numpy import load_file

from penname.errors import BadInputError, StoreBusyError, StoreReadOnlyError, TrainedError
from penname.methods.prlhf.table import TABLE, UserTable
from penname.train.index import INDEX, create_index, saw

SHAPE = (2, 3)
ODD_IDS = ["../../etc/passwd", "o'brien", "'; DROP TABLE rows;--", "a/b", "ž", "🙂", "ANN", "ann"]


def row(number: float) -> np.ndarray:
    return np.arange(6, dtype=np.float32).reshape(SHAPE) + np.float32(10 * number + 0.5)


def make(folder: Path, *users: str) -> UserTable:
    shared = {"generic": row(-1), "bias": np.float32([7])}
    return UserTable.create(folder, shared, [(user, row(n), n) for n, user in enumerate(users)], SHAPE)


def stored(folder: Path) -> bytes:
    return (folder / TABLE).read_bytes()


def test_rows_come_back_as_they_were_given(tmp_path: Path) -> None:
    with make(tmp_path, *ODD_IDS) as made:
        assert len(made) == len(ODD_IDS)
    with UserTable.open(tmp_path) as table:
        assert table.row_shape == SHAPE
        for number, user in enumerate(ODD_IDS):
            assert user in table
            np.testing.assert_array_equal(table.row(user), row(number))
            learnt = table.learnt(user)
            assert learnt is not None
            assert learnt.preferences == number
        assert table.row("nobody") is None
        assert table.learnt("nobody") is None
        assert "nobody" not in table
        assert sorted(table.shared) == ["bias", "generic"]
        np.testing.assert_array_equal(table.shared["generic"], row(-1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX, TABLE], "ids become no paths"


def test_no_id_stands_in_the_files(tmp_path: Path) -> None:
    with make(tmp_path, "ann@example.org") as table:
        table.put("bob@example.org", row(3), 1)
    for path in tmp_path.iterdir():
        assert b"example.org" not in path.read_bytes()


def test_safetensors_reads_the_file(tmp_path: Path) -> None:
    with make(tmp_path, "ann", "bob") as table:
        for number in range(50):  # beyond the first capacity
            table.put(f"u{number}", row(100 + number), 1)
    tensors = load_file(tmp_path / TABLE)
    np.testing.assert_array_equal(tensors["generic"], row(-1))
    np.testing.assert_array_equal(tensors["rows"][:2], [row(0), row(1)])
    with safe_open(tmp_path / TABLE, "numpy") as file:
        assert file.metadata().keys() == {"penname"}


def test_a_new_row_takes_the_old_ones_place_and_the_old_is_zeroed(tmp_path: Path) -> None:
    with make(tmp_path, "ann", "bob") as table:
        table.put("ann", row(500), 9)
        np.testing.assert_array_equal(table.row("ann"), row(500))
        learnt = table.learnt("ann")
        assert learnt is not None
        assert learnt.preferences == 9
        assert len(table) == 2
    rows = load_file(tmp_path / TABLE)["rows"]
    assert [one for one in rows if np.array_equal(one, row(0))] == []


def test_other_rows_stay_bit_identical_and_in_place(tmp_path: Path) -> None:
    users = [f"u{number}" for number in range(20)]
    with make(tmp_path, *users) as table:
        before = load_file(tmp_path / TABLE)["rows"][:20].tobytes()
        table.put("new", row(77), 1)
        assert table.erase("u19")
        table.put("new", row(78), 2)
        after = load_file(tmp_path / TABLE)["rows"][:20].tobytes()
        assert after[: 19 * 24] == before[: 19 * 24]


def test_erase_leaves_no_byte_of_the_row(tmp_path: Path) -> None:
    with make(tmp_path, "ann", "bob") as table:
        assert row(0).tobytes() in stored(tmp_path)
        assert table.erase("ann")
        assert table.row("ann") is None
        assert not table.erase("ann")
        np.testing.assert_array_equal(table.row("bob"), row(1))
        assert row(0).tobytes() not in stored(tmp_path)
        assert saw(tmp_path, "ann"), "the weights stay what they are"


def test_a_file_that_grows_takes_disk_for_its_rows_only(tmp_path: Path) -> None:
    wide = (64, 64)
    with UserTable.create(tmp_path, {}, [], wide) as table:
        for number in range(40):
            table.put(f"u{number}", np.full(wide, number, np.float32), 1)
        for number in range(40):
            np.testing.assert_array_equal(table.row(f"u{number}"), np.full(wide, number, np.float32))
    with UserTable.open(tmp_path) as again:
        assert len(again) == 40
    state = (tmp_path / TABLE).stat()
    assert state.st_size >= 40 * 64 * 64 * 4
    if hasattr(state, "st_blocks"):
        assert state.st_blocks * 512 < state.st_size


def test_many_users_are_served_without_reading_all_rows(tmp_path: Path) -> None:
    number, shape = 100_000, (64,)
    values = np.arange(number, dtype=np.float32)[:, None] + np.zeros(shape, np.float32)
    UserTable.create(tmp_path, {}, [(f"u{n}", values[n], 1) for n in range(number)], shape).close()
    assert (tmp_path / TABLE).stat().st_size > 25_000_000
    tracemalloc.start()
    try:
        with UserTable.open(tmp_path) as table:
            np.testing.assert_array_equal(table.row("u98765"), np.full(shape, 98_765, np.float32))
            table.put("u3", np.ones(shape, np.float32), 1)
            assert len(table) == number
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# --- bad input


@pytest.mark.parametrize(
    ("bad", "why"),
    [(np.zeros(6), "shape"), (np.full(SHAPE, np.nan), "NaN"), (np.full(SHAPE, np.inf), "NaN or infinity")],
)
def test_a_bad_row_is_refused_and_changes_nothing(tmp_path: Path, bad: np.ndarray, why: str) -> None:
    with make(tmp_path, "ann") as table:
        before = stored(tmp_path)
        with pytest.raises(BadInputError, match=why):
            table.put("ann", bad, 1)
        assert stored(tmp_path) == before
    (tmp_path / "other").mkdir()
    with pytest.raises(BadInputError, match="'ann'"):
        UserTable.create(tmp_path / "other", {}, [("ann", bad, 1)], SHAPE)


def test_what_cannot_be_created(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="two rows"):
        UserTable.create(tmp_path, {}, [("ann", row(1), 1), ("ann", row(2), 1)], SHAPE)
    with pytest.raises(BadInputError, match="'rows'"):
        UserTable.create(tmp_path, {"rows": row(1)}, [], SHAPE)
    with pytest.raises(BadInputError, match="holds nothing"):
        UserTable.create(tmp_path, {}, [], (0, 3))
    make(tmp_path).close()
    with pytest.raises(TrainedError, match="there already"):
        make(tmp_path)
    with pytest.raises(TrainedError, match="there already"):
        create_index(tmp_path, ["ann"])


def test_missing_parts_are_told(tmp_path: Path) -> None:
    with pytest.raises(TrainedError, match=rf"holds no {TABLE}"):
        UserTable.open(tmp_path / "absent")
    make(tmp_path, "ann").close()
    (tmp_path / INDEX).unlink()
    with pytest.raises(TrainedError, match=rf"holds no {INDEX}"):
        UserTable.open(tmp_path)


@pytest.mark.parametrize("left", [0, 7, 100, 4096, 4500])
def test_a_table_cut_short_is_refused(tmp_path: Path, left: int) -> None:
    make(tmp_path, "ann").close()
    os.truncate(tmp_path / TABLE, left)
    with pytest.raises(TrainedError, match="cannot be used"):
        UserTable.open(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"F32"', b'"F16"'),
        (b'"rows"', b'"sows"'),
        (b"[0,24]", b"[0,20]"),
        (b'{"', b"[["),
        (b"[2,3]", b"[2,9]"),
    ],
)
def test_a_header_that_was_tampered_with_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    make(tmp_path, "ann").close()
    data = stored(tmp_path)
    assert old in data
    (tmp_path / TABLE).write_bytes(data.replace(old, new, 1))
    with pytest.raises(TrainedError, match="cannot be used"):
        UserTable.open(tmp_path)


def test_index_and_table_must_be_of_one_making(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make(tmp_path / name, "ann").close()
    shutil.copy(tmp_path / "a" / INDEX, tmp_path / "b" / INDEX)
    with pytest.raises(TrainedError, match="different tables"):
        UserTable.open(tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"no database" * 1000])
def test_a_damaged_index_is_refused(tmp_path: Path, content: bytes) -> None:
    make(tmp_path, "ann").close()
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(TrainedError, match=INDEX):
        UserTable.open(tmp_path)


def test_an_index_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "ann").close()
    with sqlite3.connect(tmp_path / INDEX) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(TrainedError, match="format 2; this penname reads 1"):
        UserTable.open(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_serves_and_refuses_changes(tmp_path: Path) -> None:
    make(tmp_path, "ann").close()
    for path in (tmp_path / TABLE, tmp_path / INDEX):
        path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        with UserTable.open(tmp_path) as table:
            np.testing.assert_array_equal(table.row("ann"), row(0))
            with pytest.raises(StoreReadOnlyError):
                table.put("ann", row(1), 1)
    finally:
        tmp_path.chmod(0o700)


# --- others at the same time


def test_a_writer_waits_for_others_and_then_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "ann").close()
    monkeypatch.setattr(
        "penname.train.index.Index.__init__.__kwdefaults__", {"fresh": False, "busy_timeout": 0}
    )
    other = sqlite3.connect(tmp_path / INDEX, isolation_level=None)
    try:
        with UserTable.open(tmp_path) as table:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusyError, match="try again"):
                table.put("ann", row(1), 1)
            np.testing.assert_array_equal(table.row("ann"), row(0))
    finally:
        other.close()


def test_an_open_table_sees_what_another_writes(tmp_path: Path) -> None:
    make(tmp_path, "ann").close()
    with UserTable.open(tmp_path) as reader, UserTable.open(tmp_path) as writer:
        for number in range(60):  # the file grows under the reader
            writer.put(f"u{number}", row(1000 + number), 1)
            np.testing.assert_array_equal(reader.row(f"u{number}"), row(1000 + number))
        reader.put("u7", row(3), 2)
        np.testing.assert_array_equal(writer.row("u7"), row(3))


def test_readers_see_a_whole_row_of_their_own_while_rows_move(tmp_path: Path) -> None:
    users = ["ann", "bob"]
    make(tmp_path, *users).close()

    def change(user: str) -> None:
        with UserTable.open(tmp_path) as table:
            for number in range(15):
                table.put(user, np.full(SHAPE, (users.index(user) + 1) * 100 + number, np.float32), 1)

    def read(user: str) -> set[float]:
        seen = set()
        with UserTable.open(tmp_path) as table:
            for _ in range(150):
                found = table.row(user)
                assert found is not None
                assert np.array_equal(found, row(users.index(user))) or len(np.unique(found)) == 1
                seen.add(float(found[0, 1]))
        return seen

    with ThreadPoolExecutor(4) as pool:
        changes = [pool.submit(change, user) for user in users]
        reads = [pool.submit(read, user) for user in users]
        for one in changes:
            one.result()
        assert all(value in {1.5, *range(100, 115)} for value in reads[0].result())
        assert all(value in {11.5, *range(200, 215)} for value in reads[1].result())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_must_open_its_own(tmp_path: Path) -> None:
    with make(tmp_path, "ann") as table:
        child = os.fork()
        if child == 0:
            try:
                table.row("ann")
            except TrainedError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# --- kills

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from penname.methods.prlhf.table import UserTable

table = UserTable.open(Path(sys.argv[1]))
real, calls = os.fsync, 0

def fsync(handle):
    global calls
    calls += 1
    real(handle)
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = fsync
if sys.argv[3] == "erase":
    table.erase("ann")
else:
    for number in range(int(sys.argv[4])):
        table.put(sys.argv[3], np.full((2, 3), 900 + number, np.float32), 5)
os._exit(0)
"""


def killed(folder: Path, flush: int, what: str, times: int = 1) -> None:
    """A process that puts or erases, and is killed right after its flush of that number."""
    script = [sys.executable, "-c", textwrap.dedent(KILLED), folder, str(flush), what, str(times)]
    assert subprocess.run(script, check=False).returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
@pytest.mark.parametrize(("flush", "there"), [(1, False), (2, False), (3, True)])
def test_a_put_that_is_killed_leaves_the_old_row_or_the_new(tmp_path: Path, flush: int, there: bool) -> None:
    make(tmp_path, "ann", "bob").close()
    killed(tmp_path, flush, "ann")
    new = np.full(SHAPE, 900, np.float32)
    with UserTable.open(tmp_path) as table:
        np.testing.assert_array_equal(table.row("ann"), new if there else row(0))
        np.testing.assert_array_equal(table.row("bob"), row(1))
        assert len(table) == 2
        table.erase("ann")  # takes what was left behind along
        assert row(0).tobytes() not in stored(tmp_path)
        assert new.tobytes() not in stored(tmp_path)
        table.put("cid", row(5), 1)
        np.testing.assert_array_equal(table.row("cid"), row(5))
        np.testing.assert_array_equal(table.row("bob"), row(1))


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
def test_a_put_that_is_killed_while_the_file_grows(tmp_path: Path) -> None:
    make(tmp_path, *(f"u{number}" for number in range(4))).close()
    with UserTable.open(tmp_path) as table:
        for number in range(4, 20):  # the capacity of 4 and 16 more is used up
            table.put(f"u{number}", row(number), 1)
    killed(tmp_path, 2, "ann")  # the hole is there, the header is not
    with UserTable.open(tmp_path) as table:
        assert "ann" not in table
        table.put("bob", row(50), 1)
        for number in range(20):
            np.testing.assert_array_equal(table.row(f"u{number}"), row(number))
    np.testing.assert_array_equal(load_file(tmp_path / TABLE)["rows"][20], row(50))


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
def test_an_erase_that_is_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    make(tmp_path, "ann", "bob").close()
    killed(tmp_path, 1, "erase")
    with UserTable.open(tmp_path) as table:
        assert "ann" not in table
        table.erase("ann")
        assert row(0).tobytes() not in stored(tmp_path)
        np.testing.assert_array_equal(table.row("bob"), row(1))


# --- the index alone


def test_a_run_without_users_still_knows_whom_it_saw(tmp_path: Path) -> None:
    create_index(tmp_path, ["ann", "bob", "ann"])
    assert saw(tmp_path, "ann")
    assert not saw(tmp_path, "cid")
    with pytest.raises(TrainedError, match="no users"):
        UserTable.open(tmp_path)


def test_who_is_fitted_later_was_not_seen_by_the_weights(tmp_path: Path) -> None:
    with make(tmp_path, "ann") as table:
        table.put("bob", row(1), 3)
    assert saw(tmp_path, "ann")
    assert not saw(tmp_path, "bob")


# --- against a dict

USERS = st.sampled_from([f"u{number}" for number in range(30)])
ROWS = st.integers(1, 10**6).map(lambda n: np.full(SHAPE, n, np.float32))


class Tables(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.table = make(self.folder, "u0", "u1")
        self.model = {"u0": row(0), "u1": row(1)}

    def teardown(self) -> None:
        self.table.close()
        shutil.rmtree(self.folder)

    @rule(user=USERS, new=ROWS)
    def put(self, user: str, new: np.ndarray) -> None:
        self.table.put(user, new, 1)
        self.model[user] = new

    @rule(user=USERS)
    def erase(self, user: str) -> None:
        assert self.table.erase(user) == (self.model.pop(user, None) is not None)

    @rule()
    def reopen(self) -> None:
        self.table.close()
        self.table = UserTable.open(self.folder)

    @invariant()
    def all_rows_are_the_users_own_and_nothing_else_is_there(self) -> None:
        assert len(self.table) == len(self.model)
        for number in range(30):
            found, wanted = self.table.row(f"u{number}"), self.model.get(f"u{number}")
            assert (found is None) == (wanted is None)
            if wanted is not None:
                np.testing.assert_array_equal(found, wanted)
        rows = load_file(self.folder / TABLE)["rows"]
        assert np.count_nonzero(rows.any((1, 2))) == len(self.model), "a row of nobody is left"


Tables.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
)
TestTables = Tables.TestCase
