"""CSV files (RFC 4180), plain or gzip, row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from penname.errors import BadInputError
from penname.records import BadRow
from penname.sources._files import lines
from penname.sources._rows import bad

Cells = dict[str, str]


def table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Cells] | BadRow]:
    """(line where it begins, cells by column) for each row; blank rows are passed over.

    Bytes that are not UTF-8 become lone surrogates, which every check of a text refuses: they cost only
    their row.

    Args:
        columns: those that the header must name; others are read too.

    Raises:
        BadInputError: the file cannot be opened, or has no such header.
    """
    wrong: list[BadRow] = []
    reader = csv.reader(_text(path, wrong), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield bad(path, line, f"broken CSV: {error}")
            continue
        finally:
            yield from wrong
            wrong.clear()
        if not any(cells):
            continue
        if header is None:
            header = _header(path, cells, columns)
        elif len(cells) != len(header):
            yield bad(path, line, f"{len(cells)} cells, and the header has {len(header)}")
        else:
            yield line, dict(zip(header, cells, strict=True))
    if header is None:
        raise BadInputError(f"{path} is empty: a CSV file begins with its header")


def _text(path: Path, wrong: list[BadRow]) -> Iterator[str]:
    """The lines for the CSV reader; what is wrong with the file goes to `wrong`, and a blank line on."""
    for each in lines(path):
        if isinstance(each, BadRow):
            wrong.append(each)
            yield "\n"
        else:
            yield each[1].decode("utf-8", "surrogateescape") + "\n"


def _header(path: Path, cells: list[str], columns: tuple[str, ...]) -> list[str]:
    missing = [name for name in columns if name not in cells]
    if missing:
        has = ", ".join(repr(name[:40]) for name in cells[:20])
        raise BadInputError(f"{path} has no column {', '.join(map(repr, missing))}; its header has {has}")
    return cells
