"""Personalized Soups (arXiv 2310.11564): pairs of responses, chosen by a simulated user's preference.

The reward models' training files of the authors' data (`rm_training/*.json`) are JSON arrays, or JSON Lines,
of {user_input, completion_a, completion_b}, where `completion_a` is the preferred one. The user is the row's
`user_id` where it has one (as in the file that P-RLHF, arXiv 2402.05133, makes of them); else the option
`author`; else the preference that the file is named for, such as P1A or P3B.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from penname.errors import BadInputError
from penname.records import Item, Preference, check_user_id
from penname.sources._each import Row, data_files, each, needed, user_of
from penname.sources._rows import text_of

_PREFERENCE = re.compile(r"(?<![A-Za-z0-9])p?(?:ref)?([1-3])([A-D])(?![A-Za-z0-9])", re.IGNORECASE)


def read(path: Path, *, author: str | None = None, prefix: str = "") -> Iterator[Item]:
    """A Preference (a choice) for each row.

    Args:
        path: a file, or a folder of .json and .jsonl files, which are read in the order of their names.
        author: the user of rows that name none.
        prefix: put before every user's id.

    Raises:
        BadInputError: no such file, or it is no JSON.
    """
    for file in data_files(path):
        named = author or _named(file)

        def pair(row: Row, user: str | None = named) -> list[Item]:
            return [_pair(row, user, prefix)]

        yield from each(file, pair)


def _named(file: Path) -> str | None:
    """The one preference in the file's name, as "P1A"."""
    found = {
        f"P{number}{letter.upper()}" for number, letter in _PREFERENCE.findall(file.name.replace("_", "-"))
    }
    return found.pop() if len(found) == 1 else None


def _pair(row: Row, named: str | None, prefix: str) -> Preference:
    needed(row, "user_input", "completion_a", "completion_b")
    return Preference(
        user=_user(row, named, prefix),
        kind="choice",
        prompt=text_of(row["user_input"], "user_input"),
        chosen=text_of(row["completion_a"], "completion_a"),
        rejected=text_of(row["completion_b"], "completion_b"),
    )


def _user(row: Row, named: str | None, prefix: str) -> str:
    if row.get("user_id") is not None:
        return user_of(row, "user_id", prefix)
    if named is None:
        raise BadInputError(
            "neither a 'user_id' nor the file's name says whose preference it is: give the author"
        )
    return check_user_id(prefix + named)
