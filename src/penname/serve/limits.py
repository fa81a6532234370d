"""What one client may ask of the server, so that there is something left for the others.

A body's size is bounded before it is read, and while it is read. Requests of one key in a minute, and of all
keys at once, are counted after the key is known (`auth.caller`): who has none can use up nobody's share.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from penname.serve.errors import Refusal, answer
from penname.serve.settings import ServeSettings

_MINUTE = 60.0  # seconds


class Limits:
    """Counts requests. Safe to share between threads.

    Args:
        per_minute: requests that a key may make in a minute. It may make them all at once; then they come
            back one by one.
        concurrent: requests that may be in flight.
        clock: seconds, only ever growing.
    """

    def __init__(self, per_minute: int, concurrent: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._concurrent = concurrent
        self._clock = clock
        self._lock = threading.Lock()
        # By key, the one used last at the end: requests left, and when that was so.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._in_flight = 0

    def take(self, key_id: str) -> None:
        """Counts a request of this key.

        Raises:
            Refusal: 429, with the seconds until the next is let through.
        """
        a_second = self._per_minute / _MINUTE
        with self._lock:
            now = self._clock()
            left, then = self._left.get(key_id, (self._per_minute, now))
            left = min(self._per_minute, left + (now - then) * a_second)
            enough = left >= 1
            self._left[key_id] = (left - enough, now)
            self._left.move_to_end(key_id)
            while now - next(iter(self._left.values()))[1] >= _MINUTE:  # it has all its requests again
                self._left.popitem(last=False)
        if not enough:
            raise Refusal(
                429,
                f"This key may make {self._per_minute} requests a minute: wait, then try again.",
                "rate_limit_exceeded",
                retry_after=math.ceil((1 - left) / a_second),
            )

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Holds one of the places for requests in flight.

        Raises:
            Refusal: 503, as all are taken.
        """
        with self._lock:
            free = self._in_flight < self._concurrent
            self._in_flight += free
        if not free:
            text = f"The server is at work on {self._concurrent} requests: try again in a moment."
            raise Refusal(503, text, "overloaded", retry_after=1)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1


class DeclaredSize:
    """ASGI middleware: answers 413 to a body that says by itself that it is too large, before it is sent."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self.app = app
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > self.max_body):
            text = f"The body is larger than {self.max_body:,} bytes: send less at once."
            await answer(413, text, "request_too_large")(scope, receive, send)
            return
        await self.app(scope, receive, send)


def install(app: FastAPI, settings: ServeSettings) -> None:
    """Puts the limits of `settings` before the routes of `app`. Call it before `errors.install`, whose log is
    to hold what is refused here."""
    app.state.limits = Limits(settings.per_minute, settings.concurrent)
    # The first counts what comes, as a body need not say its size; its answer to one that does is no JSON.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body)
    app.add_middleware(DeclaredSize, max_body=settings.max_body)
