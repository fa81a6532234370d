"""The results in a terminal: a table of means and differences, then drafts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penname.evaluate.metrics import METRICS
from penname.evaluate.results import Line, Results, Row, leading, summary
from penname.evaluate.statistics import ENOUGH
from penname.evaluate.text import bounds, cut, duration, number, plain, signed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_LINES = 12  # of a draft in its column
_NARROW = 16  # letters: a column below this is hard to read


def print_summary(results: Results, console: Console, drafts: int = 3) -> None:
    """Print means with their differences, then the first request of up to `drafts` users or groups.

    Texts are printed as they are: no markup of theirs is read, and control characters are left out.
    """
    from rich.text import Text

    console.print()
    console.print(_scores(results, summary(results), console.width))
    first = results.arms[0]
    notes = [
        f"Differences are to {first!r} on the requests that both have, so they need not be the means' own.",
        f"Brackets: 95 % bootstrap interval over users. * leaves out 0 (with {ENOUGH} users or more).",
        f"{results.model}, seed {results.seed}; "
        + ", ".join(f"{stage} {duration(taken)}" for stage, taken in results.seconds.items()),
    ]
    for note in notes:
        console.print(Text(plain(note), style="dim"))
    for rows in leading(results, drafts):
        console.print()
        console.print(_heading(rows[0], console.width))
        console.print(_side_by_side(rows, console.width))


def _scores(results: Results, lines: Sequence[Line], width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(plain(results.title), style="bold"),
        title_justify="left",
        caption=Text("↑ higher is better   ↓ lower is better"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=width < 90,
    )
    table.add_column("score")
    table.add_column("arm", overflow="fold")
    for column in ("mean", "n", "diff.", "[95 %]", "n"):
        table.add_column(Text(column), justify="right", no_wrap=column != "[95 %]")
    shown = ""
    for line in lines:
        metric = METRICS[line.metric]
        if shown and line.metric != shown:
            table.add_section()
        arrow = "↑" if metric.better == "higher" else "↓"
        name = f"{metric.label} {arrow}" if line.metric != shown else ""
        shown = line.metric
        d = line.difference
        table.add_row(
            Text(name),
            Text(plain(line.arm)),
            number(line.metric, line.mean),
            f"{line.n} ({line.users})",
            signed(line.metric, d.mean) + (" *" if d.clear else "  ") if d else "",
            Text(bounds(line)),
            f"{d.n} ({d.groups})" if d else "",
        )
    return table


def _heading(row: Row, width: int) -> Text:
    from rich.text import Text

    who = " + ".join(plain(user) for user in row.request.users)
    asked = cut(" ".join(plain(row.request.input).split()), 2 * width)
    return Text.assemble((who, "bold"), (f" · {plain(row.request.task)}", "dim"), f"\n{asked}")


def _side_by_side(rows: Sequence[Row], width: int) -> Table:
    """The drafts and the real text in columns; under one another where the columns would be too narrow."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    letters = (width - 1) // (len(rows) + 1) - 3  # in a column: a border and two blanks are taken
    narrow = letters < _NARROW
    limit = _LINES * letters if not narrow else _LINES * width // 3
    texts = [Text(cut(plain(row.draft.text), limit) or "(nothing)") for row in rows]
    texts.append(Text(cut(plain(rows[0].gold), limit)))
    names = [*(plain(row.arm) for row in rows), "the real text"]
    scores = [*(_found(row) for row in rows), ""]

    table = Table(box=box.ROUNDED, width=width, show_header=not narrow, show_footer=not narrow)
    if narrow:
        table.show_lines = True
        table.add_column(overflow="fold")
        table.add_column(ratio=1, overflow="fold")
        for name, found, text in zip(names, scores, texts, strict=True):
            table.add_row(Text.assemble(name, "\n", (found, "dim")), text)
        return table
    for name, found in zip(names, scores, strict=True):
        table.add_column(Text(name), footer=Text(found, style="dim"), ratio=1, overflow="fold")
    table.add_row(*texts)
    return table


def _found(row: Row) -> str:
    """The row's scores, one a line."""
    return "\n".join(
        f"{m.label} {number(name, row.scores[name])}" for name, m in METRICS.items() if name in row.scores
    )
