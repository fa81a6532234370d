"""One open page: who looks at it, which user is shown, and how the page does what the API's routes do."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from nicegui import ui
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from penname.errors import BadInputError, PennameError
from penname.serve.auth import Caller
from penname.serve.background import Background
from penname.serve.errors import body
from penname.serve.house import House
from penname.serve.learning import Learner
from penname.serve.page.session import Sessions
from penname.store import UserStore

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_FAILED = "The server had an error while it worked on this. Its log says where."


class SignedOut(Exception):  # noqa: N818 (it is told by going to the sign-in)
    """The session has ended, or its key was revoked."""


class Visit:
    """What all parts of one open page share.

    Attributes:
        user: the id of the user who is shown; None while a service has picked nobody.
        caller: who is signed in.
    """

    def __init__(self, app: FastAPI, caller: Caller, session: str) -> None:
        self.app = app
        self.caller = caller
        self.user = caller.user
        self._session = session
        self._threads = CapacityLimiter(8)  # of this page: its drafts stream while it is used

    @property
    def house(self) -> House:
        """What all requests share."""
        house: House = self.app.state.house
        return house

    @property
    def background(self) -> Background:
        """What goes on after an answer."""
        background: Background = self.app.state.background
        return background

    @property
    def learner(self) -> Learner:
        """What learns from each preference."""
        learner: Learner = self.app.state.learner
        return learner

    def mine(self) -> UserStore:
        """The part of the store of the user who is shown. It is looked up anew each time.

        Raises:
            BadInputError: nobody is picked.
            UnknownUserError: the user was erased, or is not the caller's any more.
        """
        if self.user is None:
            raise BadInputError("pick a user first, or add one")
        return self.caller.user_store(self.house, self.user)

    async def call(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)` in a thread, if who is signed in still may.

        Raises:
            SignedOut: the session has ended.
            Whatever `work` raises.
        """
        return await to_thread.run_sync(partial(self._checked, work, *args), limiter=self._threads)

    def guarded(self, work: Callable[..., Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """A handler of events that tells the person what went wrong, and the log nothing but its kind."""

        async def handler() -> None:
            try:
                await work()
            except SignedOut:
                ui.navigate.to("/")
            except Exception as error:  # noqa: BLE001 (NiceGUI would log its message, which may hold a text)
                ui.notify(said(error), type="negative", multi_line=True, close_button="Close")

        return handler

    def _checked(self, work: Callable[..., T], *args: Any) -> T:
        sessions: Sessions = self.app.state.sessions
        if sessions.caller(self._session) is None:
            raise SignedOut
        return work(*args)


def said(error: Exception) -> str:
    """What went wrong, in the words that the API has for it."""
    if isinstance(error, HTTPException):
        return str(error.detail)
    if isinstance(error, PennameError):
        message: str = json.loads(bytes(body(error).body))["error"]["message"]
        return message
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    places = " < ".join(
        f"{one.filename}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)[::-1]
    )
    _LOG.error("%s in the page at %s", type(error).__name__, places)
    return _FAILED
