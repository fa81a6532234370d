"""Drafts in the forms of OpenAI's responses and of the events of its streams."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from penname.records import Draft
from penname.serve.types import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Completion,
    Finish,
    RequestId,
    TextChoice,
    Usage,
)


class ChatForm:
    """/v1/chat/completions.

    Args:
        id: of the request, under which its drafts are kept.
        model: as the client named it.
    """

    def __init__(self, id: str, model: str) -> None:  # noqa: A002
        self.id = id
        self.model = model
        self._common = _common(id, model)

    def whole(self, drafts: Sequence[Draft], usage: Usage) -> ChatCompletion:
        """The response."""
        choices = [
            ChatChoice(index=number, message=ChatAnswer(content=draft.text), finish_reason=draft.finish)
            for number, draft in enumerate(drafts)
        ]
        return ChatCompletion(**self._common, choices=choices, usage=usage)

    def first(self, number: int) -> list[ChatChunk]:
        """What comes before a draft's first piece."""
        return [self._chunk(ChunkChoice(index=number, delta={"role": "assistant", "content": ""}))]

    def piece(self, number: int, text: str) -> ChatChunk:
        """A piece of a draft."""
        return self._chunk(ChunkChoice(index=number, delta={"content": text}))

    def last(self, number: int, finish: Finish) -> ChatChunk:
        """The end of a draft."""
        return self._chunk(ChunkChoice(index=number, delta={}, finish_reason=finish))

    def usage(self, usage: Usage) -> ChatChunk:
        """The counts, for who asks for them."""
        return self._chunk(usage=usage)

    def _chunk(self, *choices: ChunkChoice, usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(**self._common, choices=list(choices), usage=usage)


class TextForm:
    """/v1/completions; arguments as of `ChatForm`."""

    def __init__(self, id: str, model: str) -> None:  # noqa: A002
        self.id = id
        self.model = model
        self._common = _common(id, model)

    def whole(self, drafts: Sequence[Draft], usage: Usage) -> Completion:
        """The response."""
        choices = [
            TextChoice(index=number, text=draft.text, finish_reason=draft.finish)
            for number, draft in enumerate(drafts)
        ]
        return Completion(**self._common, choices=choices, usage=usage)

    def first(self, _: int) -> list[Completion]:
        """Nothing: a text has no role."""
        return []

    def piece(self, number: int, text: str) -> Completion:
        """A piece of a draft."""
        return self._chunk(TextChoice(index=number, text=text, finish_reason=None))

    def last(self, number: int, finish: Finish) -> Completion:
        """The end of a draft."""
        return self._chunk(TextChoice(index=number, text="", finish_reason=finish))

    def usage(self, usage: Usage) -> Completion:
        """The counts, for who asks for them."""
        return self._chunk(usage=usage)

    def _chunk(self, *choices: TextChoice, usage: Usage | None = None) -> Completion:
        return Completion(**self._common, choices=list(choices), usage=usage)


def _common(id: str, model: str) -> dict[str, Any]:  # noqa: A002
    """What all answers and events of a request say."""
    made = {"id": id, "created": int(time.time()), "model": model}
    return {**made, "penname": RequestId(request_id=id)}
