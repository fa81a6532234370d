"""The results in a terminal: for each task means, differences and verdicts, then drafts side by side.

Texts are printed as they are: no markup of theirs is read, and control characters are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from penname.evaluate.metrics import METRICS
from penname.evaluate.results import Results, Row
from penname.evaluate.tables import Pair, Table, leading, summary
from penname.evaluate.text import (
    HOW,
    cut,
    difference,
    duration,
    heading,
    number,
    plain,
    signed,
    troubles,
    verdict_words,
    versus,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

_LINES = 12  # of a draft in its column
_NARROW = 16  # letters: a column below this is hard to read
_GAP = 2  # blanks between columns

Line = tuple[str, dict[str, str]]
"""An arm or a comparison, and what stands in its columns, by metric."""


def print_summary(results: Results, console: Console, drafts: int = 0) -> None:
    """Print each task's tables, and the first examples of up to `drafts` users or groups of each."""
    from rich.text import Text

    console.print()
    console.print(Text(plain(results.title), style="bold"))
    console.print(Text(plain("; ".join(_facts(results))), style="dim"))
    for remark in results.remarks:
        console.print(Text.assemble(("! ", "bold"), plain(remark)))
    for table in summary(results):
        console.print()
        _print_table(table, console)
        for rows in _shown(results, table.task, drafts):
            console.print()
            console.print(_example(rows[0], console.width))
            console.print(_side_by_side(rows, console.width))
    console.print()
    console.print(Text(HOW, style="dim"))


def _shown(results: Results, task: str, limit: int) -> Iterator[list[Row]]:
    """The leading examples, without the controls' drafts: the page has those."""
    controls = {arm.name for arm in results.arms if arm.control}
    for rows in leading(results, task, limit):
        if real := [row for row in rows if row.arm not in controls]:
            yield real


def _facts(results: Results) -> Iterator[str]:
    yield results.model
    if results.data:
        yield results.data
    yield f"seed {results.seed}"
    if results.judge:
        yield f"judged by {results.judge}"
    if results.seconds:
        yield ", ".join(f"{stage} {duration(taken)}" for stage, taken in results.seconds.items())


def _print_table(table: Table, console: Console) -> None:
    from rich.text import Text

    title = f"{plain(table.task)}: {table.examples:,} examples, {table.users:,} users"
    lines = [_arm_line(table, arm.name) for arm in table.arms]
    for grid in _grids(title, lines, table.metrics, console.width):
        console.print(grid)
        console.print()
    for grid in _grids("What makes the difference", _pair_lines(table), table.main, console.width):
        console.print(grid)
        console.print()
    if table.verdicts:
        console.print(Text("What it comes to", style="bold italic"))
    for arm in table.arms:
        for words in verdict_words(table.verdicts_of(arm.name)):
            console.print(Text(f"{plain(arm.name)} — {words}"))
    for name, trouble in troubles(table):
        console.print(Text(f"{plain(name)} — {trouble}", style="dim"))


def _arm_line(table: Table, arm: str) -> Line:
    cells = {}
    for metric in table.metrics:
        if cell := table.cells.get((arm, metric)):
            against = table.against(arm, metric)
            cells[metric] = number(metric, cell.mean) + (f"\n{_difference(against)}" if against else "")
    rows = table.counts[arm].rows
    return plain(arm) + (f" (n = {rows:,})" if rows < table.examples else ""), cells


def _pair_lines(table: Table) -> list[Line]:
    found: dict[str, dict[str, str]] = {}
    for pair in (*table.pairs_of("users"), *table.pairs_of("control")):
        if pair.metric in table.main:
            found.setdefault(plain(versus(pair)), {})[pair.metric] = _difference(pair)
    return list(found.items())


def _difference(pair: Pair) -> str:
    """The difference, and its interval on the line below."""
    found = pair.found
    low, high = signed(pair.metric, found.low), signed(pair.metric, found.high)
    return difference(pair.metric, found) + (f"\n{low} {high}" if found.defined else "\none user")


def _grids(title: str, lines: Sequence[Line], metrics: Sequence[str], width: int) -> Iterator[Grid]:
    """The lines as tables of as many metrics each as fit beside one another."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    if not lines:
        return
    label = min(width // 4 if width < 120 else width // 3, max(len(name) for name, _ in lines))
    for place, part in enumerate(_fitting(lines, metrics, width - label)):
        grid = Grid(
            title=Text(title, style="bold") if not place else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, _GAP - 1, 0, 0),
        )
        grid.add_column("", overflow="fold", width=label)
        for metric in part:
            grid.add_column(Text(heading(metric)), justify="right", no_wrap=True)
        for name, cells in lines:
            if any(metric in cells for metric in part):
                grid.add_row(Text(name), *(Text(cells.get(metric, "")) for metric in part))
        yield grid


def _fitting(lines: Sequence[Line], metrics: Sequence[str], width: int) -> list[list[str]]:
    """The metrics in groups whose columns fit into `width` letters; one at least in each."""
    groups: list[list[str]] = [[]]
    left = width
    for metric in metrics:
        texts = [
            heading(metric),
            *(line for _, cells in lines for line in cells.get(metric, "").splitlines()),
        ]
        needed = max(map(len, texts)) + _GAP
        if groups[-1] and needed > left:
            groups.append([])
            left = width
        groups[-1].append(metric)
        left -= needed
    return groups


def _example(row: Row, width: int) -> Text:
    from rich.text import Text

    who = " + ".join(plain(user) for user in row.users)
    asked = cut(" ".join(plain(row.input).split()), 2 * width)
    return Text.assemble((who, "bold"), (f" · {plain(row.task)}", "dim"), f"\n{asked}")


def _side_by_side(rows: Sequence[Row], width: int) -> Grid:
    """The drafts and the real text in columns; under one another where the columns would be too narrow."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    letters = (width - 1) // (len(rows) + 1) - 3  # in a column: a border and two blanks are taken
    narrow = letters < _NARROW
    limit = _LINES * letters if not narrow else _LINES * width // 3
    texts = [Text(cut(plain(row.text), limit) or "(nothing)") for row in rows]
    texts.append(Text(cut(plain(rows[0].gold), limit)))
    names = [*(plain(row.arm) for row in rows), "the real text"]
    scores = [*(_found(row) for row in rows), ""]

    grid = Grid(box=box.ROUNDED, width=width, show_header=not narrow, show_footer=not narrow)
    if narrow:
        grid.show_lines = True
        grid.add_column(overflow="fold")
        grid.add_column(ratio=1, overflow="fold")
        for name, found, text in zip(names, scores, texts, strict=True):
            grid.add_row(Text.assemble(name, "\n", (found, "dim")), text)
        return grid
    for name, found in zip(names, scores, strict=True):
        grid.add_column(Text(name), footer=Text(found, style="dim"), ratio=1, overflow="fold")
    grid.add_row(*texts)
    return grid


def _found(row: Row) -> str:
    """The row's scores, one a line."""
    return "\n".join(
        f"{m.label} {number(name, row.scores[name])}" for name, m in METRICS.items() if name in row.scores
    )
