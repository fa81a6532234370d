"""Reports of evaluations: what each way of writing scored, against the baseline. For service keys."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence

from nicegui import ui

from penname.evaluate.text import HOW, TESTS, heading, number, signed
from penname.serve.page.visit import Visit
from penname.serve.reports import (
    ComparisonShown,
    ReportTables,
    TableShown,
    list_reports,
    read_report,
)


def panel(visit: Visit) -> Callable[[], Awaitable[None]]:
    """The part of the page; returns what fills it."""
    return _Reports(visit).fill


class _Reports:
    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        with ui.element("section").classes("stack").props('aria-label="Reports"'):
            self._choice = ui.select([], label="Report", on_change=visit.guarded(self._show))
            self._choice.props("outlined dense").classes("wide")
            self._state = ui.label().classes("hint").props("role=status")
            self._body = ui.element("div").classes("stack")
        self._shown: ReportTables | None = None

    async def fill(self) -> None:
        """The reports that there are now."""
        visit = self._visit
        found = await visit.call(lambda: list_reports(visit.caller, visit.app.state.reports))
        names = [one.name for one in found.data]
        kept = self._choice.value if self._choice.value in names else (names[0] if names else None)
        self._choice.set_options(names, value=kept)
        self._choice.set_visibility(bool(names))
        await self._show()

    async def _show(self) -> None:
        """Show the report that is picked as it is now."""
        visit, name = self._visit, self._choice.value
        if name is None:
            self._state.set_text("No report is shown here: penname serve --report FOLDER shows one.")
            self._body.clear()
            return
        report = await visit.call(lambda: read_report(name, visit.caller, visit.app.state.reports))
        if report is self._shown:
            return
        self._shown = report
        judged = f", judged by {report.judge}" if report.judge else ""
        self._state.set_text(f"{report.data}, written by {report.model}{judged}.")
        self._body.clear()
        with self._body:
            _draw(report)


def _draw(report: ReportTables) -> None:
    for remark in report.remarks:
        ui.label(remark).classes("hint")
    if not report.tables:
        ui.label("Nothing is written yet.")
    for table in report.tables:
        _task(table)
    if report.tables:
        ui.label(f"{HOW} {TESTS}").classes("hint")
    with ui.expansion("Settings", icon="tune").classes("used"):
        ui.label(report.command).classes("code")
        ui.label(json.dumps(report.settings, indent=2, ensure_ascii=False)).classes("code")


def _task(table: TableShown) -> None:
    """A task: scores with what they differ from the baseline, what that comes to, and all comparisons."""
    ui.label(table.task).classes("title").props("role=heading aria-level=2")
    against = {(one.arm, one.metric): one for one in table.comparisons if one.kind == "baseline"}
    means = {(one.arm, one.metric): one.mean for one in table.cells}
    with _table(
        f"{table.examples:,} examples, {table.users:,} users. Differences are to {table.baseline}.",
        ["arm", *(heading(one.name) for one in table.metrics)],
        [one.about for one in table.metrics],
    ):
        for arm in table.arms:
            with ui.element("tr"):
                _cell(arm, "th")
                for metric in table.metrics:
                    mean = means.get((arm, metric.name))
                    with ui.element("td"):
                        if mean is not None:
                            ui.label(number(metric.name, mean))
                        if found := against.get((arm, metric.name)):
                            clear = "hint clear" if found.clear else "hint"
                            ui.label(_difference(found)).classes(clear)
                            ui.label(_bounds(found)).classes("hint")
    for words in _verdicts(table):
        ui.label(words).classes("small")
    with ui.expansion("All comparisons", icon="compare_arrows").classes("used"):
        _comparisons(table)


def _comparisons(table: TableShown) -> None:
    metrics = {one.name: one for one in table.metrics}
    heads = [
        "comparison",
        "score",
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "effect",
        "examples (users)",
    ]
    with _table("", heads):
        for found in table.comparisons:
            metric = metrics[found.metric]
            with ui.element("tr"):
                _cell(f"{found.arm} − {found.other}", "th")
                for text in (
                    metric.label,
                    _difference(found),
                    _bounds(found),
                    _plain(found.p, ".3f"),
                    _plain(found.p_holm, ".3f"),
                    _plain(found.effect, "+.2f"),
                    f"{found.examples:,} ({found.users:,})",
                ):
                    _cell(text)


def _table(caption: str, heads: Sequence[str], abouts: Sequence[str] = ()) -> ui.element:
    """A table with a row of heads; returns its body. It scrolls by itself where it is too wide."""
    with ui.element("div").classes("scroll").props("tabindex=0"), ui.element("table").classes("numbers"):
        if caption:
            with ui.element("caption"):
                ui.label(caption)
        with ui.element("thead"), ui.element("tr"):
            for number, head in enumerate(heads):
                cell = _cell(head, "th")
                if 0 < number <= len(abouts):
                    cell.props["title"] = abouts[number - 1]
        return ui.element("tbody")


def _cell(text: str, tag: str = "td") -> ui.element:
    with ui.element(tag) as cell:
        ui.label(text)
    return cell


def _verdicts(table: TableShown) -> Iterable[str]:
    """ "step-back: ROUGE-1, chrF: gains"."""
    labels = {one.name: one.label for one in table.metrics}
    found: dict[tuple[str, str], list[str]] = {}
    for one in table.verdicts:
        found.setdefault((one.arm, one.words), []).append(labels[one.metric])
    return (f"{arm}: {', '.join(metrics)}: {words}" for (arm, words), metrics in found.items())


def _difference(found: ComparisonShown) -> str:
    return signed(found.metric, found.difference) + (" *" if found.clear else "")


def _bounds(found: ComparisonShown) -> str:
    if found.low is None or found.high is None:
        return "undefined: one user"
    return f"{signed(found.metric, found.low)} to {signed(found.metric, found.high)}"


def _plain(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}".replace("-", "−")
