"""The history: files dropped in, documents, preferences, and everything of a user to take away or erase."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from nicegui import ui
from nicegui.events import UploadEventArguments

from penname.records import Document, Preference
from penname.serve.material import NewDocument, NewDocuments, add_documents, remove_document
from penname.serve.page.dropped import KINDS, read_dropped
from penname.serve.page.erasing import erase_dialog
from penname.serve.page.visit import Visit, said

SHOWN = 50  # rows of a list; more on demand
_FORM = 10_000  # bytes of an upload that are not the file


def panel(visit: Visit) -> Callable[[], Awaitable[None]]:
    """The part of the page; returns what fills it for the user who is shown."""
    return _History(visit).fill


class _History:
    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._most = SHOWN
        self._lists = 0  # that were asked for: only the latest is shown
        limit = max(visit.house.settings.max_body - _FORM, 1)
        with ui.element("section").classes("stack").props('aria-label="Add documents"'):
            ui.label("Add documents").classes("title").props("role=heading aria-level=2")
            upload = ui.upload(
                multiple=True,
                auto_upload=True,
                max_file_size=limit,
                label="Drop files here, or choose them with +",
                on_rejected=lambda: self._note("A file was not read: it is too large, or of another kind."),
            )
            upload.props(f'accept="{",".join(KINDS)}" flat bordered').classes("wide upload")
            upload.on_upload(self._uploaded)
            ui.label(f"{', '.join(KINDS)}, up to {limit // 1000:,} kB each.").classes("hint")
            self._notes = ui.element("ul").classes("notes").props("role=status")
        with ui.element("section").classes("stack").props('aria-label="Documents"'):
            self._heading = ui.label("Documents").classes("title").props("role=heading aria-level=2")
            self._documents = ui.element("ul").classes("rows")
            self._more = ui.button("Show more", on_click=visit.guarded(self._show_more)).props("flat no-caps")
        with ui.element("section").classes("stack").props('aria-label="Preferences"'):
            self._liked = ui.label("Preferences").classes("title").props("role=heading aria-level=2")
            self._preferences = ui.element("ul").classes("rows")
        with ui.element("section").classes("stack").props('aria-label="Everything"'):
            ui.label("Everything of this user").classes("title").props("role=heading aria-level=2")
            with ui.row().classes("actions"):
                ui.button("Export", icon="download", on_click=visit.guarded(self._export)).props(
                    "outline no-caps"
                )
                ui.button("Erase …", icon="delete_forever", on_click=visit.guarded(self._erase)).props(
                    "outline no-caps color=negative"
                ).classes("danger")

    async def fill(self) -> None:
        """The user's documents and preferences."""
        self._most = SHOWN
        self._notes.clear()
        await self._list()

    async def _list(self) -> None:
        visit = self._visit
        self._lists += 1
        asked = self._lists
        documents: list[Document] = []
        preferences: list[Preference] = []
        if visit.user is not None:
            documents = await visit.call(lambda: visit.mine().documents())
            preferences = await visit.call(lambda: visit.mine().preferences())
        if asked != self._lists:  # another file has come meanwhile, or another user was picked
            return
        self._documents.clear()
        self._preferences.clear()
        self._heading.set_text(f"Documents ({len(documents):,})")
        self._liked.set_text(f"Preferences ({len(preferences):,})")
        self._more.set_visibility(len(documents) > self._most)
        with self._documents:
            for document in documents[::-1][: self._most]:
                self._row(document)
            if not documents:
                ui.label("None yet.").classes("hint")
        with self._preferences:
            for preference in preferences[::-1][:SHOWN]:
                _preference(preference)
            if not preferences:
                ui.label("None yet: choose, rate or edit a draft.").classes("hint")

    async def _show_more(self) -> None:
        self._most += SHOWN
        await self._list()

    def _row(self, document: Document) -> None:
        name = document.title or document.id
        when = f"{document.written_at:%d %B %Y}, " if document.written_at else ""

        async def take() -> None:
            visit = self._visit
            await visit.call(lambda: remove_document(document.id, visit.mine(), visit.background))
            self._note(f"{name}: deleted")
            await self._list()

        with ui.element("li").classes("row-item"):
            with ui.expansion(name, caption=f"{when}{len(document.text.split()):,} words").classes("used"):
                ui.label(document.text).classes("text small")
            delete = ui.button(icon="delete", on_click=self._visit.guarded(take)).props("flat round")
            delete.props["aria-label"] = f"Delete {name}"

    async def _uploaded(self, event: UploadEventArguments) -> None:
        name = event.file.name

        async def take() -> None:
            content = await event.file.read()
            try:
                self._note(f"{name}: {await self._visit.call(self._add, name, content)}")
            except Exception as error:  # noqa: BLE001 (one file of several: the others go on)
                self._note(f"{name}: {said(error)}")
            await self._list()

        await self._visit.guarded(take)()

    def _add(self, name: str, content: bytes) -> str:
        """In a thread: read a file and keep its documents; what became of it, in words."""
        visit = self._visit
        user = visit.mine()
        found = read_dropped(name, content, user.id)
        if not found.documents:
            return _remarks(["no documents", *found.notes])
        body = NewDocuments(documents=[NewDocument(**one.model_dump()) for one in found.documents])
        added = add_documents(body, user, visit.background)
        counts = (f"{added.new} new", f"{added.changed} changed", f"{added.same} there already")
        return _remarks([*(one for one in counts if not one.startswith("0 ")), *found.notes])

    def _note(self, text: str) -> None:
        with self._notes, ui.element("li"):
            ui.label(text)

    async def _export(self) -> None:
        visit = self._visit
        rows = await visit.call(lambda: list(visit.mine().export()))
        lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        ui.download.content(lines.encode(), "penname.jsonl", "application/x-ndjson")

    async def _erase(self) -> None:
        await erase_dialog(self._visit)


def _remarks(parts: Sequence[str]) -> str:
    return "; ".join(parts[:6]) + (f"; and {len(parts) - 6} more" if len(parts) > 6 else "")


def _preference(preference: Preference) -> None:
    when = f"{preference.made_at:%d %B %Y}" if preference.made_at else ""
    prompt = " ".join(preference.prompt.split())
    shown = prompt if len(prompt) <= 80 else f"{prompt[:80]}…"
    title = f"{preference.kind.capitalize()}: {shown}"
    with ui.element("li").classes("row-item"), ui.expansion(title, caption=when).classes("used"):
        for heading, text in _sides(preference):
            ui.label(heading).classes("subtitle")
            ui.label(text).classes("text small")


def _sides(preference: Preference) -> list[tuple[str, str]]:
    """The texts of a preference, each with what it is."""
    if preference.kind == "rating":
        return [(f"Rated {preference.rating:+g}", preference.completion or "")]
    names = ("Chosen", "Not chosen") if preference.kind == "choice" else ("Your version", "Draft")
    return list(zip(names, (preference.chosen or "", preference.rejected or ""), strict=True))
