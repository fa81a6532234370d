"""One draft on the page: it is shown as it streams, and can be chosen, rated, edited and explained."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

import anyio
from nicegui import ui

from penname.errors import BadInputError
from penname.records import Draft, Request
from penname.serve.page.explain import explain
from penname.serve.page.visit import SignedOut, Visit, said
from penname.serve.writing import Drafting
from penname.tasks import task as find_task

if TYPE_CHECKING:
    from penname.serve.page.writing import _Writing


class Column:
    """A draft's card.

    Attributes:
        text: the draft's, as far as it has come.
        whole: whether it was written to its end.
    """

    def __init__(self, visit: Visit, title: str, hint: str, writing: _Writing) -> None:
        self._visit = visit
        self._writing = writing
        self._stopped = threading.Event()
        self._turn = 0  # what was asked for before the latest clearing is not shown any more
        self.text = ""
        self.whole = False
        with ui.element("article").classes("draft") as card:
            with ui.element("div").classes("heading"):
                self._title = ui.label(title).classes("title").props("role=heading aria-level=2")
                ui.label(hint).classes("hint")
            self._shown = ui.label().classes("text").props("aria-live=polite tabindex=-1")
            self._editor = ui.textarea("Your version").props("outlined autogrow").classes("wide")
            self._editor.on("keydown.escape", self._close)
            for key in ("ctrl.enter", "meta.enter"):
                self._editor.on(f"keydown.{key}.prevent", visit.guarded(self._save))
            self._status = ui.label().classes("hint").props("role=status")
            self._buttons()
            self._used = ui.expansion("What was used", icon="manage_search").classes("used")
        self._card = card
        ui.context.client.on_delete(self.stop)
        self.clear()

    def _buttons(self) -> None:
        guarded = self._visit.guarded
        with ui.row().classes("actions") as self._judge:
            self._choose = ui.button("This one is better", icon="check", on_click=guarded(self._better))
            self._choose.props("outline no-caps")
            up = ui.button(icon="thumb_up", on_click=guarded(self._up)).props('flat aria-label="Good"')
            down = ui.button(icon="thumb_down", on_click=guarded(self._down)).props('flat aria-label="Bad"')
            for button, tip in ((up, "Good"), (down, "Bad")):
                with button:
                    ui.tooltip(tip)
            ui.button("Edit", icon="edit", on_click=self._open).props("flat no-caps")
        with ui.row().classes("actions") as self._editing:
            ui.button("Save as an edit", icon="save", on_click=guarded(self._save)).props(
                "unelevated no-caps"
            )
            ui.button("Cancel", on_click=self._close).props("flat no-caps")

    def name(self, title: str) -> None:
        """Another heading."""
        self._title.set_text(title)

    def clear(self) -> None:
        """No draft."""
        self._turn += 1
        self.text, self.whole = "", False
        self._shown.set_text("")
        self._status.set_text("")
        self._used.clear()
        self._used.set_visibility(False)
        self._used.set_value(False)
        self._judge.set_visibility(False)
        self._close()

    def tell(self, message: str) -> None:
        """A line under the draft."""
        self._status.set_text(message)

    def comparable(self, comparable: bool) -> None:
        """Whether there is another draft that this one can be better than."""
        self._choose.set_enabled(comparable)

    def stop(self) -> None:
        """Write no further."""
        self._stopped.set()

    async def write(self, request: Request, method: str, seed: int, id_: str) -> None:
        """Write a draft and show it as it comes. What goes wrong is told in its place."""
        self.clear()
        turn = self._turn
        self._stopped.clear()
        self.tell("Reading and writing …")
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def push(piece: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        found: list[Draft] = []

        async def work() -> None:
            try:
                found.append(await self._visit.call(self._draft, request, method, seed, id_, push))
            finally:
                pieces.put_nowait(None)

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(work)
                while (piece := await pieces.get()) is not None:
                    if turn == self._turn:
                        self.text += piece
                        self._shown.set_text(self.text)
        except* SignedOut:
            ui.navigate.to("/")
        except* Exception as errors:  # noqa: BLE001 (see `Visit.guarded`)
            self.tell(said(errors.exceptions[0]))
        if found and turn == self._turn:
            self._done(found[0])

    def _draft(
        self, request: Request, method: str, seed: int, id_: str, push: Callable[[str], None]
    ) -> Draft:
        """In a thread: prepare, write, and keep what explains it."""
        house = self._visit.house
        limit = min(find_task(request.task).max_tokens, house.settings.max_tokens)
        drafting = Drafting(house.writer(method, max_tokens=limit, seed=seed), request)
        with closing(drafting.pieces()) as pieces:
            for piece in pieces:
                if self._stopped.is_set():
                    break
                push(piece)
        draft = drafting.draft
        self._visit.app.state.metrics.tokens(draft.prompt_tokens, draft.completion_tokens)
        named = house.method(method)
        house.keep(id_, named, [draft], drafting.numbers)
        kept = house.drafts.get(id_, request.users)
        return kept.drafts[0] if kept else draft.model_copy(update={"method": named})

    def _done(self, draft: Draft) -> None:
        self.whole = not self._stopped.is_set() and bool(draft.text.strip())
        if self.whole:
            self.text = draft.text
            self._shown.set_text(self.text)
        spent = f"{draft.completion_tokens} tokens, {sum(draft.seconds.values()):.1f} s"
        self.tell("Stopped." if not self.whole else spent)
        self._judge.set_visibility(self.whole)
        self._used.set_visibility(True)
        with self._used:
            explain(draft)

    async def _better(self) -> None:
        await self._writing.chosen(self)

    async def _up(self) -> None:
        await self._writing.rated(self, 1)

    async def _down(self) -> None:
        await self._writing.rated(self, -1)

    def _open(self) -> None:
        self._editor.set_value(self.text)
        self._swap(editing=True)
        self._editor.run_method("focus")

    def _close(self) -> None:
        self._swap(editing=False)

    async def _save(self) -> None:
        revision = (self._editor.value or "").strip()
        if revision == self.text.strip():
            raise BadInputError("nothing was changed")
        await self._writing.edited(self, revision)
        self.text = revision
        self._shown.set_text(revision)
        self._close()

    def _swap(self, *, editing: bool) -> None:
        self._editor.set_visibility(editing)
        self._editing.set_visibility(editing)
        self._shown.set_visibility(not editing)
        self._judge.set_visibility(not editing and self.whole)
