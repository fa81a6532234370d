"""The page at `/`: try the server, compare drafts, and teach it. NiceGUI ships all that the browser loads.

    page.mount(app, house)

Who signs in pastes a key, and sees what that key may see (`session`). The browser keeps the name of a
session, never the key. What the page does is done by the functions that the API's routes call, for the same
caller (`visit`), so that nothing is allowed here that is not allowed there.

NiceGUI is one for each process: where several applications are mounted, their pages share its event loop, and
only the one that was started last answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from penname.serve.house import House
from penname.serve.page.door import Door, nicegui_app
from penname.serve.page.session import Sessions, sign_in, sign_out

__all__ = ["mount"]


def mount(app: FastAPI, house: House) -> None:
    """Put the page into an application: at `/`, with `/sign-in` and `/sign-out`, and what NiceGUI needs.

    All else that the application has no route for stays its own to answer.
    """
    app.state.sessions = Sessions(house)
    app.add_api_route("/sign-in", sign_in, methods=["POST"], include_in_schema=False)
    app.add_api_route("/sign-out", sign_out, methods=["POST"], include_in_schema=False)
    pages = nicegui_app()
    app.router.routes.append(Door(app, pages))
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state, pages.router.lifespan_context(pages):
            yield state

    app.router.lifespan_context = lifespan
