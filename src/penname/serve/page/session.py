"""Sign-in by a key. The browser keeps a random name in a cookie; what it stands for is here: a key's id."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import parse_qs

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from penname.serve.auth import Caller
from penname.serve.house import House
from penname.serve.page.door import same_origin

COOKIE = "penname"
LASTS = 12 * 3600  # seconds from signing in
MOST = 10_000  # sessions; the oldest goes first

REFUSED = "/?refused"  # the page says then that the key was not valid


class Sessions:
    """Who is signed in, in memory: a server that starts anew knows of nobody. Thread-safe."""

    def __init__(self, house: House, clock: Callable[[], float] = time.monotonic) -> None:
        self._house = house
        self._clock = clock
        self._open: OrderedDict[str, tuple[Caller, float]] = OrderedDict()  # by the name's hash; when it ends
        self._lock = threading.Lock()

    def begin(self, secret: str) -> str | None:
        """The name of a new session for the key with this secret; None where there is no such key."""
        key = self._house.store.key(secret)
        if key is None:
            return None
        name = secrets.token_urlsafe(32)
        with self._lock:
            self._open[_hash(name)] = Caller(key.id, key.user), self._clock() + LASTS
            while len(self._open) > MOST:
                self._open.popitem(last=False)
        return name

    def caller(self, name: str | None) -> Caller | None:
        """Who has this session; None where it has ended, or its key was revoked."""
        with self._lock:
            found = self._open.get(_hash(name or ""))
        if found is None:
            return None
        caller, ends = found
        if self._clock() >= ends or not self._house.store.has_key(caller.key_id):
            self.end(name)
            return None
        return caller

    def end(self, name: str | None) -> None:
        """Sign out."""
        with self._lock:
            self._open.pop(_hash(name or ""), None)


async def sign_in(request: Request) -> Response:
    """A form with a key, answered with a session's cookie and the page."""
    if not same_origin(request.headers):
        return PlainTextResponse("Another origin asked.", 403)
    form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
    secret = form.get("key", [""])[0].strip()
    name = await run_in_threadpool(request.app.state.sessions.begin, secret)
    if name is None:
        return RedirectResponse(REFUSED, 303)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        COOKIE, name, max_age=LASTS, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return answer


async def sign_out(request: Request) -> Response:
    """Ends the session."""
    if not same_origin(request.headers):
        return PlainTextResponse("Another origin asked.", 403)
    request.app.state.sessions.end(request.cookies.get(COOKIE))
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
