"""The nouns: what penname stores, asks for and returns. All are frozen pydantic models.

Times are timezone-aware UTC; a naive time given is read as UTC, a date as its midnight.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from penname.errors import BadInputError, BadUserIdError

MAX_USER_ID = 256  # characters: long enough for any e-mail address (254) or UUID
MAX_TEXT = 1_000_000  # characters of one document: about 600 pages; longer ones are split by their owner


def check_user_id(value: str) -> str:
    """A user id as it may be stored: any text of 1 to 256 visible characters.

    Ids are opaque: they become neither paths nor SQL, so quotes, slashes and emoji are allowed.

    Raises:
        BadUserIdError: empty, longer than 256 characters, surrounded by blanks, or holding
            control characters (NUL, newline …) or lone surrogates, which no database keeps as given.
    """
    if not value or value != value.strip():
        raise BadUserIdError(f"user id {value[:60]!r} is empty or begins or ends with a blank")
    if len(value) > MAX_USER_ID:
        raise BadUserIdError(
            f"user id {value[:40]!r}… has {len(value):,} characters; the limit is {MAX_USER_ID}"
        )
    bad = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad is not None:
        raise BadUserIdError(f"user id {value[:60]!r} holds the control character {bad!r}")
    return value


def check_text(value: str) -> str:
    """Text that every database keeps as given: no NUL, no lone surrogate.

    Raises:
        BadInputError: the text holds one of these (it is likely binary).
    """
    if "\x00" in value:
        raise BadInputError("the text holds a NUL character: is it binary?")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInputError(f"the text holds a lone surrogate at character {error.start}") from None
    return value


def _utc(value: object) -> object:
    """Dates to their midnight and naive times to UTC; the rest is pydantic's to judge."""
    if isinstance(value, str):
        written = value.strip()
        try:
            value = datetime.fromisoformat(written)
        except ValueError:
            raise BadInputError(
                f"{written[:40]!r} is no ISO 8601 date or time (such as 2024-03-01 or 2024-03-01T09:30:00Z)"
            ) from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        try:
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except OverflowError:
            raise BadInputError(f"the time {value.isoformat()} is out of range") from None
    return value


# Before pydantic's own check, which has no readable word for a lone surrogate; other types are its to refuse.
UserId = Annotated[
    str, BeforeValidator(lambda value: check_user_id(value) if isinstance(value, str) else value)
]
Text = Annotated[str, BeforeValidator(lambda value: check_text(value) if isinstance(value, str) else value)]
Moment = Annotated[datetime, BeforeValidator(_utc)]


class Record(BaseModel):
    """Base of all records: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class User(Record):
    """Somebody who writes. `id` is opaque; `name` is for people to read."""

    id: UserId
    name: Text = ""


class Document(Record):
    """One text that a user wrote, alone or with others.

    Two documents with the same id, of one user, are the same document. Without an id the content's
    hash is the id, so adding the same text twice adds it once.
    """

    id: Text = ""
    title: Text = ""
    text: Text = Field(min_length=1, max_length=MAX_TEXT)
    written_at: Moment | None = None  # None: unknown; never used for a request with a date
    position: int = Field(default=0, ge=0)  # this user's place among the authors, from 0
    n_authors: int = Field(default=1, ge=1)
    fields: dict[str, Any] = Field(default_factory=dict)  # what else the source said (JSON values)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.text.strip():
            raise BadInputError("the document has no text")
        if self.position >= self.n_authors:
            raise BadInputError(f"author position {self.position} of {self.n_authors} authors")
        if not self.id:
            # The only write to a frozen record, before anyone has seen it.
            object.__setattr__(self, "id", self.content_hash)
        return self

    @property
    def content_hash(self) -> str:
        """32 hex digits over all but the id: equal when, and only when, nothing has changed."""
        when = self.written_at.isoformat() if self.written_at else None
        content = [self.title, self.text, when, self.position, self.n_authors, self.fields]
        return digest(content)


class Authored(Record):
    """A document on its way into a store, with the user whose history it joins."""

    user: UserId
    document: Document


class Request(Record):
    """What is to be written: a task, its input, and the users (in author order) it is written for.

    `before` is the request's date: nothing written at or after it, and nothing without a date, is used.
    `exclude` names documents that are never used (the answer's own). `gold` is the real text, where known.
    `options` are the answers to choose from, where the answer is one of a few.
    """

    id: Text = ""
    task: Text = "write"
    input: Text = Field(min_length=1)
    users: tuple[UserId, ...] = Field(min_length=1)
    before: Moment | None = None
    exclude: tuple[Text, ...] = ()
    gold: Text | None = None
    options: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.input.strip():
            raise BadInputError("the request is empty")
        if len(set(self.users)) != len(self.users):
            raise BadInputError(f"a user is named twice in {self.users}")
        if not self.id:
            object.__setattr__(self, "id", digest([self.task, self.input, self.users]))
        return self


class Preference(Record):
    """What a user preferred: a choice or an edit (`chosen` over `rejected`), or a rating of `completion`.

    An edit's `rejected` is the draft and its `chosen` the user's revision. `rating` lies in [-1, 1].
    """

    id: Text = ""
    user: UserId
    kind: Literal["choice", "rating", "edit"]
    prompt: Text = ""
    chosen: Text | None = None
    rejected: Text | None = None
    completion: Text | None = None
    rating: float | None = Field(default=None, ge=-1, le=1)
    made_at: Moment | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        pair = self.chosen is not None and self.rejected is not None
        rated = self.completion is not None and self.rating is not None
        if self.kind == "rating" and (not rated or pair):
            raise BadInputError("a rating needs 'completion' and 'rating', and no pair")
        if self.kind != "rating" and (not pair or rated):
            raise BadInputError(f"a {self.kind} needs 'chosen' and 'rejected', and no rating")
        if pair and self.chosen == self.rejected:
            raise BadInputError("'chosen' and 'rejected' are the same text: nothing was preferred")
        if not self.id:
            values = self.model_dump(mode="json", exclude={"id"})
            object.__setattr__(self, "id", digest(values))
        return self


class StyleFacts(Record):
    """How a user writes, measured (not asked) over the documents of a profile. Shares are in [0, 1]."""

    documents: int = 0
    words: float = 0.0  # mean words per document
    words_low: float = 0.0  # 10th percentile of words per document
    words_high: float = 0.0  # 90th percentile
    sentence_words: float = 0.0  # mean words per sentence
    paragraphs: float = 0.0  # mean paragraphs per document
    word_letters: float = 0.0  # mean letters per word
    contractions: float = 0.0  # share of words that are contractions (don't, I'm)
    first_person: float = 0.0  # share of words: I, me, my, mine, myself
    first_plural: float = 0.0  # share of words: we, us, our, ours, ourselves
    second_person: float = 0.0  # share of words: you, your, yours, yourself
    questions: float = 0.0  # share of sentences that end in ?
    exclamations: float = 0.0  # share of sentences that end in !
    commas: float = 0.0  # per 100 words
    semicolons: float = 0.0  # ; and : per 100 words
    dashes: float = 0.0  # – and — and spaced hyphens per 100 words
    parentheses: float = 0.0  # opening parentheses per 100 words
    lists: float = 0.0  # share of documents with a bulleted or numbered line
    lowercase_starts: float = 0.0  # share of sentences that begin in lower case
    emoji: float = 0.0  # per 100 words


class Profile(Record):
    """What penname has learnt of a user from the history, in words (arXiv 2406.14275, Step-Back Profiling).

    `text` is what goes into a prompt; the fields above it are what it was made of. `facts` are measured.
    """

    user: UserId
    version: int = 0  # 1, 2, … within the user; 0 before it is stored
    topics: tuple[Text, ...] = ()
    keywords: tuple[Text, ...] = ()
    background: Text = ""
    tone: Text = ""
    length: Text = ""
    structure: Text = ""
    favoured_words: tuple[Text, ...] = ()
    openings: tuple[Text, ...] = ()  # first sentences of the latest documents, in the user's own words
    titles: tuple[Text, ...] = ()  # of the latest documents
    facts: StyleFacts = StyleFacts()
    text: Text
    documents: tuple[Text, ...] = ()  # ids, oldest first
    fingerprint: Text = (
        ""  # of the documents' contents, the model and the prompt texts; "" if written by hand
    )
    model: Text = ""
    edited: bool = False
    before: Moment | None = None  # made of what was written before this moment; None: of everything
    created_at: Moment | None = None


class Hit(Record):
    """A document found for a request. Higher scores are better; scales differ between retrievers."""

    user: UserId
    document: Document
    score: float


class Message(Record):
    """One turn of a conversation with a chat model."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | tuple[Message, ...]
"""What a model is given: plain text to go on from (base-like models) or a conversation (chat models)."""


def prompt_values(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as JSON values: what a content hash is taken of."""
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]


class Round(Record):
    """One round of improving a text: what came, and whether it took the place of the text before it."""

    text: str
    taken: bool
    gain: float | None = None  # gap reward over the text before it; None: it was not measured
    probability: float | None = None  # that it is better than the text before it, by the gap reward
    feedback: str = ""  # what was said of the text before it, where something was


class Draft(Record):
    """A text that was written for a request, and how it came about."""

    text: str
    request: Request
    method: str
    model: str
    finish: Literal["stop", "length"]  # "length": cut at the token limit
    reasoning: str = ""  # what the model said to itself before the text; no part of it
    profiles: tuple[Profile, ...] = ()  # in author order
    documents: tuple[Hit, ...] = ()
    prompt: Prompt = ""
    dropped: tuple[str, ...] = ()  # what did not fit into the context, in words
    notes: tuple[str, ...] = ()  # what else was not as the method's name says, in words
    first: str = ""  # the text as it was before its rounds of improvement, where there were any
    rounds: tuple[Round, ...] = ()  # of improvement, in order, with those that were not taken
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)  # by stage: retrieve, profile, write
    seed: int = 0


class BadRow(Record):
    """A row of a source that could not be read; the rest of the import goes on."""

    file: str
    line: int  # from 1; 0 where the file as a whole is meant
    why: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.why}"


Item = User | Authored | Request | Preference | Profile | BadRow
"""What a source yields."""


def digest(value: object) -> str:
    """32 hex digits of SHA-256 over `value` as canonical JSON: the content hash used everywhere."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
