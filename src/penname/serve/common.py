"""What penname's own routes have in common: whose request it is, how a list is cut, what an error is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path as File
from typing import Annotated, Any, NoReturn, TypeVar

from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel

from penname.records import MAX_USER_ID
from penname.serve.auth import Caller, caller
from penname.serve.background import Background
from penname.serve.errors import Refusal
from penname.serve.house import House
from penname.serve.learning import Learner
from penname.serve.metrics import Metrics
from penname.store import UserStore

T = TypeVar("T")

SLASH = "\x00"
"""Stands for a slash inside a name of a path, where the client wrote %2F: no user or document has a NUL."""

_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/]+/)+")  # of a path within a text


class ErrorDetail(BaseModel):
    """What went wrong, in the form of OpenAI's API."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


_SAID = {
    400: "What was sent cannot be used",
    401: "No key, or one that is not valid",
    403: "The key may not do this",
    404: "There is nothing of this name that is the caller's",
    413: "The request is too large",
    429: "Too many requests with this key",
    500: "It was not done; the message says what to mend, or the server's log does",
    503: "The store or the server is busy: try again",
}


def errors(*more: int) -> dict[int | str, dict[str, Any]]:
    """The error answers that a route declares: those that every route with a key may give, and `more`."""
    return {
        status: {"model": ErrorBody, "description": _SAID[status]}
        for status in sorted({400, 401, 413, 429, 503, *more})
    }


def house_of(request: Request) -> House:
    """What all requests share."""
    house: House = request.app.state.house
    return house


def background_of(request: Request) -> Background:
    """What goes on after an answer."""
    background: Background = request.app.state.background
    return background


def learner_of(request: Request) -> Learner:
    """What learns from each preference."""
    learner: Learner = request.app.state.learner
    return learner


def metrics_of(request: Request) -> Metrics:
    """What is counted."""
    metrics: Metrics = request.app.state.metrics
    return metrics


HouseOf = Annotated[House, Depends(house_of)]
BackgroundOf = Annotated[Background, Depends(background_of)]
LearnerOf = Annotated[Learner, Depends(learner_of)]
MetricsOf = Annotated[Metrics, Depends(metrics_of)]
CallerOf = Annotated[Caller, Depends(caller)]


def named(value: str) -> str:
    """A name of the path as the client meant it."""
    return value.replace(SLASH, "/")


def user_named(
    user: Annotated[
        str,
        Path(
            min_length=1,
            max_length=MAX_USER_ID,
            description="A user's id; `me` is the user of the key. A slash in it is written %2F.",
        ),
    ],
) -> str:
    """The user id of the path."""
    return named(user)


def own_user(user: Annotated[str, Depends(user_named)], caller: CallerOf, house: HouseOf) -> UserStore:
    """The part of the store that is this user's: one for whom the caller may act.

    Raises:
        UnknownUserError: there is no such user, or it is not the caller's.
    """
    return caller.user_store(house, user)


OwnUser = Annotated[UserStore, Depends(own_user)]


def service_key(caller: CallerOf) -> Caller:
    """The caller, who must hold a service key."""
    if not caller.service:
        text = "This needs a service key: `penname keys create --service` makes one."
        raise Refusal(403, text, "permission_denied")
    return caller


ServiceCaller = Annotated[Caller, Depends(service_key)]

Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
After = Annotated[
    str | None, Query(max_length=MAX_USER_ID, description="Begin after the one of this id; see `next`.")
]


def page(
    read: Callable[[int], Sequence[T]], limit: int, key: Callable[[T], str]
) -> tuple[list[T], str | None]:
    """`limit` items at most, and the id after which there are more, if any.

    Args:
        read: gives so many items, fewer only where there are no more; it is asked for one more than `limit`.
        key: an item's id.
    """
    found = read(limit + 1)
    shown = list(found[:limit])
    return shown, key(shown[-1]) if len(found) > limit else None


def nothing_after() -> NoReturn:
    """Answer that a list cannot be gone on with from there.

    Raises:
        Refusal: 400.
    """
    raise Refusal(400, "`after` names nothing in this list.", "invalid_value")


def not_found(what: str, name: str) -> NoReturn:
    """Answer that there is nothing of this name.

    Raises:
        Refusal: 404.
    """
    shown = name if len(name) <= 60 else f"{name[:60]}…"
    raise Refusal(404, f"unknown {what} {shown!r}", "not_found")


def scrubbed(value: Any) -> Any:
    """JSON without folders of the server's machine: of each path only the last part."""
    if isinstance(value, dict):
        return {name: scrubbed(one) for name, one in value.items()}
    if isinstance(value, list):
        return [scrubbed(one) for one in value]
    if not isinstance(value, str):
        return value
    return File(value).name if File(value).is_absolute() else _FOLDERS.sub("", value)
