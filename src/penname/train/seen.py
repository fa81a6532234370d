"""What a training saw, so that a person can read why a model changed: JSON Lines in a result's `seen/`.

Each line names the users whose texts it holds: whoever is erased is taken out of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from penname.errors import TrainedError
from penname.files import put

SEEN = "seen"


def append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows at the end, and bring them to the file before anything else is done."""
    with file.open("a", encoding="utf-8", newline="\n") as stream:
        stream.write("".join(_line(row) for row in rows))


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the rows into the file, whole or not at all."""
    put(file, "".join(_line(row) for row in rows))


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that a kill cut short is taken off it. Without the file there are none.

    Raises:
        TrainedError: another line is no row.
    """
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        put(file, whole)
    return list(_rows(file, whole))


def erase_user(folder: Path, user: str) -> int:
    """Take the lines with texts of `user` out of a result's `seen/`; how many there were.

    Raises:
        TrainedError: a file cannot be read; those before it are clean.
    """
    erased = 0
    for file in sorted((folder / SEEN).glob("*.jsonl")):
        rows = read(file)
        kept = [row for row in rows if user not in row["users"]]
        if len(kept) < len(rows):
            write(file, kept)
            erased += len(rows) - len(kept)
    return erased


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _rows(file: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            row["users"]
        except (ValueError, TypeError, KeyError):
            raise TrainedError(f"{file}:{number}: cannot be read: remove the line, or train again") from None
        yield row
