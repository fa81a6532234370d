"""Files that a person drops on the page, read as documents of one user."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from penname.errors import BadInputError
from penname.records import Authored, BadRow, Document, Item
from penname.serve.material import MAX_DOCUMENTS, MAX_ID
from penname.sources import read

KINDS = (".txt", ".md", ".markdown", ".jsonl")


@dataclass(frozen=True)
class Dropped:
    """What was found in a file; `notes` say what was not taken, and why."""

    documents: tuple[Document, ...]
    notes: tuple[str, ...] = ()


def read_dropped(name: str, content: bytes, user: str) -> Dropped:
    """The documents in a file.

    A text or Markdown file is one document, whose id is the file's name: dropped again it is replaced. JSON
    Lines are rows as `penname import jsonl` takes them; those of other users are not taken.

    Args:
        name: the file's, as the browser says it; no path is made of it.
        user: whose documents they are to be.

    Raises:
        BadInputError: it is of another kind, or cannot be read at all.
    """
    kind = PurePosixPath(name).suffix.lower()
    if kind not in KINDS:
        raise BadInputError(f"not read: only {', '.join(KINDS)} are")
    if kind == ".txt":
        text = _decoded(content)
        return Dropped((Document(id=name[-MAX_ID:], title=PurePosixPath(name).stem[:1000], text=text),))
    found: list[Document] = []
    notes: list[str] = []
    others = 0
    for item in _items(kind, content, user):
        match item:
            case BadRow():
                notes.append(f"line {item.line}: {item.why}" if item.line else item.why)
            case Authored() if item.user == user:
                found.append(item.document)
            case _:
                others += 1
    if kind != ".jsonl":
        found = [one.model_copy(update={"id": name[-MAX_ID:]}) for one in found]
    if others:
        notes.append(f"{others} rows are of other users, or no documents")
    if len(found) > MAX_DOCUMENTS:
        notes.append(f"only the first {MAX_DOCUMENTS:,} documents were taken")
    return Dropped(tuple(found[:MAX_DOCUMENTS]), tuple(notes))


def _items(kind: str, content: bytes, user: str) -> Iterator[Item | BadRow]:
    """What the source's own reader finds in the file."""
    with tempfile.TemporaryDirectory(prefix="penname-") as folder:
        if kind == ".jsonl":
            file = Path(folder, "dropped.jsonl")
            file.write_bytes(content)
            yield from read("jsonl", file)
        else:
            Path(folder, "dropped.md").write_bytes(content)
            yield from read("markdown", Path(folder), author=user)


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"not read: no UTF-8 at byte {error.start + 1}") from None
