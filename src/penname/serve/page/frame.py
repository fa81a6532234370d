"""The page as a whole: sign-in, or the user's name over what can be done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from nicegui import ui
from starlette.concurrency import run_in_threadpool

from penname.serve.page import history, profile, reports, runs, writing
from penname.serve.page.door import APP
from penname.serve.page.picker import picker
from penname.serve.page.session import COOKIE
from penname.serve.page.signin import sign_in_form
from penname.serve.page.visit import SignedOut, Visit, said

_STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")

Fill = Callable[[], Awaitable[None]]

_TABS: tuple[tuple[str, str, Callable[[Visit], Fill]], ...] = (
    ("Write", "edit_note", writing.panel),
    ("Profile", "badge", profile.panel),
    ("History", "folder_open", history.panel),
    ("Runs", "insights", runs.panel),
    ("Reports", "table_chart", reports.panel),
)
_SERVICES = ("Runs", "Reports")  # tabs that a user's own key does not see


async def home(request: Request) -> None:
    """The page at `/`."""
    ui.add_head_html(f"<style>{_STYLE}</style>")
    ui.colors(primary="#4a3fa0")
    app: FastAPI = request.scope[APP]
    session = request.cookies.get(COOKIE, "")
    caller = await run_in_threadpool(app.state.sessions.caller, session)
    if caller is None:
        sign_in_form(refused="refused" in request.query_params)
        return
    visit = Visit(app, caller, session)
    try:
        await _parts(visit)
    except SignedOut:
        ui.navigate.to("/")
    except Exception as error:  # noqa: BLE001 (see `Visit.guarded`)
        ui.label(said(error)).classes("wrong")


async def _parts(visit: Visit) -> None:
    """The header and the tabs. A tab is filled when it is opened, and when another user is picked."""
    fills: dict[str, Fill] = {}

    async def fill(*_: Any) -> None:
        await visit.guarded(fills[str(tabs.value)])()

    with ui.header().classes("top"):
        ui.label("penname").classes("brand")
        await picker(visit, fill)
        with ui.element("form").props("method=post action=/sign-out"):
            leave = ui.button("Sign out", icon="logout").props("flat no-caps type=submit").classes("quiet")
            leave.props('aria-label="Sign out"')
    with ui.element("main").classes("main") as main:
        with ui.tabs().props("no-caps inline-label align=left").classes("tabs") as tabs:
            shown = [one for one in _TABS if visit.caller.service or one[0] not in _SERVICES]
            for name, icon, _ in shown:
                ui.tab(name, icon=icon)
        with ui.tab_panels(tabs, value="Write", animated=False).classes("panels"):
            for name, _, part in shown:
                with ui.tab_panel(name):
                    fills[name] = part(visit)
        tabs.on_value_change(fill)
    ui.skip_link("Skip to the page", target=main)
    await fills["Write"]()
