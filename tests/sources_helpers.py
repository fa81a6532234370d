"""What the tests of several sources share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from penname.records import BadRow, Item

T = TypeVar("T")


def json_lines(path: Path, rows: Iterable[object]) -> Path:
    """Writes a line of JSON for each row; a text is a line as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def bad(items: Iterable[Item]) -> list[str]:
    """The bad rows' reasons."""
    return [item.why for item in items if isinstance(item, BadRow)]


def of(kind: type[T], items: Iterable[Item]) -> list[T]:
    """The items of one kind."""
    return [item for item in items if isinstance(item, kind)]
