"""The users' rows of a trained run: one vector, matrix or set of weights a user, in one table.

Two files in the run's folder: `users.safetensors` (`tensors.py`) and its index `users.db` (`index.py`). A
million users cost the memory of one row: rows are read one at a time, by their place.

**A kill at any moment leaves the old row or the new.** A row is written to a slot that is nobody's and
brought to the disk; then the index commits to it; then the old slot is zeroed. Where the last step was cut
off, the next change of the table, by whoever it is, finishes it.

**Several processes** may read while one writes; writers wait for one another. A reader holds a read
transaction of the index while it reads the row, and a commit waits for readers: so no slot changes hands
under somebody who reads it. Keep the folder on a local disk, not on a network file system.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from penname.errors import BadInputError, TrainedError
from penname.methods.prlhf.tensors import TABLE, Array, RowFile, checked, plan, roomy, writing
from penname.train.index import INDEX, Index, create_index, hashed

__all__ = ["INDEX", "TABLE", "Learnt", "UserTable"]


class Learnt(NamedTuple):
    """What a user's row was learnt from, and when."""

    preferences: int
    updated: datetime  # UTC


class UserTable:
    """An open table; made by `create` and `open`. Threads may share it, a forked process must open its own.

    User ids are any text; they are only ever looked up by their SHA-256.
    """

    def __init__(self, index: Index, rows: RowFile) -> None:
        self._index = index
        self._rows = rows
        self._shared = {name: rows.tensor(name) for name in rows.layout.shared}

    @classmethod
    def create(
        cls,
        folder: Path,
        shared: Mapping[str, Array],
        rows: Sequence[tuple[str, Array, int]],
        row_shape: tuple[int, ...],
    ) -> Self:
        """Makes table and index in a folder that is being built, brings both to the disk, and opens them.

        All users who have a row are noted as seen by the run's shared weights (`index.saw`).

        Args:
            folder: is there, and holds neither yet. The caller renames it when the run is whole.
            shared: tensors by name, kept as float32: whatever all rows go with.
            rows: (user id, row of shape `row_shape`, number of preferences that it was learnt from).
            row_shape: of one row.

        Raises:
            BadInputError: a row or tensor of another shape or with NaN, a user twice, a name that is taken.
            TrainedError: there is a table or an index already.
            StoreFullError: the disk is full.
        """
        path = folder / TABLE
        if path.exists():
            raise TrainedError(f"{path} is there already: build a run in a new folder")
        if min(row_shape, default=0) < 1:
            raise BadInputError(f"a row of the shape {row_shape} holds nothing")
        if taken := {"rows", "__metadata__"} & set(shared):
            raise BadInputError(f"a shared tensor cannot be called {taken.pop()!r}")
        if len({user for user, _, _ in rows}) < len(rows):
            raise BadInputError("a user has two rows")
        kept = {name: checked(array, array.shape, f"the tensor {name!r}") for name, array in shared.items()}
        shapes = {name: array.shape for name, array in kept.items()}
        layout = plan(secrets.token_hex(16), shapes, row_shape, roomy(len(rows)))
        with writing(path), path.open("xb") as file:
            os.chmod(path, 0o600)
            file.write(layout.header())
            for array in kept.values():
                file.write(array.astype("<f4", copy=False).tobytes())
            for user, row, _ in rows:
                file.write(
                    checked(row, row_shape, f"the row of {user!r}").astype("<f4", copy=False).tobytes()
                )
            file.truncate(layout.size)
            file.flush()
            os.fsync(file.fileno())
        create_index(folder, (user for user, _, _ in rows), layout.key)
        index = Index(folder)
        try:
            with index.write() as connection:
                now = _now()
                entries = ((hashed(user), slot, n, now) for slot, (user, _, n) in enumerate(rows))
                connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", entries)
        finally:
            index.close()
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The table in `folder`. Reads the header, the shared tensors and the index's last slot; no rows.

        Raises:
            TrainedError: table or index is missing, cut short or damaged, or they are of different tables.
        """
        rows = RowFile(folder)
        try:
            index = Index(folder)
        except BaseException:
            rows.close()
            raise
        table = cls(index, rows)
        try:
            table._check()
        except BaseException:
            table.close()
            raise
        return table

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """The number of users who have a row."""
        with self._index.read() as connection:
            return int(connection.execute("SELECT count(*) FROM rows").fetchone()[0])

    def __contains__(self, user: str) -> bool:
        with self._index.read() as connection:
            return _slot(connection, user) is not None

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self._rows.layout.row_shape

    @property
    def shared(self) -> dict[str, Array]:
        """The shared tensors, as they were when the table was opened; they never change."""
        return dict(self._shared)

    def row(self, user: str) -> Array | None:
        """A copy of the user's row, float32 of `row_shape`; None where the user has none."""
        with self._index.read() as connection:
            slot = _slot(connection, user)
            return None if slot is None else self._rows.row(slot)

    def learnt(self, user: str) -> Learnt | None:
        """What the user's row was learnt from, and when; None where the user has none."""
        query = "SELECT preferences, updated FROM rows WHERE user = ?"
        with self._index.read() as connection:
            found = connection.execute(query, (hashed(user),)).fetchone()
        return found and Learnt(found[0], datetime.fromtimestamp(found[1] / 1e6, UTC))

    def put(self, user: str, row: Array, preferences: int) -> None:
        """Gives the user this row, in place of the old one if there is one. All other rows stay as they are.

        Args:
            user: any id.
            row: shape `row_shape`, kept as float32.
            preferences: how many it was learnt from.

        Raises:
            BadInputError: the row has another shape, or holds NaN or infinity.
            StoreBusyError: another process read or wrote for longer than the time-out.
            StoreFullError: the disk is full.
            StoreReadOnlyError: the table cannot be written.
        """
        array = checked(row, self.row_shape, f"the row of {user!r}")
        with self._index.write() as connection:
            self._tidy(connection)
            slot = _next(connection)
            self._rows.put(slot, array)
            self._rows.flush()
            freed = _release(connection, user)
            connection.execute("DELETE FROM spare WHERE slot = ?", (slot,))
            entry = (hashed(user), slot, preferences, _now())
            connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", entry)
        if freed:
            self._finish()

    def erase(self, user: str) -> bool:
        """Deletes the user's index entry and zeroes the row; also finishes an erase or put that was cut off.

        That the shared weights saw the user stays noted (`index.saw`), as they stay what they are.

        Returns:
            Whether the user had a row.

        Raises:
            StoreBusyError, StoreFullError, StoreReadOnlyError: as for `put`; erase again to finish.
        """
        with self._index.write() as connection:
            freed = _release(connection, user)
        self._finish()
        return freed

    def close(self) -> None:
        """Closes both files; the table cannot be used any more."""
        self._index.close()
        self._rows.close()

    # --- inside

    def _check(self) -> None:
        """Index and table are of one making, and no user's slot lies beyond the table's end."""
        with self._index.read() as connection:
            key = connection.execute("SELECT table_key FROM about").fetchone()
            last = connection.execute("SELECT max(slot) FROM rows").fetchone()[0]
            layout = self._rows.reload()
        if key != (layout.key,):
            raise TrainedError(
                f"{self._rows.path} and {INDEX} are of different tables: restore both, or train again"
            )
        if last is not None and last >= layout.capacity:
            raise TrainedError(
                f"{self._rows.path} ends before the last user's row: restore it, or train again"
            )

    def _finish(self) -> None:
        """Zeroes what was released. On its own, after the commit: until then somebody may be reading it."""
        with self._index.write() as connection:
            self._tidy(connection)

    def _tidy(self, connection: sqlite3.Connection) -> None:
        """Leaves no byte of a row that is nobody's: in released slots, and in the slot that the next row
        takes, where a put that was killed before its commit may have left one."""
        self._rows.reload()
        self._rows.trim()
        released = connection.execute("SELECT slot FROM spare WHERE zeroed = 0").fetchall()
        for slot in {_next(connection), *(slot for (slot,) in released)}:
            self._rows.zero(slot)
        self._rows.flush()
        connection.execute("UPDATE spare SET zeroed = 1 WHERE zeroed = 0")


def _slot(connection: sqlite3.Connection, user: str) -> int | None:
    found = connection.execute("SELECT slot FROM rows WHERE user = ?", (hashed(user),)).fetchone()
    return found and int(found[0])


def _next(connection: sqlite3.Connection) -> int:
    """The slot that the next row takes: the first that is free, else the first that was never used."""
    free = connection.execute("SELECT min(slot) FROM spare WHERE zeroed = 1").fetchone()[0]
    if free is not None:
        return int(free)
    used = "SELECT max(ifnull((SELECT max(slot) FROM rows), -1), ifnull((SELECT max(slot) FROM spare), -1))"
    return int(connection.execute(used).fetchone()[0]) + 1


def _release(connection: sqlite3.Connection, user: str) -> bool:
    """Takes the user's slot away; it is zeroed later. Whether there was one."""
    slot = _slot(connection, user)
    if slot is None:
        return False
    connection.execute("DELETE FROM rows WHERE user = ?", (hashed(user),))
    connection.execute("INSERT INTO spare VALUES (?, 0)", (slot,))
    return True


def _now() -> int:
    return int(datetime.now(UTC).timestamp() * 1e6)
