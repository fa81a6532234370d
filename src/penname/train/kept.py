"""Numbers that cost a model's pass, kept on disk under the hash of what they were computed from.

The frozen reference of a training says the same of a text at every step, and so does a reward: each is asked
once. The file holds hashes and numbers, no text.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from penname.errors import TrainedError

Asked = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt's token ids and an answer's."""

T = TypeVar("T", bound=Hashable)
"""What is asked about: tuples of numbers and texts, all that the number hangs on beside the model."""

N = TypeVar("N", bound=float | bytes)
"""A number, or several as bytes."""


class Kept:
    """Numbers of one model, such as log-probabilities of answers after their prompts.

    Args:
        file: where they are kept; made if it is not there. None: nothing is kept from one asking to the next.
        model: what else decides the numbers: the weights' fingerprint and the type they are computed in.
    """

    def __init__(self, file: Path | None, model: str) -> None:
        self._file = file
        self._model = model

    def ask(
        self,
        asked: Sequence[T],
        compute: Callable[[Sequence[T]], Iterator[Mapping[int, N]]],
    ) -> list[N]:
        """The number of each, computed where it is not there yet.

        Args:
            compute: yields, portion by portion, the numbers of the asked by their place; each portion is kept
                at once, so that a kill loses the portion in flight alone.

        Raises:
            TrainedError: the file is damaged, or cannot be written.
        """
        try:
            with closing(sqlite3.connect(self._file or ":memory:")) as database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, number REAL NOT NULL)"
                )
                return self._ask(database, asked, compute)
        except sqlite3.OperationalError as error:  # another process holds it, the disk is full …
            raise TrainedError(f"{self._file} cannot be read or written now: {error}") from None
        except sqlite3.DatabaseError as error:
            raise TrainedError(f"{self._file}: {error}: remove it, and it is made again") from None

    def _ask(
        self,
        database: sqlite3.Connection,
        asked: Sequence[T],
        compute: Callable[[Sequence[T]], Iterator[Mapping[int, N]]],
    ) -> list[N]:
        keys = [self._key(one) for one in asked]
        found: dict[bytes, N] = {}
        for key in dict.fromkeys(keys):
            row = database.execute("SELECT number FROM kept WHERE key = ?", (key,)).fetchone()
            if row is not None:
                found[key] = row[0]
        missing = list({key: one for key, one in zip(keys, asked, strict=True) if key not in found}.items())
        for portion in compute([one for _, one in missing]):
            new = {missing[place][0]: number for place, number in portion.items()}
            with database:
                database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", new.items())
            found |= new
        return [found[key] for key in keys]

    def _key(self, asked: Hashable) -> bytes:
        return hashlib.sha256(json.dumps([self._model, asked]).encode()).digest()
