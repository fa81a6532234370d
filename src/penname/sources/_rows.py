"""What all sources share: from loose values to records, and from what went wrong to one readable line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import MAX_TEXT, Authored, BadRow, Document, check_text, check_user_id, digest

MAX_ID = 512  # characters of a document's id: an index of every database takes it
MAX_FIELDS = 4_000_000  # characters in all of a document's further fields, each value counting 8 more
MAX_DEPTH = 50  # lists and mappings inside one another
MAX_WHY = 400  # characters of a reason


def bad(file: Path | str, line: int, reason: str | Exception) -> BadRow:
    """A BadRow that can be printed anywhere: one line, no control characters, not endless."""
    return BadRow(file=_printable(str(file)), line=line, why=_printable(why(reason))[:MAX_WHY])


def why(reason: str | Exception) -> str:
    """One line that says what was wrong, without the text of the document."""
    if isinstance(reason, ValidationError):
        return "; ".join(
            f"{'.'.join(str(place) for place in error['loc']) or 'the row'}: {_complaint(error['msg'])}"
            for error in reason.errors(include_url=False, include_input=False)
        )
    if isinstance(reason, ValueError) and "integer string conversion" in str(reason):
        return "it holds an integer of more digits than can be read; write it as text"
    if isinstance(reason, RecursionError):
        return "nested too deeply"
    return " ".join(str(reason).split())


def _complaint(message: str) -> str:
    return message.removeprefix("Value error, ")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def parse_row(raw: bytes) -> dict[str, Any]:
    """A row as an object.

    Raises:
        BadInputError: it is not UTF-8, no JSON, or no object.
        ValueError, RecursionError: it is JSON that Python does not take (5,000 digits, 5,000 brackets).
    """
    try:
        row = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadInputError(f"not UTF-8: {error.reason} at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise BadInputError(
            f"broken JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
        ) from None
    if not isinstance(row, dict):
        raise BadInputError(f"a row is a JSON object {{…}}, not {_kind(row)}")
    return row


def _no_constant(name: str) -> NoReturn:
    raise BadInputError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def text_of(value: object, name: str) -> str:
    """`value` as text; None is "".

    Raises:
        BadInputError: it is no text, or holds what no database keeps (NUL, lone surrogates).
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInputError(f"the field {name!r} is no text but {_kind(value)}")
    if value.isascii() and "\x00" not in value:  # a constant-time test that spares most texts the slow one
        return value
    try:
        return check_text(value)
    except BadInputError as error:
        raise BadInputError(f"the field {name!r}: {error}") from None


def id_of(value: object, name: str) -> str:
    """`value` as an id: text, or a whole number as text; None is "".

    Raises:
        BadInputError: it is something else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(value, name)


def users_of(value: object, name: str) -> tuple[str, ...]:
    """One id, or a list of ids in author order.

    Raises:
        BadInputError: there is none, one is named twice, or one cannot be a user id.
    """
    listed = value if isinstance(value, list) else [value]
    users = tuple(id_of(each, name) for each in listed)
    if not any(users):
        raise BadInputError(f"the field {name!r} names no user")
    for user in users:
        check_user_id(user)
    if len(set(users)) != len(users):
        twice = next(user for user in users if users.count(user) > 1)
        raise BadInputError(f"the field {name!r} names {twice!r} twice")
    return users


def authored(
    users: Sequence[str],
    text: str,
    *,
    title: str = "",
    written_at: datetime | None = None,
    id: str = "",  # noqa: A002 - the record's name for it
    fields: Mapping[str, Any] | None = None,
) -> list[Authored]:
    """The document once for each of its users (ids already checked), each with the place in the order.

    Without an id, a document of several users gets the same one for all, so that they are known as a group.

    Raises:
        BadInputError, pydantic.ValidationError: something cannot be stored.
    """
    if not text.strip():
        raise BadInputError("the document has no text")
    if len(text) > MAX_TEXT:
        raise BadInputError(
            f"the text has {len(text):,} characters, and the limit for one document is {MAX_TEXT:,}: split it"
        )
    if len(id) > MAX_ID:
        raise BadInputError(f"the document's id has {len(id):,} characters; the limit is {MAX_ID}")
    kept = plain(fields or {})
    if not id and len(users) > 1:
        when = written_at.isoformat() if written_at else None
        id = digest([list(users), title, text, when, kept])  # noqa: A001
    first = Document(id=id, title=title, text=text, written_at=written_at, n_authors=len(users), fields=kept)
    # All parts have been checked, and checking them again would take half of an import's time.
    return [
        Authored.model_construct(
            user=user, document=first.model_copy(update={"position": place}) if place else first
        )
        for place, user in enumerate(users)
    ]


def plain(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """`fields` as JSON values that every database keeps as given (dates become ISO text).

    Raises:
        BadInputError: nested deeper than MAX_DEPTH, larger than MAX_FIELDS once everything is written out (as
            a YAML file of a few lines can be), or holding a NUL, a lone surrogate, NaN, infinity or bytes.
    """
    left = [MAX_FIELDS]
    return {_key(key): _plain(value, _key(key), 1, left) for key, value in fields.items()}


def _plain(value: object, name: str, depth: int, left: list[int]) -> Any:
    left[0] -= 8 + (len(value) if isinstance(value, str) else 0)
    if left[0] < 0:
        raise BadInputError(f"the further fields hold more than {MAX_FIELDS:,} characters")
    if depth > MAX_DEPTH:
        raise BadInputError(f"the field {name!r} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        return text_of(value, name)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadInputError(f"the field {name!r} holds {value}, which is no JSON number")
        return value
    if isinstance(value, dict):
        return {_key(key): _plain(each, name, depth + 1, left) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, name, depth + 1, left) for each in value]
    if isinstance(value, date):
        return value.isoformat()
    raise BadInputError(f"the field {name!r} holds {_kind(value)}, which is no JSON value")


def _key(key: object) -> str:
    return text_of(key, "the name of a field") if isinstance(key, str) else str(key)


def _kind(value: object) -> str:
    names = {list: "a list", dict: "a mapping", bool: "true or false", int: "a number", float: "a number"}
    names |= {str: "text", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
