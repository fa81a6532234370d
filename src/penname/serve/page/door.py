"""Between the network and NiceGUI: which paths are its own, who may ask, and what a page may load."""

from __future__ import annotations

import logging
import secrets
from functools import cache
from urllib.parse import urlsplit

from fastapi import FastAPI
from nicegui import app as nicegui
from nicegui import ui
from starlette.datastructures import Headers, MutableHeaders, URLPath
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Message, Receive, Scope, Send

APP = "penname.app"  # where a page finds, in its request's scope, the application that it belongs to
_OWN = ("/_nicegui/", "/_nicegui_ws/")
# NiceGUI compiles its components in the browser and styles them in place, hence 'unsafe-eval' and the styles.
# Scripts in the page need the nonce, and no attribute of an element is ever run.
_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # without it a form says nothing of where it comes from
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@cache
def nicegui_app() -> FastAPI:
    """NiceGUI's application, set up once for the process."""
    from penname.serve.page.frame import home

    # Its messages may quote what users wrote; what fails in a page is logged by `visit`, without texts.
    logging.getLogger("nicegui").setLevel(logging.CRITICAL + 1)
    # Nothing is mounted by this: `run_with` looks at every object of the process when it starts, which takes
    # long and touches what warns. All that is needed of it is the configuration.
    ui.run_with(
        FastAPI(),
        title="penname",
        dark=None,  # as the system has it
        language="en-GB",
        favicon="🖋️",
        reconnect_timeout=10,
        tailwind=False,
        gzip_middleware_factory=None,  # a nonce is put into the page
        show_welcome_message=False,
    )
    ui.page("/")(home)
    return nicegui


class Door(BaseRoute):
    """The route of everything that NiceGUI answers.

    No mount at `/`: that would answer for the API too, where a route is missing or has another method.
    """

    def __init__(self, app: FastAPI, pages: FastAPI) -> None:
        self._app = app
        self._pages = pages

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is for the page, or for what the page needs."""
        path = scope.get("path", "")
        own = path.startswith(_OWN) or (path in ("/", "/favicon.ico") and scope.get("method") == "GET")
        return (Match.FULL if own and scope["type"] in ("http", "websocket") else Match.NONE), {}

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        """There are no names."""
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; refuse what another site's page asks for."""
        if (scope["type"] == "websocket" or scope["method"] != "GET") and not same_origin(
            Headers(scope=scope)
        ):
            await _refuse(scope, receive, send)
            return
        scope[APP] = self._app
        nonce = secrets.token_urlsafe(16)
        reply = _Reply(send, nonce) if scope["type"] == "http" else send
        await self._pages(scope, receive, reply)


def same_origin(headers: Headers) -> bool:
    """Whether a request comes from a page of this server, or from no page at all."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": "another origin"})
    else:
        await PlainTextResponse("Another origin asked.", 403)(scope, receive, send)


class _Reply:
    """Sends an answer with the headers, and a page's scripts with the nonce."""

    def __init__(self, send: Send, nonce: str) -> None:
        self._send = send
        self._nonce = nonce
        self._start: Message | None = None  # of a page: held back, as its length changes
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = _POLICY.format(nonce=self._nonce)
            headers.update(_HEADERS)
            if headers.get("content-type", "").startswith("text/html"):
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            # Texts stand in the page with every `<` escaped, so what begins so is NiceGUI's own.
            body = self._body.replace(b"<script", f'<script nonce="{self._nonce}"'.encode())
            MutableHeaders(scope=self._start)["Content-Length"] = str(len(body))
            await self._send(self._start)
            message = {"type": "http.response.body", "body": body}
        await self._send(message)
