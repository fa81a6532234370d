"""Preferences as they are read, from files in TRL's form or from a store: one at a time, no rule applied.

A prompt is text, or a conversation where the source has one. See `penname.sources.trl` for the form of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from penname.errors import BadInputError
from penname.records import BadRow, Message, Preference, Prompt, check_text, check_user_id
from penname.sources import trl
from penname.store import Store

_SQLITE = b"SQLite format 3\x00"
_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Pair:
    """Of two answers to a prompt the one that a user prefers; `about` is text about the user, if any.

    `user` is None where nobody is named.
    """

    user: str | None
    prompt: Prompt
    chosen: str
    rejected: str
    about: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """The chosen and the rejected text."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class Rating:
    """How much a user likes one answer to a prompt: `rating` is in [-1, 1]."""

    user: str | None
    prompt: Prompt
    completion: str
    rating: float
    about: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """The text that is rated."""
        return (self.completion,)


Feedback = Pair | Rating


def read_preferences(
    source: str | Path | Store,
    *,
    user_field: str = "user_id",
    part: str | None = None,
    about: bool = False,
) -> Iterator[Feedback | BadRow]:
    """The preferences of a file, a folder or a store, one at a time in the order of the source.

    A URL, and a file that begins as SQLite's do, is a store; it gives the choices, edits and ratings of all
    its users, by user. Anything else is JSON or JSON Lines in TRL's form, plain or .gz, with a field for the
    user (which may lack) and perhaps `user_text`, text about the user.

    Args:
        user_field: of files: the field that names the user.
        part: of a folder: only the file of this name, such as "train"; all files by default.
        about: of a store: whether each user's newest profile is the text about the user.

    Raises (while iterating):
        BadInputError: the source is neither, or cannot be read.
        StoreError: a database that cannot be opened, or is none of penname.
    """
    if isinstance(source, Store):
        yield from _stored(source, about)
    elif is_store(source):
        with Store(source, create=False) as store:
            yield from _stored(store, about)
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise BadInputError(
                f"there is nothing at {str(path)!r}: name a file of preferences (JSON or JSON Lines), a "
                "folder of such files, or a store (a database file or URL)"
            )
        yield from trl.rows(path, _judged, user_field=user_field, split=part)


def is_store(source: str | Path) -> bool:
    """Whether that is a URL, or a file that begins as SQLite's do.

    Raises:
        BadInputError: the file may not be read.
    """
    if "://" in str(source):
        return True
    path = Path(source).expanduser()
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise BadInputError(f"{path} cannot be opened: {error.strerror}") from None


def _stored(store: Store, about: bool) -> Iterator[Feedback]:
    for user in store.users():
        yield from read_user(store, user.id, about=about)


def read_user(store: Store, user: str, *, about: bool = False) -> Iterator[Feedback]:
    """One user's preferences in a store, in the order in which they came; `about` as in `read_preferences`.

    Raises (while iterating):
        UnknownUserError: the store has no such user.
    """
    mine = store.user(user)
    profile = mine.profile() if about else None
    for preference in mine.preferences():
        yield _preferred(preference, profile.text if profile else "")


def _preferred(preference: Preference, about: str) -> Feedback:
    user, prompt = preference.user, preference.prompt
    if preference.chosen is not None and preference.rejected is not None:
        return Pair(user, prompt, preference.chosen, preference.rejected, about)
    # A record is a pair or has both of these.
    return Rating(user, prompt, cast(str, preference.completion), cast(float, preference.rating), about)


def _judged(judged: trl.Judged) -> list[Feedback]:
    user = check_user_id(judged.user) if judged.user else None
    about = judged.user_text
    if not isinstance(about, str | None):
        raise BadInputError("the field 'user_text' is no text")
    about = check_text(about or "")
    prompt = _prompt(judged.prompt)
    if judged.chosen is not None and judged.rejected is not None:
        return [Pair(user, prompt, _answer(judged.chosen), _answer(judged.rejected), about)]
    completion = _answer(cast(trl.Side, judged.completion))
    return [Rating(user, prompt, completion, 1.0 if judged.label else -1.0, about)]


def _prompt(side: trl.Side) -> Prompt:
    """Text, or messages of the roles that models know, the last of them not the model's own; "" for none."""
    if isinstance(side, str):
        return side
    if not side:
        return ""
    for turn in side:
        if turn.role not in _ROLES:
            raise BadInputError(
                f"a message of the prompt has the role {turn.role!r:.40}, not one of {', '.join(_ROLES)}"
            )
    if _ROLES[side[-1].role] != "user":
        raise BadInputError("the prompt does not end with a message of the user")
    return tuple(
        Message.model_validate({"role": _ROLES[turn.role], "content": turn.content}) for turn in side
    )


def _answer(side: trl.Side) -> str:
    """The text of an answer: as it is, or of the one message that it consists of."""
    if isinstance(side, str):
        return side
    if not side:
        return ""
    if len(side) > 1 or _ROLES.get(side[0].role) != "assistant":
        raise BadInputError(
            "an answer is one message of the assistant, not a longer conversation "
            "(where there is no prompt, chosen and rejected must begin with the same messages)"
        )
    return side[0].content
