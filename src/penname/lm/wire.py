"""What an OpenAI-compatible server answers, as far as penname reads it, and the log-probabilities in it.

Servers differ in what they add and leave out, so every field that penname can do without may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, Field, model_validator

from penname.errors import ModelError
from penname.lm.base import Generation, Score
from penname.lm.stops import stop_at

_BYTES_PER_TOKEN = 3  # fewer than tokenisers reach on nearly every text


class Part(BaseModel):
    """A chat answer, or a piece of one; models that only reasoned leave `content` empty."""

    content: str | None = None


class Choice(BaseModel):
    """One of the answers: `text` from /completions, `message` from /chat/completions."""

    index: int = 0
    text: str | None = None
    message: Part | None = None
    finish_reason: str | None = None
    logprobs: Any = None  # read as `Logprobs` only where they were asked for

    @model_validator(mode="after")
    def _has_text(self) -> Choice:
        if self.text is None and self.message is None:
            raise ValueError("a choice without text")
        return self

    @property
    def content(self) -> str:
        """The text of the answer."""
        return _kept(self.message.content if self.message else self.text)


class Usage(BaseModel):
    """Tokens of one request, of all its choices together."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class PromptToken(BaseModel):
    """One token of the prompt, as vLLM reports it."""

    logprob: float
    decoded_token: str | None = None


class Answer(BaseModel):
    """A whole answer of /completions or /chat/completions."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None
    prompt_logprobs: list[dict[str, PromptToken] | None] | None = None  # vLLM only

    def logprobs(self) -> Logprobs:
        """Those of the first choice; empty where they are missing or in a form of the server's own."""
        try:
            return Logprobs.model_validate(self.choices[0].logprobs or {})
        except ValueError:
            return Logprobs()


class ChunkChoice(BaseModel):
    """A piece of a streamed answer."""

    text: str | None = None
    delta: Part | None = None
    finish_reason: str | None = None

    @property
    def content(self) -> str:
        """The text of the piece; "" in pieces that only tell the role or the end."""
        return _kept(self.delta.content if self.delta else self.text)


class Chunk(BaseModel):
    """One event of a stream; the one that tells the usage has no choices."""

    choices: list[ChunkChoice] | None = None
    usage: Usage | None = None


class ModelEntry(BaseModel):
    """An entry of /models."""

    id: str
    owned_by: str | None = None  # "vllm" of vLLM
    max_model_len: int | None = None  # tokens; vLLM tells it
    parent: str | None = None  # of an adapter on vLLM: its base


class Models(BaseModel):
    """The answer of /models."""

    data: list[ModelEntry]


class TopToken(BaseModel):
    """A token that could have come, with the natural logarithm of its probability."""

    token: str
    logprob: float


class ChatToken(BaseModel):
    """A token of a chat answer with those that could have come in its place."""

    top_logprobs: list[TopToken] = Field(default_factory=list)


class Logprobs(BaseModel):
    """Log-probabilities: the first four fields from /completions, `content` from /chat/completions."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    text_offset: list[int] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[ChatToken] | None = None

    def first_tokens(self) -> dict[str, float]:
        """The tokens that could have come first, with their log-probabilities; {} where none are told."""
        if self.content:
            return {top.token: top.logprob for top in self.content[0].top_logprobs}
        return (self.top_logprobs[0] or {}) if self.top_logprobs else {}


Read = TypeVar("Read", Answer, Chunk, Models)


def read(kind: type[Read], raw: object) -> Read:
    """`raw` as `kind`; text where a server mislabelled its JSON. Raises ValueError where it is none."""
    return kind.model_validate_json(raw) if isinstance(raw, str) else kind.model_validate(raw)


def estimated(text: str) -> int:
    """Tokens of a text where the server does not tell them: rarely too few."""
    return math.ceil(len(text.encode(errors="replace")) / _BYTES_PER_TOKEN)


def shared_out(total: int | None, texts: Sequence[str]) -> list[int]:
    """Tokens of each text: the server's count shared out by length, or estimates where it gave none."""
    if total is None:
        return [estimated(text) for text in texts]
    length = sum(map(len, texts))
    return [round(total * len(text) / length) if length else total // len(texts) for text in texts]


def generation(choice: Choice, prompt_tokens: int, tokens: int, stops: Sequence[str]) -> Generation:
    """What the choice says, up to the first of the stop strings."""
    text = choice.content
    end = stop_at(text, stops)
    whole = end < len(text) or choice.finish_reason != "length"
    return Generation(text[:end], prompt_tokens, tokens, "stop" if whole else "length")


def _kept(text: str | None) -> str:
    """`text` without NUL, which no database keeps; "" where there is none."""
    return (text or "").replace("\x00", "")


class UnscorableError(ModelError):
    """An answer does not hold what a score needs; the message says what is missing."""


def echo_score(logprobs: Logprobs, prompt: str, completion: str) -> Score:
    """The score of `completion` from an answer that repeats `prompt + completion`, token by token.

    A token that straddles the border counts to the completion. Tokens after the completion are left out.

    Raises:
        UnscorableError: the tokens are not told, or cannot be laid over the text.
    """
    text = prompt + completion
    tokens, values = logprobs.tokens or [], logprobs.token_logprobs or []
    starts = _starts(tokens, text, logprobs.text_offset)
    if len(values) != len(tokens) or starts is None:
        raise UnscorableError("its tokens do not cover the text that was sent")
    ends = [*starts[1:], len(text)]
    border = len(prompt)
    inside = [
        value
        for start, end, value in zip(starts, ends, values, strict=True)
        if start < len(text) and (end > border or start >= border)
    ]
    return _score(inside)


def tail_score(prompt_tokens: Sequence[dict[str, PromptToken] | None], completion: str) -> Score:
    """The score of `completion` where it is the end of a prompt whose tokens vLLM reports one by one.

    A token that straddles the border counts to the completion.

    Raises:
        UnscorableError: the prompt does not end in `completion` (a chat template changed or followed it).
    """
    tail, values = "", list[float | None]()
    for position in reversed(prompt_tokens):
        if not position:  # the first token of all has no probability
            break
        # vLLM lists the token that stands there first, and others only where they were asked for.
        token = next(iter(position.values()))
        piece = token.decoded_token or ""
        if piece and len(tail) >= len(
            completion
        ):  # an empty piece is the beginning of the character after it
            break
        tail = piece + tail
        values.append(token.logprob)
    if not tail.endswith(completion):
        raise UnscorableError("its chat template changes the completion or adds to it")
    return _score(values[::-1])


def first_token_shares(top: dict[str, float], options: Sequence[str]) -> list[float]:
    """Probability of each option, told by the first token alone; they sum to 1.

    A token counts to the option that it begins; where an option is there as a whole token, only that token
    counts to it. An option that none of the listed tokens begins gets 0, and where they begin none at all,
    the model would say something else, all get 0. Spaces around are ignored.

    Raises:
        UnscorableError: a token begins several options, or no tokens are told.
    """
    if not top:
        raise UnscorableError("it does not tell which tokens could come first")
    wanted = [option.strip() for option in options]
    whole = {token.strip() for token in top}
    mass = [0.0] * len(wanted)
    for token, logprob in top.items():
        part = token.strip()
        begun = [
            i for i, o in enumerate(wanted) if part and o.startswith(part) and (o == part or o not in whole)
        ]
        if len(begun) > 1:
            raise UnscorableError("several options begin with the same token")
        if begun:
            mass[begun[0]] += math.exp(logprob)
    total = sum(mass)
    return [share / total for share in mass] if total else mass


def _score(values: list[float | None]) -> Score:
    known = tuple(value for value in values if value is not None)
    if len(known) < len(values):
        raise UnscorableError("it leaves out the first token's probability; the prompt must not be empty")
    return Score(total=math.fsum(known), tokens=len(known), per_token=known)


def _starts(tokens: list[str], text: str, offsets: list[int] | None) -> list[int] | None:
    """Where each token begins in `text`, or None where that cannot be told.

    Laying the tokens over the text is tried first: some servers count special tokens, which are not in the
    text, into their offsets. Where tokens are pieces of characters, only the server's offsets can tell.
    """
    for special in range(min(3, len(tokens))):  # tokens put before the text, such as the beginning of a text
        if "".join(tokens[special:]).startswith(text):
            starts = [-1] * special  # before the text: never part of a completion
            at = 0
            for token in tokens[special:]:
                starts.append(at)
                at += len(token)
            return starts
    if offsets and len(offsets) == len(tokens) and _offsets_agree(tokens, text, offsets):
        return offsets
    return None


def _offsets_agree(tokens: list[str], text: str, offsets: list[int]) -> bool:
    """Whether the offsets reach the text's end, and tokens that can be read stand where they say."""
    if offsets[0] != 0 or offsets != sorted(offsets) or offsets[-1] + len(tokens[-1]) < len(text):
        return False
    return all(
        text.startswith(token, at)
        for token, at in zip(tokens, offsets, strict=True)
        if at + len(token) <= len(text) and "\ufffd" not in token and not token.startswith("bytes:")
    )
