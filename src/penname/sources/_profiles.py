"""Profiles as LaMP and LongLaMP have them: a list of what one user wrote, in objects with fields by task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import Authored, Item
from penname.sources._dates import parse_date
from penname.sources._rows import authored, bad, id_of, text_of, why


@dataclass(frozen=True)
class Shape:
    """Which fields of an entry hold what; of several, the first that an entry has."""

    text: tuple[str, ...]  # what the user wrote
    title: tuple[str, ...] = ("title",)
    date: tuple[str, ...] = ("date",)


def documents(path: Path, line: int, profile: object, user: str, shape: Shape) -> Iterator[Item]:
    """An Authored of `user`, or a BadRow, for each entry of the profile that stands at `line` of `path`."""
    if not isinstance(profile, list):
        yield bad(path, line, "the row has no list 'profile'")
        return
    for number, entry in enumerate(profile, 1):
        try:
            yield _document(entry, user, shape)
        except (BadInputError, ValidationError) as error:
            yield bad(path, line, f"profile entry {number}: {why(error)}")


def _document(entry: object, user: str, shape: Shape) -> Authored:
    if not isinstance(entry, dict):
        raise BadInputError("not an object")
    text, title, date = (_first(entry, names) for names in (shape.text, shape.title, shape.date))
    if text is None:
        has = ", ".join(map(repr, list(entry)[:8])) or "none"
        raise BadInputError(f"no field {' or '.join(map(repr, shape.text))}; the entry has {has}")
    (document,) = authored(
        [user],
        text_of(entry[text], text),
        title=text_of(entry[title], title) if title else "",
        written_at=moment(entry[date]) if date else None,
        id=id_of(entry.get("id"), "id"),
        fields={name: value for name, value in entry.items() if name not in (text, title, "id")},
    )
    return document


def _first(entry: dict[str, object], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in entry), None)


def moment(value: object, *, first: bool = False) -> datetime | None:
    """A date. A year alone stands for its last day, so that nothing counts as written earlier than it was.

    Args:
        first: take its first day instead: for a request, which must see nothing that is later than it.
    """
    text = str(value).strip() if isinstance(value, int | str) else ""
    if re.fullmatch(r"[12][0-9]{3}", text):
        return datetime(int(text), *((1, 1) if first else (12, 31)), tzinfo=UTC)
    return parse_date(value)
