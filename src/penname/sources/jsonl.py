"""JSON Lines, plain or gzip: one document a row, or a record as `penname export` writes it.

The user field holds an id or, for several authors, a list of ids in their order. All fields that are not
named here are kept in `Document.fields`. A row {"penname": "document", …} is read back to the record it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import Authored, Document, Item, Preference, Profile, Request, User
from penname.sources._dates import parse_date
from penname.sources._files import lines
from penname.sources._rows import authored, bad, id_of, parse_row, plain, text_of, users_of

_RECORDS: dict[str, type[User | Document | Profile | Preference | Request]] = {
    "user": User,
    "document": Document,
    "profile": Profile,
    "preference": Preference,
    "request": Request,
}


@dataclass(frozen=True)
class _Fields:
    """The names of the fields."""

    user: str
    text: str
    title: str
    date: str
    id: str


def read(
    path: Path,
    *,
    user_field: str = "user",
    text_field: str = "text",
    title_field: str | None = None,
    date_field: str | None = None,
    id_field: str | None = None,
) -> Iterator[Item]:
    """One Authored per row and author; a BadRow for every row that cannot be used.

    The last three default to "title", "date" and "id", and rows may lack them. One that was named and that no
    row has is reported at the end.

    Raises:
        BadInputError: the file cannot be opened, is binary, or is one JSON array.
    """
    fields = _Fields(user_field, text_field, title_field or "title", date_field or "date", id_field or "id")
    missing = {name for name in (title_field, date_field, id_field) if name}
    good = rows = 0
    for line in lines(path):
        if not isinstance(line, tuple):
            yield line
            continue
        number, raw = line
        if not raw.strip():
            continue
        if not good:
            _refuse_other_formats(path, raw)
        rows += 1
        try:
            row = parse_row(raw)
            missing.difference_update(row)
            items = _items(row, fields)
        except (BadInputError, ValidationError, ValueError, RecursionError) as error:
            yield bad(path, number, error)
        else:
            good += 1
            yield from items
    if rows:
        for name in sorted(missing):
            yield bad(path, 0, f"no row has the field {name!r} that was named")


def _refuse_other_formats(path: Path, raw: bytes) -> None:
    """Stop at once at what is plainly something else, rather than report each of its lines."""
    start = raw.lstrip()
    if b"\x00" in raw and not start.startswith(b"{"):
        raise BadInputError(f"{path} is binary or UTF-16; JSON Lines are text in UTF-8")
    if start.startswith(b"[") and start[1:].lstrip()[:1] in (b"", b"{"):
        raise BadInputError(f"{path} is one JSON array; JSON Lines have one object {{…}} on each line")


def _items(row: dict[str, Any], fields: _Fields) -> Sequence[Item]:
    kind = row.get("penname")
    if isinstance(kind, str) and kind in _RECORDS and fields.user != "penname":
        return [_record(kind, row)]
    named = (fields.user, fields.text, fields.title, fields.date, fields.id)
    for name in named[:2]:
        if name not in row:
            has = ", ".join(repr(key) for key in list(row)[:8])
            raise BadInputError(f"no field {name!r}; the row has {has or 'none'}")
    return authored(
        users_of(row[fields.user], fields.user),
        text_of(row[fields.text], fields.text),
        title=text_of(row.get(fields.title), fields.title),
        written_at=parse_date(row.get(fields.date)),
        id=id_of(row.get(fields.id), fields.id),
        fields={name: value for name, value in row.items() if name not in named},
    )


def _record(kind: str, row: dict[str, Any]) -> Item:
    """A row that penname wrote, as the record it was."""
    content = plain(row)
    del content["penname"]
    if kind == "document":
        user = content.pop("user", None)
        return Authored.model_validate({"user": user, "document": content})
    record = _RECORDS[kind].model_validate(content)
    assert not isinstance(record, Document)
    return record
