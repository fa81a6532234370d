"""Erasing a user, which takes the user's id typed out."""

from __future__ import annotations

from nicegui import ui

from penname.errors import BadInputError
from penname.serve.page.visit import Visit
from penname.serve.people import ErasedUser, erase_user


async def erase_dialog(visit: Visit) -> None:
    """Ask, erase, and tell what is gone. Afterwards the page begins anew."""
    name = (await visit.call(visit.mine)).id

    async def erase() -> None:
        if field.value != name:
            raise BadInputError("this is not the user's id: nothing was erased")
        erased = await visit.call(
            lambda: erase_user(visit.mine(), visit.house, visit.background, visit.learner)
        )
        dialog.clear()
        with dialog, ui.card().classes("dialog"):
            ui.label("Erased").classes("title")
            ui.label(_told(erased)).classes("text small")
            ui.button("Close", on_click=lambda: ui.navigate.to("/")).props("unelevated no-caps autofocus")
        dialog.on("hide", lambda: ui.navigate.to("/"))

    with ui.dialog() as dialog, ui.card().classes("dialog"):
        ui.label(f"Erase {name}?").classes("title")
        ui.label(
            "Documents, profiles, preferences, keys and drafts go for good, and the user's own part of each "
            "trained run. Export first what you want to keep."
        ).classes("text small")
        field = ui.input(f"Type {name} to erase").props("outlined autofocus autocomplete=off").classes("wide")
        with ui.row().classes("actions"):
            ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
            ui.button("Erase for good", on_click=visit.guarded(erase)).props(
                "unelevated no-caps color=negative"
            ).bind_enabled_from(field, "value", lambda value: value == name)
    dialog.open()


def _told(erased: ErasedUser) -> str:
    counts = erased.model_dump(exclude={"user", "trained"})
    told = ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "nothing was there"
    rows = f"; {erased.trained.rows} rows of trained runs" if erased.trained.rows else ""
    weights = ", ".join(erased.trained.weights)
    still = (
        f"\nThe shared weights of {weights} were trained on the user's data: only training anew takes it out."
        if weights
        else ""
    )
    return f"{told}{rows}.{still}"
