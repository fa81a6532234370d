"""The profile: what penname has learnt of a user, in words that the user can correct."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nicegui import ui

from penname.records import Profile
from penname.serve.material import ProfileText, refresh_profile, write_profile
from penname.serve.page.visit import Visit


def panel(visit: Visit) -> Callable[[], Awaitable[None]]:
    """The part of the page; returns what fills it for the user who is shown."""
    return _Profile(visit).fill


class _Profile:
    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._shown: Profile | None = None
        with ui.element("section").classes("stack").props('aria-label="Profile"'):
            ui.label("Profile").classes("title").props("role=heading aria-level=2")
            self._about = ui.label().classes("hint").props("role=status")
            self._text = ui.textarea("What is known of the writer, in words").classes("wide")
            self._text.props("outlined autogrow maxlength=20000")
            for key in ("ctrl.enter", "meta.enter"):
                self._text.on(f"keydown.{key}.prevent", visit.guarded(self._save))
            with ui.row().classes("actions"):
                ui.button("Save", icon="save", on_click=visit.guarded(self._save)).props("unelevated no-caps")
                ui.button("Make it anew", icon="refresh", on_click=visit.guarded(self._refresh)).props(
                    "flat no-caps"
                )
            ui.label("What you save is used from the next draft on, until it is made anew.").classes("hint")
            self._made_of = ui.expansion("What it was made of", icon="manage_search").classes("used")
        self._timer = ui.timer(1.0, visit.guarded(self._look), active=False)

    async def fill(self) -> None:
        """The newest profile."""
        self._made_of.set_visibility(False)
        self._text.set_value("")
        self._shown = None
        await self._look()

    async def _look(self) -> None:
        """Show the profile where it has changed; look again while one is being made."""
        visit, user = self._visit, self._visit.user
        if user is None:
            self._about.set_text("Nobody is picked.")
            return
        found = await visit.call(lambda: visit.mine().profile())
        if user != visit.user:  # another was picked meanwhile
            return
        waits = visit.background.waits(user)
        self._timer.active = waits
        if found is not None and (self._shown is None or found.version != self._shown.version):
            self._shown = found
            self._text.set_value(found.text)
            self._made_of.clear()
            self._made_of.set_visibility(bool(found.documents))
            with self._made_of:
                _details(found)
        self._about.set_text(_about(found, waits))

    async def _save(self) -> None:
        visit, text = self._visit, ProfileText(text=self._text.value or "")
        await visit.call(lambda: write_profile(text, visit.mine(), visit.house))
        await self._look()
        ui.notify("Saved. It is used from the next draft on.", type="positive")

    async def _refresh(self) -> None:
        visit = self._visit
        await visit.call(lambda: refresh_profile(visit.mine(), visit.background))
        await self._look()


def _about(profile: Profile | None, waits: bool) -> str:
    making = "A newer one is being made …" if waits else ""
    if profile is None:
        return making or "There is none yet: it is made of the documents under History, with the first draft."
    made = "" if profile.created_at is None else f" of {profile.created_at:%d %B %Y, %H:%M} UTC"
    edited = ", as you edited it" if profile.edited else f", made of {len(profile.documents)} documents"
    return f"Version {profile.version}{made}{edited}. {making}"


def _details(profile: Profile) -> None:
    parts = {
        "Topics": ", ".join(profile.topics),
        "Keywords": ", ".join(profile.keywords),
        "Favoured words": ", ".join(profile.favoured_words),
        "Tone": profile.tone,
        "Length": profile.length,
        "Structure": profile.structure,
        "Background": profile.background,
        "Openings": "\n".join(profile.openings),
    }
    for title, text in parts.items():
        if text:
            with ui.element("div").classes("part"):
                ui.label(title).classes("subtitle")
                ui.label(text).classes("text small")
