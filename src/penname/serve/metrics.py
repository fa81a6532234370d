"""What a server counts, for Prometheus. Nothing names a user: labels are templates of routes, and kinds."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OTHER = "other"  # route of what is no route of the API
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")  # others are counted as one
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What one server has counted since it began; each has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "penname_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "penname_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "penname_tokens", "Tokens read and written.", ("kind",), registry=self.registry
        )
        self._batches = Histogram(
            "penname_batch_size", "Texts written together.", buckets=_SIZES, registry=self.registry
        )
        self._jobs = Counter(
            "penname_jobs",
            "Profiles made and users' parts of runs fitted, by what became of them.",
            ("kind", "state"),
            registry=self.registry,
        )
        self._waiting = Gauge(
            "penname_jobs_waiting", "Background jobs that wait or run.", registry=self.registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        method = method if method in _METHODS else OTHER
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tokens(self, prompt: int, completion: int) -> None:
        """A draft was written."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def batch(self, size: int) -> None:
        """So many texts were written together."""
        self._batches.observe(size)

    def job(self, kind: str, state: str) -> None:
        """A profile was made, or a user's part of a run fitted; or not."""
        self._jobs.labels(kind, state).inc()

    def text(self, waiting: int) -> bytes:
        """All of it in Prometheus's text format."""
        self._waiting.set(waiting)
        return generate_latest(self.registry)


class Counted:
    """Middleware that counts requests by their route's template."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path_format", None) or OTHER
            self.metrics.request(scope["method"], route, status, time.perf_counter() - started)
