"""Soft prompts as token ids: every row of a call's prefixes has an id of its own, beyond any vocabulary.

All that is done to ids (padding, one reading for texts that begin alike) is then right for them too, and
texts of two users have no id in common where their prefixes lie. Numbers only: no model in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from penname.errors import BadInputError

if TYPE_CHECKING:
    from penname.lm.base import Prefix

FIRST = 1 << 40  # the id of the first row; beyond any vocabulary


class SoftPrompts:
    """The prefixes of one call.

    Args:
        prefixes: one for each of `count` prompts, None for a prompt without; None: no prompt has one.
        width: numbers of one row: the model's embedding.

    Raises:
        BadInputError: not one for each prompt, or a prefix that is no table of rows of this width.
    """

    def __init__(self, prefixes: Sequence[Prefix | None] | None, count: int, width: int) -> None:
        if prefixes is None:
            prefixes = [None] * count
        if len(prefixes) != count:
            raise BadInputError(f"{count} prompts and {len(prefixes)} prefixes: give one for each, or None")
        starts: dict[str, range] = {}
        kept: list[np.ndarray] = []
        end = FIRST
        for prefix in prefixes:
            if prefix is None or prefix.key in starts:
                continue
            if prefix.rows.ndim != 2 or not len(prefix.rows) or prefix.rows.shape[1] != width:
                raise BadInputError(
                    f"a soft prompt of shape {prefix.rows.shape} does not fit: a row must have {width} "
                    "numbers, as this model's embeddings have"
                )
            starts[prefix.key] = range(end, end + len(prefix.rows))
            kept.append(np.asarray(prefix.rows, dtype=np.float32))
            end += len(prefix.rows)
        self.ids: list[list[int]] = [[] if one is None else list(starts[one.key]) for one in prefixes]
        """What stands before each prompt."""
        self.rows: np.ndarray | None = np.concatenate(kept) if kept else None
        """(rows, width) float32, that of id `FIRST + i` at place i; None: no prompt has a prefix."""


def refuse(prefixes: Sequence[Prefix | None] | None, name: str) -> None:
    """What a backend without soft prompts does with them.

    Raises:
        BadInputError: a prompt has one; the message says which backend takes them.
    """
    if any(prefix is not None for prefix in prefixes or ()):
        raise BadInputError(
            f"{name} takes no soft prompts (prefixes): a model that transformers runs does, from a folder or "
            "with an adapter"
        )
