"""Files read block by block: plain or gzip, cut at a separator, with no piece held that is absurdly long."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from penname.errors import BadInputError
from penname.records import BadRow
from penname.sources._rows import bad

BLOCK = 1 << 20  # bytes asked for at a time
MAX_ROW = 32 << 20  # bytes of one row; anything longer is passed over without being kept

TOO_LONG = f"longer than {MAX_ROW >> 20} MB"


def check_file(path: Path) -> None:
    """Do nothing where `path` is a file that can be opened.

    Raises:
        BadInputError: it is missing, a folder, a device or pipe, or may not be read.
    """
    try:
        if path.is_dir():
            raise BadInputError(f"{path} is a folder, and this source reads a file")
        if path.exists() and not path.is_file():
            raise BadInputError(f"{path} is no regular file")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise BadInputError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BadInputError(f"{str(path)!r} cannot be opened: {error}") from None


def blocks(path: Path) -> Iterator[bytes]:
    """The content in blocks of at most BLOCK bytes, unpacked where it begins as gzip does.

    Raises:
        BadInputError: the file cannot be opened, or (after the blocks before) is cut short or damaged.
    """
    check_file(path)
    with path.open("rb") as file:
        packed = file.peek(2)[:2] == b"\x1f\x8b"
        # read1, unlike read, gives what it has unpacked before it complains of a cut.
        stream: io.BufferedReader | gzip.GzipFile = gzip.GzipFile(fileobj=file) if packed else file
        while True:
            try:
                block = stream.read1(BLOCK)
            except (OSError, EOFError, zlib.error) as error:
                raise BadInputError(f"{path} is cut short or damaged from here on ({error})") from None
            if not block:
                return
            yield block


def split(stream: Iterable[bytes], separator: bytes, limit: int = MAX_ROW) -> Iterator[bytes | None]:
    """What lies between the separators (one byte each); None for a piece of more than `limit` bytes.

    An empty piece after the last separator is not counted as one.
    """
    parts: list[bytes] = []
    size = 0
    for block in stream:
        first, *rest = block.split(separator)
        parts.append(first)
        size += len(first)
        for piece in rest:
            yield None if size > limit else b"".join(parts)
            parts, size = [piece], len(piece)
        if size > limit:
            parts.clear()
    if size:
        yield None if size > limit else b"".join(parts)


def lines(path: Path) -> Iterator[tuple[int, bytes] | BadRow]:
    """(line number from 1, line without its end), or a BadRow where one is too long or the file is damaged.

    Raises:
        BadInputError: the file cannot be opened, or is damaged before its first line ends.
    """
    number = 0
    try:
        for line in split(blocks(path), b"\n"):
            number += 1
            if number == 1 and line is not None:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield bad(path, number, f"the line is {TOO_LONG}") if line is None else (number, line)
    except BadInputError as error:
        if not number:
            raise
        yield bad(path, number + 1, str(error))
