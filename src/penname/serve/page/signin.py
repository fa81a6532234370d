"""Signing in."""

from __future__ import annotations

from nicegui import ui


def sign_in_form(*, refused: bool) -> None:
    """A field for a key. It is sent as a form, so that no script and no address ever holds it."""
    with ui.element("main").classes("sign-in"):
        ui.label("penname").classes("brand").props("role=heading aria-level=1")
        ui.label("Writes, for each user, as that user would.").classes("hint")
        with ui.element("form").props("method=post action=/sign-in").classes("stack"):
            ui.input("Key").props(
                "name=key type=password outlined autofocus autocomplete=off maxlength=200 spellcheck=false"
            ).classes("wide")
            if refused:
                ui.label("This key is not valid: it is unknown, or was revoked.").classes("wrong").props(
                    "role=alert"
                )
            ui.button("Sign in", icon="login").props("no-caps type=submit unelevated").classes("wide")
        ui.label("penname keys create --user NAME makes a key. It begins with pn-.").classes("hint")
