"""`users.safetensors`: one row a user, read and written one at a time, whatever their number.

Between two calls it is a valid safetensors file: shared tensors first, then "rows" of the shape
(capacity, *row shape). Capacity is more than what is used; the rest is a hole that takes no disk. The header
is padded, so that a larger capacity can be written in its place, and nothing else moves.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import UnsupportedOperation
from pathlib import Path
from typing import IO, Any

import numpy as np

from penname.errors import BadInputError, StoreFullError, StoreReadOnlyError, TrainedError

TABLE = "users.safetensors"
Array = np.ndarray[Any, np.dtype[np.float32]]

_ROWS = "rows"
_PAGE = 4096  # the header is padded to a multiple of it: rewriting one touches whole pages
_SPARE = 64  # blanks for the digits of a larger capacity
_LARGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class Layout:
    """Where things lie. Offsets are in bytes from the beginning of the file."""

    key: str  # of this table; its index names the same
    data: int  # offset of the first tensor
    shared: dict[str, tuple[tuple[int, ...], int]]  # name: shape, offset
    row_shape: tuple[int, ...]
    rows: int  # offset of the first row
    capacity: int

    @property
    def row_bytes(self) -> int:
        return 4 * math.prod(self.row_shape)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.rows + self.capacity * self.row_bytes

    def offset(self, slot: int) -> int:
        return self.rows + slot * self.row_bytes

    def header(self) -> bytes:
        """The first `data` bytes of the file."""
        tensors: dict[str, Any] = {"__metadata__": {"penname": self.key}}
        for name, (shape, at) in self.shared.items():
            tensors[name] = self._tensor(shape, at, at + 4 * math.prod(shape))
        tensors[_ROWS] = self._tensor((self.capacity, *self.row_shape), self.rows, self.size)
        text = json.dumps(tensors, separators=(",", ":")).encode()
        return (self.data - 8).to_bytes(8, "little") + text.ljust(self.data - 8)

    def _tensor(self, shape: tuple[int, ...], begin: int, end: int) -> dict[str, Any]:
        return {"dtype": "F32", "shape": shape, "data_offsets": (begin - self.data, end - self.data)}


def plan(
    key: str, shapes: Mapping[str, tuple[int, ...]], row_shape: tuple[int, ...], capacity: int
) -> Layout:
    """The layout of a new file; the header takes as many pages as it needs."""
    offsets, at = {}, 0
    for name, shape in shapes.items():
        offsets[name] = (shape, at)
        at += 4 * math.prod(shape)
    bare = len(Layout(key, 8, offsets, row_shape, at, capacity).header()) + _SPARE
    data = math.ceil(bare / _PAGE) * _PAGE
    moved = {name: (shape, data + begin) for name, (shape, begin) in offsets.items()}
    return Layout(key, data, moved, row_shape, data + at, capacity)


class RowFile:
    """The open file. It knows nothing of users: whoever calls holds the index, and locks.

    Raises:
        TrainedError: the file is missing, cut short, or none of penname's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TABLE
        try:
            self._file: IO[bytes] = self.path.open("r+b", buffering=0)
        except FileNotFoundError:
            raise TrainedError(f"{folder} holds no {TABLE}: the run has no users, or lost a part") from None
        except OSError:  # of another account, or on a read-only disk: it can be read all the same
            self._file = self.path.open("rb", buffering=0)
        try:
            self.layout = self.reload()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def reload(self) -> Layout:
        """Reads the header again: another process may have made the file larger."""
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._read(0, min(8, size)), "little")
        if size < 8 or not 0 < length <= min(size - 8, _LARGEST_HEADER):
            raise self._broken("its header is cut short")
        try:
            layout = _parsed(json.loads(self._read(8, length)), 8 + length)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._broken("its header is not what penname writes") from error
        if size < layout.size:
            raise self._broken(f"it has {size:,} bytes of {layout.size:,}")
        self.layout = layout
        return layout

    def tensor(self, name: str) -> Array:
        """A copy of a shared tensor."""
        shape, offset = self.layout.shared[name]
        return self._array(shape, offset)

    def row(self, slot: int) -> Array:
        """A copy of one row; nothing else is read."""
        return self._array(self.layout.row_shape, self.layout.offset(slot))

    def put(self, slot: int, row: Array) -> None:
        """Writes a row where nobody's is; makes the file larger where it must."""
        with writing(self.path):
            if slot >= self.layout.capacity:
                self._grow(slot + 1)
            write_at(self._file, self.layout.offset(slot), row.astype("<f4", copy=False).tobytes())

    def zero(self, slot: int) -> None:
        """Overwrites a row with zeros, where the file reaches so far."""
        if slot < self.layout.capacity:
            with writing(self.path):
                write_at(self._file, self.layout.offset(slot), bytes(self.layout.row_bytes))

    def flush(self) -> None:
        """Returns when all that was written is on the disk."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def trim(self) -> None:
        """Cuts off what a growth left that was killed before it rewrote the header."""
        if os.fstat(self._file.fileno()).st_size > self.layout.size:
            with writing(self.path):
                self._file.truncate(self.layout.size)

    def _grow(self, needed: int) -> None:
        """First the hole, then the header: a kill in between leaves a file that is only too long."""
        larger = replace(self.layout, capacity=roomy(needed))
        self._file.truncate(larger.size)
        self.flush()
        write_at(self._file, 0, larger.header())
        self.flush()
        self.layout = larger

    def _array(self, shape: tuple[int, ...], offset: int) -> Array:
        data = self._read(offset, 4 * math.prod(shape))
        return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data = b""
        while len(data) < length:
            more = self._file.read(length - len(data))
            if not more:
                raise self._broken(f"it ends at {offset + len(data):,} bytes")
            data += more
        return data

    def _broken(self, why: str) -> TrainedError:
        return TrainedError(f"{self.path} cannot be used ({why}): restore it, or train again")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises the file system's refusals of a write as StoreFullError or StoreReadOnlyError."""
    try:
        yield
    except UnsupportedOperation as error:  # it was opened for reading only
        raise StoreReadOnlyError(f"{path} cannot be written by this account") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFullError(f"{path}: the disk is full; what was there before is kept") from error
        raise


def roomy(rows: int) -> int:
    """The capacity of a file that must hold so many rows: a quarter more, so that few puts make it larger."""
    return rows + max(16, rows // 4)


def write_at(file: IO[bytes], offset: int, data: bytes) -> None:
    """Writes all of `data`; an unbuffered file may take it in parts."""
    file.seek(offset)
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def checked(row: Any, shape: tuple[int, ...], what: str) -> Array:
    """`row` as float32 of this shape.

    Raises:
        BadInputError: it has another shape, or holds what is no finite number.
    """
    array = np.asarray(row, np.float32)
    if array.shape != shape:
        raise BadInputError(f"{what} has the shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        raise BadInputError(f"{what} holds NaN or infinity: its training has failed")
    return array


def _parsed(tensors: dict[str, Any], data: int) -> Layout:
    """The layout that a header describes. Raises ValueError where tensors overlap or leave a gap."""
    key = tensors.pop("__metadata__")["penname"]
    at, shapes = data, {}
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        shape = tuple(int(n) for n in entry["shape"])
        end = at + 4 * math.prod(shape)
        if entry["dtype"] != "F32" or min(shape, default=1) < 0:
            raise ValueError(name)
        if tuple(entry["data_offsets"]) != (at - data, end - data):
            raise ValueError(name)
        shapes[name] = (shape, at)
        at = end
    (capacity, *row_shape), rows = shapes.pop(_ROWS)
    layout = Layout(key, data, shapes, tuple(row_shape), rows, capacity)
    if layout.size != at:
        raise ValueError("rows are not last")
    return layout
