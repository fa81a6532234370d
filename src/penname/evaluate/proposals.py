"""The benchmark of improvement proposals: real technical documents, by authors who write alone and together.

The file is JSON Lines with id, title, authors, created, requires, abstract and motivation. Its four tasks are
those of personalised scientific writing (arXiv 2406.14275, section 4) on open data:

    P-1  titles of the proposals it builds on         → title
    P-2  those and the title                          → motivation
    P-3  title and motivation                         → abstract
    P-4  abstract                                     → title

Splits go by date. An example is kept where at least one author wrote two or more documents strictly earlier,
and where it has all that its task needs. Of a motivation the opening counts: whole sentences of 800
characters at most.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from penname.errors import BadInputError
from penname.records import Authored, BadRow, Document, Item, Request
from penname.sources import read

TASKS = ("P-1", "P-2", "P-3", "P-4")
SPLITS = ("test", "validation", "train")
OPENING = 800  # characters of a motivation at most
LEAST = 2  # earlier documents that one author of an example must have

_VALIDATION, _TEST = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 7, 1, tzinfo=UTC)
_WORD_END = re.compile(r"\S(?=\s)")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def items(path: Path, split: str) -> Iterator[Item]:
    """Every document once for each author, then the split's requests, task by task; rows that cannot be used.

    Documents have two fields more than the file: `builds_on`, the titles of what they require, and
    `motivation`, shortened to its opening.

    Raises:
        BadInputError: the file cannot be read, or holds documents without dates.
    """
    columns = {"user": "authors", "text": "abstract", "title": "title", "date": "created", "id": "id"}
    found = list(read("jsonl", path, **{f"{name}_field": column for name, column in columns.items()}))
    titles = {
        one.document.id.rpartition("-")[2]: one.document.title for one in found if isinstance(one, Authored)
    }
    authors: dict[str, list[str]] = {}
    documents: dict[str, Document] = {}
    for one in found:
        if isinstance(one, Authored):
            name = one.document.id
            if one.user in authors.get(name, ()):
                yield BadRow(file=str(path), line=0, why=f"a second document {name[:60]!r} of {one.user!r}")
                continue
            one = one.model_copy(update={"document": _with_parts(one.document, titles)})
            authors.setdefault(name, []).append(one.user)
            documents.setdefault(name, one.document)
        yield one
    yield from _requests(path, authors, documents, split)


def _with_parts(document: Document, titles: dict[str, str]) -> Document:
    required = document.fields.get("requires")
    numbers = [str(number) for number in required] if isinstance(required, list) else []
    builds_on = "; ".join(titles[number] for number in numbers if number in titles)
    motivation = opening(str(document.fields.get("motivation") or ""))
    fields = {**document.fields, "builds_on": builds_on, "motivation": motivation}
    return document.model_copy(update={"fields": fields})


def opening(text: str, limit: int = OPENING) -> str:
    """The first whole sentences of `text`, in `limit` characters; the first words where none ends there."""
    text = text.strip()
    if len(text) <= limit:
        return text
    head = text[: limit + 1]  # one more: what follows says whether a sentence or a word ends there
    ends = [match.end() for match in _SENTENCE_END.finditer(head) if match.end() <= limit]
    ends = ends or [match.end() for match in _WORD_END.finditer(head) if match.end() <= limit]
    return text[: ends[-1]] if ends else text[:limit]


def _requests(
    path: Path,
    authors: dict[str, list[str]],
    documents: dict[str, Document],
    split: str,
) -> Iterator[Request]:
    dates: dict[str, list[datetime]] = {}
    for name, document in documents.items():
        if document.written_at is None:
            raise BadInputError(f"{path}: the document {name!r} has no date, and splits go by date")
        for author in authors[name]:
            dates.setdefault(author, []).append(document.written_at)
    for written in dates.values():
        written.sort()
    for task in TASKS:
        for name, document in documents.items():
            assert document.written_at is not None  # checked above
            when = document.written_at
            if _split(when) != split or max(bisect_left(dates[a], when) for a in authors[name]) < LEAST:
                continue
            parts = _parts(task, document)
            if all(parts):
                yield Request(
                    id=name,
                    task=task,
                    input="\n".join(parts[:-1]),
                    users=tuple(authors[name]),
                    before=when,
                    exclude=(name,),
                    gold=parts[-1],
                )


def _parts(task: str, document: Document) -> tuple[str, ...]:
    """What a task is given, and last what is to be written."""
    builds_on, motivation = document.fields["builds_on"], document.fields["motivation"]
    return {
        "P-1": (builds_on, document.title),
        "P-2": (builds_on, document.title, motivation),
        "P-3": (document.title, motivation, document.text),
        "P-4": (document.text, document.title),
    }[task]


def _split(when: datetime) -> str:
    if when < _VALIDATION:
        return "train"
    return "validation" if when < _TEST else "test"
