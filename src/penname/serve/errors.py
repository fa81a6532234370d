"""Errors as OpenAI's API has them, and a log line for each request.

An answer says what was wrong in the request. What goes wrong in the server is told in the log only, by kind
and place in the code: an exception's message may quote a text.
"""

from __future__ import annotations

import logging
import time
import traceback

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penname.errors import (
    BadInputError,
    ErasureError,
    PennameError,
    PromptTooLongError,
    StoreBusyError,
    UnknownMethodError,
    UnknownNameError,
    UnknownUserError,
)

log = logging.getLogger("penname.serve")

_CODES = {
    401: "invalid_api_key",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
}
_LONGEST = 1000  # characters of a message: it may quote what was sent
_FRAMES = 8  # of a traceback: the innermost
_FAILED = "The server had an error while it worked on the request. Its log says where."


class Refusal(HTTPException):
    """A request that is turned down; `code` is for programs.

    Args:
        status: the HTTP status.
        message: what was wrong and what to do.
        code: as in OpenAI's API.
        retry_after: seconds after which it makes sense to ask again.
    """

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code = code


def answer(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error as OpenAI's API has it."""
    if status == 429:
        kind = "rate_limit_error"
    else:
        kind = "server_error" if status >= 500 else "invalid_request_error"
    # JSON bodies can hold lone surrogates, which no answer can.
    said = message[:_LONGEST].encode("utf-8", "replace").decode("utf-8")
    error = {"message": said, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status, headers)


def body(error: PennameError) -> JSONResponse:
    """The answer to an error of penname's; also for the end of a stream that has begun."""
    match error:
        case UnknownUserError():
            # Said anew: the message may offer other users' names.
            return answer(404, str(UnknownUserError(error.name)), "user_not_found", "user")
        case UnknownMethodError():
            return answer(404, str(error), "model_not_found", "model")
        case PromptTooLongError():
            return answer(400, str(error), "context_length_exceeded")
        case BadInputError() | UnknownNameError():
            return answer(400, str(error), "invalid_value")
        case StoreBusyError():
            text = "The store is busy: try again in a moment."
            return answer(503, text, "overloaded", headers={"Retry-After": "1"})
        case ErasureError():
            log.error("a user could not be erased from %s", ", ".join(map(str, error.folders)))
            names = ", ".join(folder.name for folder in error.folders)
            text = (
                f"Trained runs could not be cleaned of the user: {names}. Until they are mended or deleted "
                "on the server the user is kept; then erase again."
            )
            return answer(500, text, "erasure_failed")
    _log_error(error)
    return answer(500, _FAILED, "server_error")


def install(app: FastAPI) -> None:
    """Makes `app` answer errors as OpenAI's API does and log its requests to the logger "penname.serve"."""
    app.add_exception_handler(PennameError, _penname)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Log)


async def _penname(_: Request, error: Exception) -> Response:
    assert isinstance(error, PennameError)
    return body(error)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code in (204, 304):
        return Response(status_code=error.status_code, headers=headers)
    code = error.code if isinstance(error, Refusal) else _CODES.get(error.status_code)
    return answer(error.status_code, str(error.detail), code, headers=headers)


async def _invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong. Not 422, which OpenAI's API has not."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    message = f"{where}: {first['msg']}" if where else first["msg"]
    return answer(400, message, "invalid_value", where[:200] or None)


class Log:
    """ASGI middleware: a line a request, and an answer to what nobody else answers.

    Exceptions end here: the server's own log would print their messages.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})  # shared with the routes, which copy the scope
        began = time.monotonic()
        status, sent = 0, 0

        async def counting(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counting)
        except Exception as error:  # noqa: BLE001
            _log_error(error)
            if status:
                # Too late for an answer: the server is to cut the connection, so that it looks like no end.
                raise ConnectionAbortedError("the answer was cut short by an error; see above") from None
            await answer(500, _FAILED, "server_error")(scope, receive, counting)
        finally:
            log.info(
                "%s %s %s in=%s out=%d ms=%d key=%s",
                scope["method"],
                getattr(scope.get("route"), "path", "-"),
                status or "-",  # the client was gone before there was an answer
                _size(scope),
                sent,
                (time.monotonic() - began) * 1000,
                scope["state"].get("key_id", "-"),
            )


def _size(scope: Scope) -> str:
    declared = Headers(scope=scope).get("content-length", "")
    return declared if declared.isdecimal() and len(declared) < 19 else "-"


def _log_error(error: BaseException) -> None:
    """The kinds of the error and its causes, and where in the code they came up; no messages."""
    left, seen = [error], set()
    while left:
        one = left.pop()
        if id(one) in seen:  # Starlette raises an error out of the group that holds it
            continue
        seen.add(id(one))
        frames = reversed(traceback.extract_tb(one.__traceback__, limit=-_FRAMES))
        places = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
        log.error("%s at %s", type(one).__name__, places or "-")
        cause = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        left.extend([cause] if cause is not None else [])
        left.extend(one.exceptions if isinstance(one, BaseExceptionGroup) else [])
