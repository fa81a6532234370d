"""Conversations as one text, as a preference's prompt and completions are.

A single user message is its own text. Anything longer is "role: content" for each message, with a blank line
between two of them. Roles are as the source names them, except that "model" is "assistant".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from penname.errors import BadInputError
from penname.sources._rows import text_of


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


def turns_of(value: object, name: str) -> list[Turn]:
    """The messages [{"role": …, "content": …}] that the field `name` holds.

    Raises:
        BadInputError: it is no such list, or a content is no text (pictures, tool calls).
    """
    if not isinstance(value, list):
        raise BadInputError(f"the field {name!r} is no list of messages")
    turns = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadInputError(f"message {number} of {name!r} is no object with a 'role'")
        if message.get("content") is None:
            raise BadInputError(f"message {number} of {name!r} has no 'content'")
        turns.append(Turn(text_of(message["role"], "role"), text_of(message["content"], "content")))
    return turns


def flatten(turns: Sequence[Turn], alone: str = "user") -> str:
    """The conversation as text.

    Args:
        alone: the role whose message, where it is the only one, stands without it: "user" in a prompt,
            "assistant" in a completion.
    """
    if len(turns) == 1 and _role(turns[0]) == alone:
        return turns[0].content
    return "\n\n".join(f"{_role(turn)}: {turn.content}" for turn in turns)


def _role(turn: Turn) -> str:
    return "assistant" if turn.role == "model" else turn.role
