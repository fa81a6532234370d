"""Writing: the same request without and with the user, side by side, and what the user thinks of the two."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from uuid import uuid4

import anyio
from nicegui import ui

from penname.errors import BadInputError
from penname.records import Request
from penname.serve.feedback import Choice, Edit, KeptPreference, Rating, add_preference
from penname.serve.page.column import Column
from penname.serve.page.picker import own_users
from penname.serve.page.visit import Visit
from penname.tasks import TASKS
from penname.writer import DEFAULT_METHOD

GENERIC = "none"
_PREFIX = "penname/"


def panel(visit: Visit) -> Callable[[], Awaitable[None]]:
    """The part of the page; returns what fills it for the user who is shown."""
    return _Writing(visit).fill


class _Writing:
    """The form and the two columns."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._asked = ""  # what the drafts that are shown were written for
        self._for = visit.user  # and whom
        with ui.element("section").classes("stack").props('aria-label="Request"'):
            with ui.element("div").classes("fields"):
                self._task = ui.select(_tasks(), value="write", label="Task").props("outlined dense")
                self._method = ui.select([DEFAULT_METHOD], value=DEFAULT_METHOD, label="Method")
                self._method.props("outlined dense")
                self._others = ui.select([], multiple=True, value=[], label="Written together with")
                self._others.props("outlined dense use-chips clearable")
            self._text = ui.textarea("What is it about?").props("outlined autogrow autofocus").classes("wide")
            with ui.row().classes("actions"):
                self._write = ui.button("Write", icon="edit", on_click=visit.guarded(self._start))
                self._write.props("unelevated no-caps")
                self._stop = ui.button("Stop", icon="stop", on_click=self._end).props("flat no-caps")
                ui.label("Ctrl+Enter writes, Escape stops.").classes("hint")
        for key in ("ctrl.enter", "meta.enter"):
            self._text.on(f"keydown.{key}.prevent", visit.guarded(self._start))
        self._text.on("keydown.escape", self._end)
        with ui.element("section").classes("pair").props('aria-label="Drafts"'):
            self._generic = Column(visit, "Generic", "without anything of yours", self)
            self._personal = Column(visit, "Personal", "as you would write it", self)
        self._busy(False)

    async def fill(self) -> None:
        """The methods that are served now, and the users who may write together."""
        visit = self._visit
        names = [one.removeprefix(_PREFIX) for one in await visit.call(visit.house.models)]
        names = [one for one in names if one != GENERIC]
        chosen = self._method.value if self._method.value in names else DEFAULT_METHOD
        self._method.set_options(names, value=chosen)
        others = [one for one in await own_users(visit) if one != visit.user] if visit.caller.service else []
        self._others.set_options(others, value=[one for one in self._others.value if one in others])
        self._others.set_visibility(bool(others))
        self._personal.name(visit.user or "Personal")
        if self._for != visit.user:
            self._for = visit.user
            for column in (self._generic, self._personal):
                column.stop()
                column.clear()

    async def chosen(self, better: Column) -> None:
        """One of the two drafts is better."""
        worse = self._generic if better is self._personal else self._personal
        kept = await self._keep(
            Choice(kind="choice", prompt=self._asked, chosen=better.text, rejected=worse.text)
        )
        better.tell(f"Kept as the better one. {_learnt(kept)}")

    async def rated(self, column: Column, rating: float) -> None:
        """A draft is good, or not."""
        kept = await self._keep(
            Rating(kind="rating", prompt=self._asked, completion=column.text, rating=rating)
        )
        column.tell(f"Kept your rating. {_learnt(kept)}")

    async def edited(self, column: Column, revision: str) -> None:
        """The user's own version of a draft."""
        kept = await self._keep(Edit(kind="edit", prompt=self._asked, draft=column.text, revision=revision))
        column.tell(f"Kept your edit. {_learnt(kept)}")

    async def _keep(self, preference: Choice | Rating | Edit) -> KeptPreference:
        visit = self._visit
        kept = await visit.call(lambda: add_preference(preference, visit.mine(), visit.learner))
        self._write.set_text("Write again")
        return kept

    async def _start(self) -> None:
        """Write both drafts at the same time, with the same chance."""
        visit, text = self._visit, (self._text.value or "").strip()
        if not text:
            raise BadInputError("say what the text is to be about")
        if len(text) > visit.house.settings.max_input:
            limit = visit.house.settings.max_input
            raise BadInputError(f"that is {len(text):,} characters; the limit is {limit:,}")
        if not self._write.enabled:
            return
        users = await visit.call(self._users)
        visit.app.state.limits.take(visit.caller.key_id)
        request = Request(task=str(self._task.value), input=text, users=users)
        seed, id_ = secrets.randbelow(2**31), f"page-{uuid4().hex}"
        self._busy(True)
        self._asked = text
        try:
            with visit.app.state.limits.in_flight():
                async with anyio.create_task_group() as both:
                    both.start_soon(self._generic.write, request, GENERIC, seed, id_ + "-generic")
                    both.start_soon(self._personal.write, request, str(self._method.value), seed, id_)
        finally:
            self._busy(False)
            two = self._generic.whole and self._personal.whole
            differ = self._generic.text.strip() != self._personal.text.strip()
            for column in (self._generic, self._personal):
                column.comparable(two and differ)

    def _users(self) -> tuple[str, ...]:
        mine = self._visit.mine().id
        return self._visit.caller.users(self._visit.house, [mine, *self._others.value])

    def _end(self) -> None:
        self._generic.stop()
        self._personal.stop()

    def _busy(self, busy: bool) -> None:
        self._write.set_enabled(not busy)
        self._stop.set_visibility(busy)


def _tasks() -> dict[str, str]:
    """Those in which a person says what is wanted; those of benchmarks have inputs of their own form."""
    return {
        task.name: f"{task.name}: {task.help}"
        for task in TASKS.values()
        if not task.item and not task.choices and "_" not in task.name and task.name != "choice"
    }


def _learnt(kept: KeptPreference) -> str:
    """What became of a preference, in words."""
    if not kept.learnt:
        return "It counts when a run is trained."
    said = {
        "learnt": "learnt it at once",
        "nothing": "can learn nothing of it yet",
        "failed": "could not learn it",
    }
    return " ".join(f"{one.run} {said[one.state]}." for one in kept.learnt)
