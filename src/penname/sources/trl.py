"""Preference rows as TRL takes them, with a field that names the user.

Each row of a JSON array or of JSON Lines is one of

    {prompt, chosen, rejected, user_id}     a choice
    {chosen, rejected, user_id}             the same, the prompt being what both begin with (messages only)
    {prompt, completion, label, user_id}    a single rating; label is true (good: 1) or false (bad: −1)

where a prompt, chosen, rejected and completion are texts, or lists of messages {role, content}. Messages
become text: a single message of the user (in a prompt) or of the assistant (in an answer) is its content;
otherwise "role: content" for each, with a blank line between. A row may have an `id`, which is kept.
`rows` gives the messages as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from penname.errors import BadInputError
from penname.records import BadRow, Item, Preference, check_user_id
from penname.sources._conversation import Turn, flatten, turns_of
from penname.sources._each import Row, data_files, each, needed
from penname.sources._rows import id_of, text_of

Side = str | tuple[Turn, ...]
"""A prompt or an answer as its row holds it: text or messages."""

T = TypeVar("T")


@dataclass(frozen=True)
class Judged:
    """One row as it stands: `chosen` and `rejected`, or `completion` and `label`; the others are None.

    `user` is as the row names it and "" where it names none; `user_text`, what the row says about that user,
    is whatever the field holds. Neither is checked.
    """

    user: str
    id: str
    user_text: object
    prompt: Side
    chosen: Side | None = None
    rejected: Side | None = None
    completion: Side | None = None
    label: bool | None = None


def read(
    path: Path, *, user_field: str = "user_id", split: str | None = None, prefix: str = ""
) -> Iterator[Item]:
    """A Preference for each row.

    Args:
        path: a file, or a folder with one file for each split (train.jsonl, test.jsonl, …).
        user_field: the field that names the user.
        split: which file of a folder; all by default.
        prefix: put before every user's id.

    Raises:
        BadInputError: no such file or split, or it is no JSON.
    """

    def preference(judged: Judged) -> list[Item]:
        if not judged.user:
            raise BadInputError(f"the row has no user: no field {user_field!r}")
        return [_preference(judged, prefix)]

    return rows(path, preference, user_field=user_field, split=split)


def rows(
    path: Path,
    convert: Callable[[Judged], Iterable[T]],
    *,
    user_field: str = "user_id",
    split: str | None = None,
) -> Iterator[T | BadRow]:
    """What `convert` makes of each row; a BadRow where the row cannot be read or `convert` raises.

    Args:
        path, user_field, split: as for `read`.
        convert: may raise BadInputError, which becomes the BadRow's reason.

    Raises:
        BadInputError: as `read`.
    """
    for file in data_files(path, split):
        yield from each(file, lambda row: convert(_judged(row, user_field)))


def _judged(row: Row, user_field: str) -> Judged:
    user, own = id_of(row.get(user_field), user_field), id_of(row.get("id"), "id")
    about = row.get("user_text")
    if "chosen" in row or "rejected" in row:
        needed(row, "chosen", "rejected")
        if "prompt" not in row and isinstance(row["chosen"], list):
            prompt, chosen, rejected = _shared(row)
        else:
            prompt, chosen, rejected = (_side(row, name) for name in ("prompt", "chosen", "rejected"))
        return Judged(user, own, about, prompt, chosen=chosen, rejected=rejected)
    needed(row, "completion", "label")
    label = row["label"]
    if not isinstance(label, bool):
        raise BadInputError(f"the label is true or false, not {label!r:.40}")
    return Judged(user, own, about, _side(row, "prompt"), completion=_side(row, "completion"), label=label)


def _side(row: Row, name: str) -> Side:
    value = row.get(name)
    return tuple(turns_of(value, name)) if isinstance(value, list) else text_of(value, name)


def _shared(row: Row) -> tuple[Side, Side, Side]:
    """The messages that both conversations begin with, and what follows them in each."""
    chosen, rejected = turns_of(row["chosen"], "chosen"), turns_of(row["rejected"], "rejected")
    same = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    prompt = tuple(turn for turn, _ in same)
    return prompt, tuple(chosen[len(prompt) :]), tuple(rejected[len(prompt) :])


def _preference(judged: Judged, prefix: str) -> Preference:
    user = check_user_id(prefix + judged.user)
    own = prefix + judged.id if judged.id else ""
    prompt = _text(judged.prompt, "user")
    if judged.chosen is not None and judged.rejected is not None:
        chosen, rejected = _text(judged.chosen, "assistant"), _text(judged.rejected, "assistant")
        return Preference(id=own, user=user, kind="choice", prompt=prompt, chosen=chosen, rejected=rejected)
    completion = _text(judged.completion or "", "assistant")
    rating = 1.0 if judged.label else -1.0
    return Preference(id=own, user=user, kind="rating", prompt=prompt, completion=completion, rating=rating)


def _text(side: Side, alone: str) -> str:
    return side if isinstance(side, str) else flatten(side, alone)
