"""OpenAI's requests and responses, as far as they mean something here.

Settings that change nothing in a text are taken and ignored; what would be asked for in vain is refused by
its name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from penname.records import Text

MOST_CHOICES = 4  # of one prompt
MOST_PROMPTS = 16  # of one request to /v1/completions
_INT64 = 2**63
# No value of these would change a text here.
_IGNORED = (
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
    "store",
)
# Only what is the same as leaving them away is taken.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (),
}


class _Given(BaseModel):
    """What a client sends: null is as good as nothing, and what is not known is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class TextPart(_Given):
    """A part of a message. Pictures and sound are not taken."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Given):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = Field(None, max_length=256, description="Ignored.")

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(_Given):
    """How a stream is sent."""

    include_usage: bool = False
    include_obfuscation: bool = False  # ignored: no stream is padded


class _Asked(_Given):
    """What both kinds of request have in common."""

    model: str = Field(
        min_length=1, max_length=256, description="penname/METHOD, or penname for the default method."
    )
    temperature: float = Field(0.7, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(0.95, gt=0, le=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=1, description="Without it: as many as the task needs.")
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64, description="Without it: drawn by chance.")
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | list[Annotated[str, Field(min_length=1, max_length=256)]]
    ) = Field([], max_length=4)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = Field(
        None, min_length=1, max_length=256, description="For a service's key: the user to write as."
    )
    metadata: dict[str, str] = Field(
        {},
        max_length=16,
        description="`users`: several authors, as a JSON list or with commas; `task`: the kind of text.",
    )

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, value: Any) -> Any:
        """Without settings that mean nothing here; one that would mean something stays, and is refused."""
        if not isinstance(value, dict):
            return value
        return {
            k: v
            for k, v in value.items()
            if k not in _IGNORED
            # Type and value: False is no 0 here.
            and not any(type(v) is type(one) and v == one for one in _NEUTRAL.get(k, ()))
        }

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings before which a text ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def named(self) -> str | None:
        """The user that the request names by itself."""
        return self.user


class ChatRequest(_Asked):
    """A request to /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1, description="As max_tokens, which it goes before.")
    safety_identifier: str | None = Field(None, min_length=1, max_length=256, description="As user.")

    @property
    def named(self) -> str | None:
        """The user that the request names by itself."""
        return self.user or self.safety_identifier


class CompletionRequest(_Asked):
    """A request to /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]

    @property
    def prompts(self) -> list[str]:
        """The prompts, in order."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ModelShown(BaseModel):
    """A way to write."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since 1970.")
    owned_by: str = "penname"


class ModelList(BaseModel):
    """All ways to write."""

    object: Literal["list"] = "list"
    data: list[ModelShown]


class Usage(BaseModel):
    """Tokens read and written. A prompt counts once for all of its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Self:
        """The counts with their sum."""
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class RequestId(BaseModel):
    """Under which the drafts can be explained."""

    request_id: str


Finish = Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """A draft as a message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One draft."""

    index: int
    message: ChatAnswer
    finish_reason: Finish
    logprobs: None = None


class TextChoice(BaseModel):
    """One draft, or a piece of one."""

    index: int
    text: str
    finish_reason: Finish | None
    logprobs: None = None


class ChunkChoice(BaseModel):
    """A piece of one draft, or its end."""

    index: int
    delta: dict[Literal["role", "content"], str]
    finish_reason: Finish | None = None
    logprobs: None = None


class _Answer(BaseModel):
    """What all answers have in common."""

    id: str
    created: int = Field(description="Seconds since 1970.")
    model: str
    usage: Usage | None = None
    penname: RequestId


class ChatCompletion(_Answer):
    """The drafts for a conversation."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ChatChunk(_Answer):
    """An event of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]


class Completion(_Answer):
    """The drafts for a prompt or several; in a stream an event."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
