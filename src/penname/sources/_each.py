"""Rows of JSON files, each turned into items on its own: a row that cannot be used costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import BadRow, check_user_id
from penname.sources._arrays import objects
from penname.sources._rows import bad, id_of

Row = dict[str, Any]
T = TypeVar("T")

_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def each(path: Path, convert: Callable[[Row], Iterable[T]]) -> Iterator[T | BadRow]:
    """What `convert` makes of each object of the file; a BadRow where it raises, nothing of that row kept.

    Raises:
        BadInputError: the file cannot be opened, or is neither a JSON array nor JSON Lines.
    """
    for found in objects(path):
        if isinstance(found, BadRow):
            yield found
            continue
        line, row = found
        try:
            items = list(convert(row))
        except (BadInputError, ValidationError) as error:
            yield bad(path, line, error)
        else:
            yield from items


def data_files(path: Path, split: str | None = None) -> list[Path]:
    """The file `path`, or the JSON and JSON Lines files of the folder `path` in order of their names.

    Args:
        split: only the files of this name, without what follows its first dot.

    Raises:
        BadInputError: a split of something that is no folder, or no such files.
    """
    if not path.is_dir():
        if split is not None:
            raise BadInputError(f"{path} is no folder, so there is no split {split!r} to choose in it")
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIXES))
    chosen = [file for file in files if split in (None, file.name.split(".")[0])]
    if not chosen:
        has = ", ".join(file.name for file in files) or "none"
        raise BadInputError(f"{path} has no {split or '*'}.json or .jsonl (such files there: {has})")
    return chosen


def needed(row: Row, *names: str) -> None:
    """Do nothing where the row has these fields.

    Raises:
        BadInputError: it lacks one (null counts as lacking).
    """
    for name in names:
        if row.get(name) is None:
            has = ", ".join(repr(key) for key in list(row)[:8])
            raise BadInputError(f"no field {name!r}; the row has {has or 'none'}")


def user_of(row: Row, name: str, prefix: str = "") -> str:
    """The user that the field `name` holds, with the prefix.

    Raises:
        BadInputError: there is none, or it cannot be a user id.
    """
    user = id_of(row.get(name), name)
    if not user:
        raise BadInputError(f"the row has no user: no field {name!r}")
    return check_user_id(prefix + user)
