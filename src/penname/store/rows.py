"""Records to rows and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from penname.errors import BadInputError
from penname.records import Document, Preference, Profile, Request, check_text, digest
from penname.store.schema import from_micros, to_micros

MAX_KEY = 512  # characters of an id or key: PostgreSQL indexes at most 2,704 bytes, and one may take four
CHUNK = 1000  # keys in one query: far below the limits of both databases on bound parameters

Values = dict[str, Any]
T = TypeVar("T")


class DocumentRow(Protocol):
    """A row of `documents`, as far as a Document is made of it."""

    id: str
    title: str
    text: str
    written_at: int | None
    position: int
    n_authors: int
    fields: str


def chunks(values: Iterable[T]) -> Iterator[Sequence[T]]:
    """`values` in lists of at most CHUNK."""
    rest = iter(values)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def check_key(value: str, what: str) -> str:
    """An id or key that both databases can index.

    Raises:
        BadInputError: empty, too long, or no text.
    """
    if not value:
        raise BadInputError(f"{what} is empty")
    if len(value) > MAX_KEY:
        raise BadInputError(f"{what} {value[:40]!r}… has {len(value):,} characters; the limit is {MAX_KEY}")
    return check_text(value)


def document_values(document: Document) -> Values:
    """A row of `documents`, all but whose it is.

    Raises:
        BadInputError: the id is too long, or `fields` hold what JSON has not.
    """
    try:
        fields = json.dumps(document.fields, allow_nan=False, ensure_ascii=False)
        content_hash = document.content_hash
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(f"document {document.id[:60]!r}: its fields are no JSON ({error})") from None
    # A NUL stands in JSON as an escape, which an import of an export would refuse.
    check_text(fields.replace(r"\\", "").replace(r"\u0000", "\0"))
    return {
        "id": check_key(document.id, "document id"),
        "content_hash": content_hash,
        "title": document.title,
        "text": document.text,
        "written_at": to_micros(document.written_at),
        "position": document.position,
        "n_authors": document.n_authors,
        "fields": fields,
    }


def document_of(row: DocumentRow) -> Document:
    """The Document that `document_values` was given. It was checked on its way in, so not again: a history
    is read for every request."""
    return Document.model_construct(
        id=row.id,
        title=row.title,
        text=row.text,
        written_at=from_micros(row.written_at),
        position=row.position,
        n_authors=row.n_authors,
        fields=json.loads(row.fields),
    )


def profile_values(profile: Profile) -> Values:
    """A row of `profiles`, all but whose it is and its version."""
    content = profile.model_dump_json(exclude={"user", "version"})
    return {
        "fingerprint": check_key(profile.fingerprint, "fingerprint") if profile.fingerprint else "",
        "before": to_micros(profile.before),
        "content_hash": digest(content),
        "content": content,
    }


def profile_of(user: str, version: int, content: str) -> Profile:
    return Profile.model_validate({**json.loads(content), "user": user, "version": version})


def preference_values(preference: Preference) -> Values:
    """A row of `preferences`, all but whose it is."""
    return {
        "id": check_key(preference.id, "preference id"),
        "content": preference.model_dump_json(exclude={"user"}),
    }


def preference_of(user: str, content: str) -> Preference:
    return Preference.model_validate({**json.loads(content), "user": user})


def request_values(request: Request) -> Values:
    """A row of `requests`; its users stand in a table of their own."""
    check_key(request.id, "request id")
    return {
        "key": digest([request.id, request.task, request.users]),
        "content": request.model_dump_json(exclude={"users"}),
    }


def request_of(users: Iterable[str], content: str) -> Request:
    return Request.model_validate({**json.loads(content), "users": tuple(users)})


def exported(kind: str, record: BaseModel, **more: object) -> dict[str, object]:
    """One row of an export: its kind, and the record as JSON values."""
    return {"penname": kind, **more, **record.model_dump(mode="json")}
