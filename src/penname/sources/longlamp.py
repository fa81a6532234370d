"""LongLaMP's official rows (arXiv 2407.11016): one user's request, gold and profile in each row.

The published rows are tables; this reads them as a JSON array or as JSON Lines (plain or gzip), with the
columns that they have there:

    abstract  name,       input, output, profile [{id, title, abstract, year}]
    topic     author,     input, output, profile [{id, author, summary, content}]
    review    reviewerId, input, output, profile [{overall, summary, description, reviewText}]
    email     id,         input, output, profile [{id, title, text}]

E-mail is not public: its builders get it by LongLaMP's scripts. The first column is the user, unless the row
has `user_id`. Which of the four a row is follows from the fields of its profile, or else from that column.
Some copies name a topic's summary and content input and output, as the authors' code does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import BadRow, Item, Request, check_user_id
from penname.sources._arrays import objects
from penname.sources._each import data_files
from penname.sources._profiles import Shape, documents, moment
from penname.sources._rows import bad, id_of, text_of


@dataclass(frozen=True)
class _Kind:
    """One of the four tasks: the column that names the user, and what a profile entry has."""

    user: str
    shape: Shape
    marks: tuple[str, ...]  # fields by which an entry is known


_KINDS = {
    "abstract": _Kind("name", Shape(text=("abstract",), date=("date", "year")), ("abstract",)),
    "review": _Kind("reviewerId", Shape(text=("reviewText",), title=("summary",)), ("reviewText",)),
    "topic": _Kind(
        "author", Shape(text=("content", "output"), title=("summary", "input")), ("content", "output")
    ),
    "email": _Kind("id", Shape(text=("text",)), ("text",)),
}


def read(
    path: Path, *, task: str | None = None, split: str | None = None, prefix: str = ""
) -> Iterator[Item]:
    """For each row the Authored of its profile, then its Request ("LongLaMP-abstract" and so on).

    Args:
        path: a file of one task, or a folder with one file for each split (train.json, val.jsonl.gz, …).
        task: "abstract", "review", "topic" or "email"; by default each row's own.
        split: which file of a folder; all by default.
        prefix: put before every user's id.

    Raises:
        BadInputError: no such file, split or task, or a file is no JSON.
    """
    if task is not None and task.removeprefix("LongLaMP-") not in _KINDS:
        raise BadInputError(f"unknown task {task[:40]!r}; there are {', '.join(_KINDS)}")
    kind = task.removeprefix("LongLaMP-") if task is not None else None
    for file in data_files(path, split):
        for found in objects(file):
            if isinstance(found, BadRow):
                yield found
                continue
            line, row = found
            try:
                name = kind or _kind(row)
                request = _request(row, name, prefix)
            except (BadInputError, ValidationError) as error:
                yield bad(file, line, error)
                continue
            yield from documents(file, line, row.get("profile"), request.users[0], _KINDS[name].shape)
            yield request


def _kind(row: dict[str, Any]) -> str:
    """Which task a row is of."""
    profile = row.get("profile")
    entry = profile[0] if isinstance(profile, list) and profile else None
    for name, kind in _KINDS.items():
        if isinstance(entry, dict) and any(mark in entry for mark in kind.marks):
            return name
    for name, kind in _KINDS.items():
        if kind.user in row and kind.user != "id":
            return name
    raise BadInputError("neither the profile nor the columns say which task this is: give the task")


def _request(row: dict[str, Any], name: str, prefix: str) -> Request:
    column = "user_id" if "user_id" in row else _KINDS[name].user
    user = id_of(row.get(column), column)
    if not user:
        raise BadInputError(f"the row has no user: no column {column!r} (nor 'user_id')")
    own = id_of(row.get("id"), "id")
    return Request(
        id=prefix + own if own else "",
        task=f"LongLaMP-{name}",
        input=text_of(row.get("input"), "input"),
        users=(check_user_id(prefix + user),),
        gold=text_of(row.get("output"), "output") or None,
        before=moment(row.get("date"), first=True),
    )
