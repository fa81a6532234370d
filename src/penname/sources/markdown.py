"""A folder of Markdown files: front matter (YAML) says author, title and date; the rest is the text.

Files and folders whose names begin with a dot are passed over, and links out of the folder are not followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from frontmatter.default_handlers import YAMLHandler
from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import Item
from penname.sources._dates import parse_date
from penname.sources._files import MAX_ROW, TOO_LONG
from penname.sources._rows import authored, bad, text_of, users_of

_SUFFIXES = (".md", ".markdown")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_YAML = YAMLHandler()  # loads with PyYAML's safe loader: plain values only


def read(path: Path, *, author: str | None = None) -> Iterator[Item]:
    """An Authored per file and author, in the order of the paths.

    Document: id is the path within the folder; the title that of the front matter, or the first heading;
    `fields` the front matter's further fields.

    Args:
        author: who wrote the files that do not say it (in `author` or `authors`, an id or a list of ids).

    Raises:
        BadInputError: no such folder.
    """
    if not path.is_dir():
        raise BadInputError(f"{path} is no folder; a folder of Markdown files is meant")
    root = path.resolve()
    unreadable: list[OSError] = []
    for folder, folders, files in os.walk(path, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(_SUFFIXES):
                file = Path(folder, name)
                try:
                    yield from _documents(file, file.relative_to(path).as_posix(), root, author)
                except (BadInputError, ValidationError) as error:
                    yield bad(file, 0, error)
    for failure in unreadable:
        yield bad(str(failure.filename), 0, f"the folder cannot be read: {failure.strerror}")


def _documents(file: Path, name: str, root: Path, author: str | None) -> Iterator[Item]:
    matter, text = _parse(_content(file, root))
    by = next((key for key in ("author", "authors") if matter.get(key)), None)
    who = matter[by] if by else author
    if not who:
        raise BadInputError("no author in the front matter, and none was given for the whole folder")
    title = text_of(matter.get("title"), "title") or _heading(text)
    yield from authored(
        users_of(who, by or "author"),
        text_of(text, "text"),
        title=title,
        written_at=parse_date(matter.get("date")),
        id=text_of(name, "file name"),
        fields={
            key: value for key, value in matter.items() if key not in ("author", "authors", "title", "date")
        },
    )


def _content(file: Path, root: Path) -> str:
    """The text of a file that lies within `root`.

    Raises:
        BadInputError: it does not, is too large or no regular file, cannot be read, or is not UTF-8.
    """
    try:
        if not file.resolve(strict=True).is_relative_to(root):
            raise BadInputError("a link that leads out of the folder is not followed")
        if not file.is_file():
            raise BadInputError("no regular file")
        with file.open("rb") as stream:
            content = stream.read(MAX_ROW + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise BadInputError(f"cannot be read: {error}") from None
    if len(content) > MAX_ROW:
        raise BadInputError(f"the file is {TOO_LONG}")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInputError(f"not UTF-8: {error.reason} in line {line}") from None


def _parse(content: str) -> tuple[dict[Any, Any], str]:
    """(front matter, text). A rule of dashes in the text is not taken for front matter."""
    if not _YAML.detect(content):
        return {}, content.strip()
    try:
        source, text = _YAML.split(content)
    except ValueError:
        raise BadInputError("the front matter that begins in line 1 is never closed by a line ---") from None
    try:
        matter = _YAML.load(source)
    except yaml.YAMLError as error:
        raise BadInputError(f"broken front matter: {error}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # such as date: 2024-02-30
        raise BadInputError(f"impossible front matter: {error}") from None
    if matter is None:
        matter = {}
    if not isinstance(matter, dict):
        raise BadInputError("the front matter is no mapping of names to values")
    return matter, text.strip()


def _heading(text: str) -> str:
    """The first heading's text, code blocks aside; "" where there is none."""
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence and (found := _HEADING.fullmatch(line)):
            return found[1].strip()
    return ""
