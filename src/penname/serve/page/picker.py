"""Whose page it is: a service picks one of its users, or adds one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nicegui import ui

from penname.serve.page.visit import Visit
from penname.serve.people import PutUser, put_user

SHOWN = 500  # users to pick from; who is not among them is named


async def picker(visit: Visit, changed: Callable[[], Awaitable[None]]) -> None:
    """The user's id; for a service a choice of its users, and a field that adds one.

    Args:
        changed: called when another user is picked.
    """
    if visit.caller.user is not None:
        ui.label(visit.caller.user).classes("who")
        return
    users = await own_users(visit)
    visit.user = users[0] if users else None

    async def pick() -> None:
        visit.user = choice.value
        await changed()

    async def add() -> None:
        name = (field.value or "").strip()
        shown = await visit.call(lambda: put_user(PutUser(name=""), name, visit.caller, visit.house))
        visit.user = shown.id
        choice.set_options(await own_users(visit), value=shown.id)
        field.set_value("")
        dialog.close()

    choice = ui.select(users[:SHOWN], value=visit.user, label="User", with_input=True)
    choice.on_value_change(visit.guarded(pick)).props("dense outlined").classes("who")
    with ui.dialog() as dialog, ui.card().classes("dialog"):
        ui.label("Add a user").classes("title")
        field = ui.input("User id").props("outlined autofocus maxlength=256").classes("wide")
        field.on("keydown.enter", visit.guarded(add))
        with ui.row().classes("actions"):
            ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
            ui.button("Add", on_click=visit.guarded(add)).props("unelevated no-caps")
    more = ui.button("Add a user", icon="person_add", on_click=dialog.open).props("flat no-caps")
    more.props('aria-label="Add a user"').classes("quiet")


async def own_users(visit: Visit) -> list[str]:
    """The ids of the service's users, and of the one who is shown."""
    found = await visit.call(visit.house.store.key_users, visit.caller.key_id)
    return sorted({*found[:SHOWN], *([visit.user] if visit.user in found else [])})
