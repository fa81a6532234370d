"""Preference rows as TRL takes them, with a field that names the user.

Each row of a JSON array or of JSON Lines is one of

    {prompt, chosen, rejected, user_id}     a choice
    {chosen, rejected, user_id}             the same, the prompt being what both begin with (messages only)
    {prompt, completion, label, user_id}    a single rating; label is true (good: 1) or false (bad: −1)

where a prompt, chosen, rejected and completion are texts, or lists of messages {role, content}. Messages
become text: a single message of the user (in a prompt) or of the assistant (in an answer) is its content;
otherwise "role: content" for each, with a blank line between. A row may have an `id`, which is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from penname.errors import BadInputError
from penname.records import Item, Preference
from penname.sources._conversation import flatten, turns_of
from penname.sources._each import Row, data_files, each, needed, user_of
from penname.sources._rows import id_of, text_of


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

    def preference(row: Row) -> list[Item]:
        user = user_of(row, user_field, prefix)
        own = id_of(row.get("id"), "id")
        return [_preference(row, user, prefix + own if own else "")]

    for file in data_files(path, split):
        yield from each(file, preference)


def _preference(row: Row, user: str, id: str) -> Preference:  # noqa: A002
    if "chosen" in row or "rejected" in row:
        needed(row, "chosen", "rejected")
        if "prompt" not in row and isinstance(row["chosen"], list):
            prompt, chosen, rejected = _shared(row)
        else:
            prompt, chosen, rejected = _prompt(row), _answer(row, "chosen"), _answer(row, "rejected")
        return Preference(id=id, user=user, kind="choice", prompt=prompt, chosen=chosen, rejected=rejected)
    needed(row, "completion", "label")
    label = row["label"]
    if not isinstance(label, bool):
        raise BadInputError(f"the label is true or false, not {label!r:.40}")
    rating = 1.0 if label else -1.0
    completion = _answer(row, "completion")
    return Preference(
        id=id, user=user, kind="rating", prompt=_prompt(row), completion=completion, rating=rating
    )


def _prompt(row: Row) -> str:
    value = row.get("prompt")
    return flatten(turns_of(value, "prompt")) if isinstance(value, list) else text_of(value, "prompt")


def _answer(row: Row, name: str) -> str:
    value = row[name]
    return flatten(turns_of(value, name), "assistant") if isinstance(value, list) else text_of(value, name)


def _shared(row: Row) -> tuple[str, str, str]:
    """The messages that both conversations begin with, and what follows them in each."""
    chosen, rejected = turns_of(row["chosen"], "chosen"), turns_of(row["rejected"], "rejected")
    prompt = [
        turn for turn, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    ]
    rest = [flatten(turns[len(prompt) :], "assistant") for turns in (chosen, rejected)]
    return flatten(prompt), rest[0], rest[1]
