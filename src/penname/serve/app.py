"""The service as one ASGI application: its routes, what holds for all of them, and its beginning and end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penname import __version__
from penname.serve import completions, errors, feedback, limits, material, people, reports, runs, status
from penname.serve.background import Background
from penname.serve.common import SLASH
from penname.serve.house import House
from penname.serve.learning import Learner
from penname.serve.metrics import Counted, Metrics
from penname.serve.settings import ServeSettings

_API = ("/v1/", "/health", "/metrics", "/openapi.json")  # what is no page
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class App(FastAPI):
    """FastAPI without its 422: what is wrong in a request is a 400, as in OpenAI's API."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


def create_app(settings: ServeSettings, house: House | None = None) -> FastAPI:
    """The application. Its house is opened and closed with it, unless it is given one, which stays open.

    Raises:
        BadInputError: a folder of `settings.reports` is none of an evaluation's.

    Raises (when it starts):
        StoreError, ModelError, TrainedError: what the settings name cannot be opened.
        BadInputError: `settings.adapt` names a run that is not there or learns nothing of users.
    """
    shown = reports.Reports(settings.reports)
    metrics = Metrics()
    given = house is not None
    house = house or House(settings)
    house.batched = metrics.batch

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        background = Background(house, metrics.job)
        app.state.background = background
        app.state.learner = await run_in_threadpool(Learner, house, settings.adapt, background, metrics)
        background.start()
        try:
            yield
        finally:
            await run_in_threadpool(background.close)
            if not given:
                await run_in_threadpool(house.close)

    app = App(
        title="penname",
        version=__version__,
        summary="Writes, for each user, as that user would.",
        lifespan=lifespan,
        docs_url=None,  # both load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.settings, app.state.house, app.state.metrics = settings, house, metrics
    app.state.reports = shown
    for part in (status, completions, people, material, feedback, runs, reports):
        app.include_router(part.router)
    app.include_router(feedback.explanations)
    limits.install(app, settings)
    errors.install(app)
    app.add_middleware(Counted, metrics=metrics)
    app.add_middleware(Outermost)
    if settings.page and find_spec("nicegui") is not None:
        from penname.serve import page

        page.mount(app, house)
    return app


class Outermost:
    """Middleware for all requests: names with slashes reach their routes, and API answers run no scripts."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or not scope["path"].startswith(_API):
            await self.app(scope, receive, send)
            return
        raw = scope.get("raw_path") or b""
        if b"%2f" in raw.lower():
            scope["path"] = "/".join(_segment(part) for part in raw.decode("ascii", "replace").split("/"))

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)


def _segment(part: str) -> str:
    """A path's segment, a slash inside it replaced by what no name holds."""
    return unquote(part).replace(SLASH, "\ufffd").replace("/", SLASH)
