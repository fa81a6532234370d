"""Objects out of one huge JSON array, or out of JSON Lines, one by one in constant memory.

An array's bytes are scanned once, for quotes and brackets only, to find where an element ends; the element
is then parsed alone. So an element that is broken inside (a trailing comma, NaN, bytes that are not UTF-8)
costs only itself. Where quotes or brackets do not match, nothing after them can be told apart: reading ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from penname.errors import BadInputError
from penname.records import BadRow
from penname.sources._files import MAX_ROW, TOO_LONG, blocks, lines
from penname.sources._rows import bad, parse_row

_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
# Whole strings and what is between them, up to a mark or to a string that does not end in what is held.
_WITHIN = re.compile(rb'[^"{}\[\]]*+(?:"%b"[^"{}\[\]]*+)*+' % _STRING_REST.pattern, re.DOTALL)
_BETWEEN = re.compile(rb'[^"{}\[\],]*+(?:"%b"[^"{}\[\],]*+)*+' % _STRING_REST.pattern, re.DOTALL)
_BLANK = b" \t\r\n"
_QUOTE, _COMMA, _CLOSE = b'",]'


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]] | BadRow]:
    """(line, object) for each object of the file, which is a JSON array of objects, or has one on each line.

    Raises:
        BadInputError: the file cannot be opened, or is neither.
    """
    found = elements(path) if _starts_array(path) else lines(path)
    good = False
    for each in found:
        if isinstance(each, BadRow):
            yield each
            continue
        line, raw = each
        if not raw.strip():
            continue
        if not good and b"\x00" in raw:
            raise BadInputError(f"{path} is binary or UTF-16, not JSON in UTF-8")
        try:
            row = parse_row(raw)
        except (BadInputError, ValueError, RecursionError) as error:
            yield bad(path, line, error)
        else:
            good = True
            yield line, row


def _starts_array(path: Path) -> bool:
    for block in blocks(path):
        if start := block.removeprefix(b"\xef\xbb\xbf").lstrip(_BLANK):
            return start.startswith(b"[")
    return False


def elements(path: Path) -> Iterator[tuple[int, bytes] | BadRow]:
    """(line where it begins, raw bytes) for each element of the JSON array that the file is.

    A BadRow stands for an element that is too long, and for the place from which nothing can be told apart.

    Raises:
        BadInputError: the file cannot be opened, or breaks before its first element ends.
    """
    scan = Scan(path)
    try:
        yield from scan.run(blocks(path))
    except BadInputError as error:
        if not scan.number:
            raise
        yield bad(path, scan.line, error)


class Scan:
    """A scan over the bytes of an array: what is held of the element at hand, and how deep in it we are."""

    def __init__(self, path: Path, limit: int = MAX_ROW) -> None:
        self.path = path
        self.limit = limit  # bytes of an element
        self.number = 0  # elements so far
        self.line = 1  # where the element at hand begins, from 1
        self._held = bytearray()  # the element at hand as far as it has been read, and what follows it
        self._at = 0  # how much of it has been scanned
        self._dropped_lines = 0
        self._too_long = False
        self._depth = 0  # 0 before and after the array, 1 between its elements
        self._in_string = False
        self._ended = False

    def run(self, stream: Iterable[bytes]) -> Iterator[tuple[int, bytes] | BadRow]:
        """The elements of the array that `stream` holds.

        Raises:
            BadInputError: it is no array, ends too early, or goes on after its end.
        """
        for block in stream:
            self._held += block
            if not self._depth and not self._ended:
                self._open()
            yield from self._scan()
            if self._ended and self._held.strip(_BLANK):
                raise BadInputError(f"{self.path} goes on after the end of the array")
            if len(self._held) > self.limit:
                self._drop()
        if self._depth or self._held.strip(_BLANK):
            yield from self._last_of_cut()
            raise BadInputError(
                f"{self.path} ends in the middle of the array, in element {self.number + 1}: it was cut "
                "short, or a quote or bracket is missing"
            )

    def _open(self) -> None:
        """Go past the bracket that opens the array, if it has been read yet."""
        start = self._held.removeprefix(b"\xef\xbb\xbf").lstrip(_BLANK)
        if not start:
            return
        if start[:1] != b"[":
            raise BadInputError(f"{self.path} is no JSON array: it does not begin with [")
        self.line += self._held.count(b"\n", 0, len(self._held) - len(start))
        self._held = start[1:]
        self._depth = 1

    def _scan(self) -> Iterator[tuple[int, bytes] | BadRow]:
        """Take every element that ends in what is held."""
        while self._depth and (mark := self._next_mark()):
            if mark in b"[{":
                self._depth += 1
            elif self._depth == 1:
                if mark not in (_COMMA, _CLOSE):
                    raise BadInputError(
                        f"{self.path}: a bracket that nothing opened, in element {self.number + 1}"
                    )
                yield from self._take(last=mark == _CLOSE)
            else:
                self._depth -= 1

    def _next_mark(self) -> int:
        """The next bracket (or comma between elements) outside strings; 0 where more must be read first."""
        while True:
            if self._in_string:
                self._skip(_STRING_REST)
                if (
                    self._held[self._at : self._at + 1] != b'"'
                ):  # the end, or a backslash that is the last byte
                    return 0
                self._at += 1
                self._in_string = False
            self._skip(_BETWEEN if self._depth == 1 else _WITHIN)
            if self._at == len(self._held):
                return 0
            self._at += 1
            mark = self._held[self._at - 1]
            if mark != _QUOTE:
                return mark
            self._in_string = True

    def _skip(self, pattern: re.Pattern[bytes]) -> None:
        found = pattern.match(self._held, self._at)
        assert found is not None  # all three match nothing, too
        self._at = found.end()

    def _take(self, *, last: bool) -> Iterator[tuple[int, bytes] | BadRow]:
        """The element at hand, which ends just before the last mark."""
        raw = bytes(self._held[: self._at - 1])
        del self._held[: self._at]
        self._at = 0
        element = raw.strip(_BLANK)
        begins = self.line + raw.count(b"\n", 0, len(raw) - len(raw.lstrip(_BLANK)))
        empty_array = last and not self.number and not element and not self._too_long
        if not empty_array:
            self.number += 1
            if self._too_long or len(element) > self.limit:
                yield bad(self.path, self.line, f"element {self.number} is {TOO_LONG}")
            elif not element:
                yield bad(self.path, begins, f"element {self.number} is empty: a comma too many")
            else:
                yield begins, element
        self.line += self._dropped_lines + raw.count(b"\n")
        self._dropped_lines, self._too_long = 0, False
        if last:
            self._depth, self._ended = 0, True

    def _last_of_cut(self) -> Iterator[tuple[int, bytes] | BadRow]:
        """The element at hand, if it is whole although the array is not."""
        if self._depth == 1 and self._held.rstrip(_BLANK).endswith(b"}"):
            self._at += 1  # as if the mark after it had been read
            yield from self._take(last=False)

    def _drop(self) -> None:
        """Forget what is held of an element that is too long, and go on to its end."""
        self._too_long = True
        self._dropped_lines += self._held.count(b"\n", 0, self._at)
        del self._held[: self._at]
        self._at = 0
