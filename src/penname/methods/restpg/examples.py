"""What REST-PG learns from: a request as the model reads it, with the text that its user really wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from penname.records import Draft, Hit, Profile, Prompt, Request


@dataclass(frozen=True)
class Example:
    """One text to learn to write (arXiv 2501.04167, section 3: x, y and P; x and P are in the prompt)."""

    request: Request  # with the real text as its `gold`, and who wrote it
    prompt: Prompt  # as the model reads it: the request with what was retrieved of the history

    @property
    def gold(self) -> str:
        """What the user really wrote."""
        return self.request.gold or ""


@dataclass(frozen=True)
class Material:
    """An example with what its prompt was made of, from which its reasoning is made."""

    example: Example
    hits: tuple[Hit, ...] = ()  # documents of the users that the prompt shows
    profiles: tuple[Profile, ...] = ()

    @classmethod
    def of(cls, draft: Draft) -> Self:
        """What a draft that is still to be written holds (`Writer.prompts`)."""
        return cls(Example(draft.request, draft.prompt), draft.documents, draft.profiles)


@dataclass(frozen=True)
class Answer:
    """An answer that a model wrote, without its reasoning."""

    request: Request
    text: str


class Reward(Protocol):
    """Says how near answers come to what their users really wrote: R(x, y, ŷ) of arXiv 2501.04167, eq. 3."""

    @property
    def name(self) -> str:
        """As a person names it, such as "similarity+0.5*chrf"."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides the values: part of the key under which they are kept."""
        ...

    @property
    def judges(self) -> tuple[str, ...]:
        """Fingerprints of the models that give it: they are not to judge what it trained."""
        ...

    def rewards(
        self, answers: Sequence[Answer], progress: Callable[[int, int], None] = lambda *_: None
    ) -> list[float]:
        """A number from 0 to 1 for each answer; a blank answer's is 0.

        Args:
            progress: called with values found and values in all, which may be several of an answer.
        """
        ...
