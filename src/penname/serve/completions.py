"""OpenAI's routes: /v1/models, /v1/chat/completions and /v1/completions, for its clients as they are.

Who goes away, streaming or not, is written for no longer: the text ends at its next piece, and is not kept.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NoReturn, TypeVar
from uuid import uuid4

from anyio import CancelScope, create_task_group, to_thread
from fastapi import APIRouter, Depends, Path
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive

from penname.errors import ModelError, PennameError
from penname.records import Draft, Message, Request
from penname.serve.auth import Caller, caller
from penname.serve.common import CallerOf, HouseOf, MetricsOf, errors, named
from penname.serve.errors import body as error_body
from penname.serve.forms import ChatForm, TextForm
from penname.serve.house import House
from penname.serve.metrics import Metrics
from penname.serve.types import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ModelList,
    ModelShown,
    Usage,
)
from penname.serve.writing import Drafting
from penname.tasks import task as find_task
from penname.train.preferences.prompts import as_text

router = APIRouter(prefix="/v1", tags=["openai"])

T = TypeVar("T")
EVENTS = "text/event-stream"
LEFT = 499  # status in log and metrics of a request whose client went away; nobody receives it
ModelName = Annotated[str, Path(min_length=1, max_length=256)]
_EVENTS: dict[str, Any] = {"content": {EVENTS: {"schema": {"type": "string"}}}}


@router.get("/models", summary="List models", responses=errors(), dependencies=[Depends(caller)])
def list_models(house: HouseOf) -> ModelList:
    """The ways to write: those without training, and one for each trained run."""
    return ModelList(data=[_model(house, name) for name in house.models()])


@router.get(
    "/models/{model:path}", summary="Read a model", responses=errors(404), dependencies=[Depends(caller)]
)
def read_model(model: ModelName, house: HouseOf) -> ModelShown:
    """Any model that a request may name."""
    house.method(named(model))
    return _model(house, named(model))


@router.post(
    "/chat/completions",
    summary="Write for a conversation",
    response_model=ChatCompletion,
    responses={200: _EVENTS, **errors(404)},
)
async def chat(
    asked: ChatRequest, http: HTTPRequest, who: CallerOf, house: HouseOf, metrics: MetricsOf
) -> BaseModel | Response:
    """A draft as the user would write it; with `stream` its pieces as server-sent events."""
    turns = tuple(
        Message(role="system" if turn.role == "developer" else turn.role, content=turn.text)
        for turn in asked.messages
    )
    form = ChatForm(f"chatcmpl-{uuid4().hex}", asked.model)
    return await _answer(asked, "messages", [as_text(turns)], form, http, who, house, metrics)


@router.post(
    "/completions",
    summary="Write for a prompt, or several",
    response_model=Completion,
    responses={200: _EVENTS, **errors(404)},
)
async def complete(
    asked: CompletionRequest, http: HTTPRequest, who: CallerOf, house: HouseOf, metrics: MetricsOf
) -> BaseModel | Response:
    """A draft for each prompt as the user would write it."""
    form = TextForm(f"cmpl-{uuid4().hex}", asked.model)
    return await _answer(asked, "prompt", asked.prompts, form, http, who, house, metrics)


async def _answer(
    asked: ChatRequest | CompletionRequest,
    field: str,
    texts: Sequence[str],
    form: ChatForm | TextForm,
    http: HTTPRequest,
    who: Caller,
    house: House,
    metrics: Metrics,
) -> BaseModel | Response:
    """The response, whole or as a stream that has begun: what goes wrong before is an error as any."""
    draftings = await _run(house, partial(_draftings, asked, field, texts, who, house))
    answer = _Answer(draftings, asked.n, form, _Client(http.receive), house, metrics)
    if asked.stream:
        return await answer.begun(asked.stream_options.include_usage)
    return await answer.whole()


def _draftings(
    asked: ChatRequest | CompletionRequest,
    field: str,
    texts: Sequence[str],
    who: Caller,
    house: House,
) -> list[Drafting]:
    """What is to be written, `asked.n` times for each text, with all that goes into it."""
    users = who.users(house, _named(asked))
    task = find_task(asked.metadata.get("task", "write"))
    for text in texts:
        if not text.strip():
            _refuse(field, "there is no text: say what to write")
        if len(text) > house.settings.max_input:
            _refuse(field, f"{len(text):,} characters; at most {house.settings.max_input:,} are taken")
    seed = secrets.randbits(31) if asked.seed is None else asked.seed % 2**63
    writer = house.writer(
        asked.model,
        temperature=asked.temperature,
        max_tokens=_limit(asked, house, task.max_tokens),
        seed=seed,
    )
    requests = [Request(task=task.name, input=text, users=users) for text in texts]
    return [
        Drafting(
            writer, draft.request, seed=seed + number, top_p=asked.top_p, stop=asked.stops, prepared=draft
        )
        for draft in writer.prompts(requests)
        for number in range(asked.n)
    ]


def _limit(asked: ChatRequest | CompletionRequest, house: House, usual: int) -> int:
    """Tokens of a draft at most."""
    name, wanted = "max_tokens", asked.max_tokens
    if isinstance(asked, ChatRequest) and asked.max_completion_tokens is not None:
        name, wanted = "max_completion_tokens", asked.max_completion_tokens
    most = house.settings.max_tokens
    if wanted is not None and wanted > most:
        _refuse(name, f"{wanted:,}; this server writes at most {most:,} tokens at once")
    return wanted or min(usual, most)


def _named(asked: ChatRequest | CompletionRequest) -> list[str] | None:
    """The users that a request names: several in the metadata, or one."""
    several = asked.metadata.get("users")
    if several is None:
        return None if asked.named is None else [asked.named]
    if not several.lstrip().startswith("["):
        return [name.strip() for name in several.split(",")]
    try:
        names = json.loads(several)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _refuse("metadata.users", "it begins as a JSON list, and is no JSON list of texts")
    return names


def _refuse(param: str, message: str) -> NoReturn:
    """Turn the request down for one of its fields."""
    raise RequestValidationError([{"loc": ("body", param), "msg": message, "type": "value_error"}])


async def _run(house: House, work: Callable[[], T]) -> T:
    """Run what takes its time in a thread. It is waited for, even by who is cancelled."""
    return await to_thread.run_sync(work, limiter=house.threads)


class _Client:
    """Who waits for an answer; `gone` when nobody does any more."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.gone = False

    async def watch(self) -> None:
        """Until it is gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True


class _Answer:
    """The drafts of one request on their way to a client."""

    def __init__(
        self,
        draftings: Sequence[Drafting],
        n: int,
        form: ChatForm | TextForm,
        client: _Client,
        house: House,
        metrics: Metrics,
    ) -> None:
        self._draftings = draftings
        self._n = n
        self._form = form
        self._client = client
        self._house = house
        self._metrics = metrics
        self._pieces = [drafting.pieces(lambda: client.gone) for drafting in draftings]

    async def whole(self) -> BaseModel | Response:
        """The response when all is written."""
        await self._all({number: partial(_exhaust, pieces) for number, pieces in enumerate(self._pieces)})
        if self._client.gone:
            return Response(status_code=LEFT)
        drafts, usage = await self._kept()
        return self._form.whole(drafts, usage)

    async def begun(self, include_usage: bool) -> Response:
        """A stream of which the first pieces have been written."""
        first = await self._round(range(len(self._pieces)))
        if self._client.gone:
            await _run(self._house, self._close)
            return Response(status_code=LEFT)
        return StreamingResponse(self._events(first, include_usage), media_type=EVENTS)

    async def _events(self, new: dict[int, str | None], include_usage: bool) -> AsyncIterator[str]:
        form = self._form
        try:
            for number in new:
                for chunk in form.first(number):
                    yield _event(chunk)
            while new:
                for number, piece in new.items():
                    if piece:
                        yield _event(form.piece(number, piece))
                new = await self._round([number for number, piece in new.items() if piece is not None])
            if self._client.gone:
                return
            drafts, usage = await self._kept()
            for number, draft in enumerate(drafts):
                yield _event(form.last(number, draft.finish))
            if include_usage:
                yield _event(form.usage(usage))
            yield "data: [DONE]\n\n"
        except Exception as error:  # noqa: BLE001 (the status is sent: all that is left is an event)
            yield f"data: {_said(error)}\n\n"
        finally:
            with CancelScope(shield=True):
                await _run(self._house, self._close)

    async def _round(self, numbers: Sequence[int]) -> dict[int, str | None]:
        """The next piece of each of these drafts; None where there is none any more."""
        return await self._all({number: partial(next, self._pieces[number], None) for number in numbers})

    async def _all(self, work: Mapping[int, Callable[[], T]]) -> dict[int, T]:
        """What each piece of work gives, while it is watched whether the client goes.

        Raises the first one's error when all have ended.
        """
        found: dict[int, T] = {}
        failed: dict[int, Exception] = {}

        async def one(number: int, do: Callable[[], T]) -> None:
            try:
                found[number] = await _run(self._house, do)
            except Exception as error:  # noqa: BLE001 (raised below)
                failed[number] = error

        async with create_task_group() as watching:
            watching.start_soon(self._client.watch)
            async with create_task_group() as group:
                for number, do in work.items():
                    group.start_soon(one, number, do)
            watching.cancel_scope.cancel()
        for number in sorted(failed):
            raise failed[number]
        return dict(sorted(found.items()))

    async def _kept(self) -> tuple[list[Draft], Usage]:
        """The drafts, kept so that they can be explained, and their tokens."""
        drafts = [drafting.draft for drafting in self._draftings]
        numbers = self._draftings[0].numbers
        keep = partial(self._house.keep, self._form.id, self._form.model, drafts, numbers)
        await _run(self._house, keep)
        read = sum(draft.prompt_tokens for draft in drafts[:: self._n])  # once for all choices of a prompt
        usage = Usage.of(read, sum(draft.completion_tokens for draft in drafts))
        self._metrics.tokens(usage.prompt_tokens, usage.completion_tokens)
        return drafts, usage

    def _close(self) -> None:
        for pieces in self._pieces:
            pieces.close()


def _exhaust(pieces: Generator[str]) -> None:
    for _ in pieces:
        pass


def _event(chunk: BaseModel) -> str:
    return f"data: {chunk.model_dump_json()}\n\n"


def _said(error: Exception) -> str:
    """The body of an error, without what only the log may hold."""
    if not isinstance(error, PennameError):
        unexpected = ModelError("unexpected")
        unexpected.__cause__ = error
        error = unexpected
    return bytes(error_body(error).body).decode()


def _model(house: House, name: str) -> ModelShown:
    return ModelShown(id=name, created=int(house.started.timestamp()))
