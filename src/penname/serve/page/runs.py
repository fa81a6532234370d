"""Trained runs: a card, and losses and rewards as they are measured. For service keys."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui import ui

from penname.serve.page.visit import Visit
from penname.serve.runs import Run, list_runs, read_run

EVERY = 2.0  # seconds between two looks at a run's metrics
ROWS = 2000  # of the metrics, the latest
_CHARTS = {"Losses": ("loss",), "Rewards": ("reward", "accuracy", "better", "margin")}


def panel(visit: Visit) -> Callable[[], Awaitable[None]]:
    """The part of the page; returns what fills it."""
    return _Runs(visit).fill


class _Runs:
    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        with ui.element("section").classes("stack").props('aria-label="Runs"'):
            self._choice = ui.select([], label="Run", on_change=visit.guarded(self._show))
            self._choice.props("outlined dense").classes("wide")
            self._state = ui.label().classes("hint").props("role=status")
            self._charts: dict[str, tuple[ui.label, ui.echart]] = {}
            for title in _CHARTS:
                label = ui.label(title).classes("title").props("role=heading aria-level=2")
                chart = ui.echart(_options([]), renderer="svg").classes("chart")
                chart.props["aria-label"] = title
                chart.props["role"] = "img"
                self._charts[title] = label, chart
            with ui.expansion("Card", icon="description").classes("used") as self._expansion:
                self._card = ui.label().classes("text small")
        self._seen: tuple[str, int] | None = None  # the run, and how many rows of it are shown
        self._timer = ui.timer(EVERY, visit.guarded(self._show), active=False)

    async def fill(self) -> None:
        """The runs that there are now."""
        visit = self._visit
        found = await visit.call(lambda: list_runs(visit.caller, visit.house))
        names = [one.name for one in found.data]
        kept = self._choice.value if self._choice.value in names else (names[0] if names else None)
        self._choice.set_options(names, value=kept)
        self._choice.set_visibility(bool(names))
        self._timer.active = bool(names)
        await self._show()

    async def _show(self) -> None:
        """Show the run that is picked as it is now."""
        visit, name = self._visit, self._choice.value
        if name is None:
            self._state.set_text("There are no runs yet: penname train makes one.")
            self._draw([])
            self._expansion.set_visibility(False)
            return
        run = await visit.call(lambda: read_run(name, visit.caller, visit.house, ROWS))
        self._state.set_text(_told(run))
        seen = name, len(run.metrics)
        if seen != self._seen:
            self._seen = seen
            self._draw(run.metrics)
        self._expansion.set_visibility(True)
        self._card.set_text(json.dumps(run.card, indent=2, ensure_ascii=False))

    def _draw(self, rows: Sequence[dict[str, Any]]) -> None:
        for title, words in _CHARTS.items():
            label, chart = self._charts[title]
            lines = series(rows, words)
            label.set_visibility(bool(lines))
            chart.set_visibility(bool(lines))
            chart.options.update(_options(lines))
            chart.update()


def series(rows: Sequence[dict[str, Any]], words: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a chart: each measure whose name holds one of `words`, by step."""
    lines: dict[str, list[list[float]]] = {}
    for number, row in enumerate(rows):
        step = row.get("step", number)
        stage = f"{row['stage']} " if "stage" in row else ""
        for name, value in row.items():
            if any(word in name for word in words) and isinstance(value, int | float):
                lines.setdefault(f"{stage}{name}".replace("_", " "), []).append([step, value])
    return [
        {"name": name, "type": "line", "data": data, "showSymbol": len(data) < 40}
        for name, data in lines.items()
    ]


def _options(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "animation": False,
        "legend": {"type": "scroll", "bottom": 0},
        "tooltip": {"trigger": "axis"},
        "grid": {"left": 48, "right": 16, "top": 16, "bottom": 64},
        "xAxis": {
            "type": "value",
            "name": "step",
            "nameLocation": "middle",
            "nameGap": 24,
            "min": "dataMin",
            "max": "dataMax",
            "splitLine": {"show": False},
        },
        "yAxis": {"type": "value", "scale": True, "splitLine": {"lineStyle": {"color": "#88888844"}}},
        "series": lines,
    }


def _told(run: Run) -> str:
    """The run's state and what was measured last, for those who see no chart."""
    last: dict[str, Any] = {}
    for row in run.metrics:
        last.update(row)
    wanted = [word for words in _CHARTS.values() for word in words]
    latest = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}"
        for name, value in last.items()
        if isinstance(value, int | float) and any(word in name for word in wanted)
    )
    return f"{run.method}, {run.state}. {f'Latest: {latest}.' if latest else 'Nothing is measured yet.'}"
