"""The results as files to keep: a page to look at, tables to paste, numbers to go on with.

The page is one file: no script, nothing fetched. Every text in it is a user's or a model's and is escaped.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from penname.errors import BadInputError
from penname.evaluate import plots, text
from penname.evaluate.metrics import METRICS
from penname.evaluate.results import Results, Row
from penname.evaluate.statistics import Comparison
from penname.evaluate.tables import Cell, Table, gain, leading, summary, user_means
from penname.files import put

EXAMPLES = 60
"""Examples on a page, over all its tasks and results: more make it slow on a phone and nobody reads them."""

_EACH = 3  # of the largest gains, of the largest losses and of the typical: examples of each on a task
_OPEN = 2  # examples of a task that are unfolded when the page opens
_USERS = 40  # users in a page's table; users.csv has all

Report = tuple[Results, list[Table]]


@dataclass(frozen=True)
class Example:
    """An example on the page: its rows in the order of the arms, and why it was chosen."""

    rows: list[Row]
    why: str = ""  # "largest gain of step-back · all: bits/byte −0.210"; "" for the first of its user


def write_report(results: Sequence[Results] | Results, folder: Path) -> Path:
    """Write `summary.csv`, `users.csv`, `summary.md` and `report.html` into `folder` (made if not there).

    Each file is written beside and renamed into place, the page last: a page that is there is whole and so
    are its tables. Same results, same bytes.

    Args:
        results: one or several, each a section of its own.

    Returns:
        The place of `report.html`.

    Raises:
        BadInputError: there are no results, or the folder cannot be made or written.
    """
    found = [results] if isinstance(results, Results) else list(results)
    if not found:
        raise BadInputError("there are no results to report on; name a folder of an evaluation")
    reports = [(each, summary(each)) for each in found]
    files = {
        "summary.csv": _summary_csv(reports),
        "users.csv": _users_csv(reports),
        "summary.md": _markdown(reports),
        "report.html": _page(reports),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            put(folder / name, content)
    except OSError as error:
        raise BadInputError(
            f"cannot write the report into {folder}: {error.strerror}; name a folder that can be written"
        ) from error
    return folder / "report.html"


def chosen(results: Results, table: Table, limit: int) -> list[Example]:
    """At most `limit` examples of a task: extreme and typical ones, named as such, then one of each user.

    Gains are those of the arm that gains most on the first main metric, over the baseline; of the largest
    gains, the largest losses and those nearest to the median, `_EACH` are taken (fewer where the limit is
    small), each of another user. The rest are the first examples of users and groups, those in the most arms
    first, then what is left in order.
    """
    by_name = {rows[0].example: rows for rows in results.by_example(table.task)}
    found = _named(table, by_name, min(_EACH, limit // 4))
    rest = [rows[0].example for rows in leading(results, table.task)]
    for name in [*rest, *by_name]:
        found.setdefault(name, "")
    return [Example(by_name[name], why) for name, why in list(found.items())[:limit]]


def _named(table: Table, by_name: dict[str, list[Row]], each: int) -> dict[str, str]:
    """Example → why it is telling."""
    subject = _subject(table)
    if subject is None or not each:
        return {}
    arm, metric = subject
    gains = {}
    for name, rows in by_name.items():
        scores = {row.arm: row.scores[metric] for row in rows if metric in row.scores}
        if arm in scores and table.baseline in scores:
            gains[name] = scores[arm] - scores[table.baseline]
    middle = median(gains.values())
    orders: list[tuple[str, Callable[[str], float], Callable[[str], bool]]] = [
        ("largest gain", lambda name: -gain(metric, gains[name]), lambda name: gain(metric, gains[name]) > 0),
        ("largest loss", lambda name: gain(metric, gains[name]), lambda name: gain(metric, gains[name]) < 0),
        ("typical", lambda name: abs(gains[name] - middle), lambda _: True),
    ]
    found: dict[str, str] = {}
    for what, key, fits in orders:
        users: set[str] = set()
        for name in sorted(gains, key=key):
            user = by_name[name][0].users[0]
            if len(users) < each and fits(name) and name not in found and user not in users:
                users.add(user)
                shown = f"{METRICS[metric].label} {text.signed(metric, gains[name])}"
                found[name] = f"{what} of {arm} over {table.baseline}: {shown}"
    return found


def _subject(table: Table) -> tuple[str, str] | None:
    """(arm, metric) whose gains choose the examples; None where nothing is compared example by example."""
    for metric in table.main:
        if METRICS[metric].aggregate == "macro_f1":
            continue
        real = {arm.name for arm in table.arms if not arm.control}
        pairs = [pair for pair in table.pairs_of("baseline", metric=metric) if pair.arm in real]
        if pairs:
            return max(pairs, key=lambda pair: gain(metric, pair.found.mean)).arm, metric
    return None


def _summary_csv(reports: Sequence[Report]) -> str:
    """One line a comparison, of all examples or of a part, and one for what is compared with nothing."""
    head = ["results", "task", "metric", "arm", "part", "mean", "n", "users", "worst_tenth", "kind", "other"]
    head += ["difference", "low", "high", "p", "p_holm", "effect", "shared", "shared_users"]
    return _csv(
        head, (line for results, table in _tables(reports) for line in _summary_lines(results, table))
    )


def _summary_lines(results: Results, table: Table) -> Iterator[list[object]]:
    for (arm, metric), cell in table.cells.items():
        start = [results.title, table.task, metric, arm, "", cell.mean, cell.n, cell.users, cell.worst]
        pairs = [pair for pair in table.pairs if (pair.arm, pair.metric) == (arm, metric)]
        for pair in pairs:
            yield [*start, pair.kind, pair.other, *_compared(pair.found, pair.p)]
        if not pairs:
            yield [*start, *[None] * 10]
    for each in table.slices:
        start = [results.title, table.task, each.metric, each.arm, each.part, each.mean, each.n, each.users]
        if each.against:
            yield [*start, None, "baseline", table.baseline, *_compared(each.against, None)]
        else:
            yield [*start, *[None] * 11]


def _compared(found: Comparison, p_holm: float | None) -> list[object]:
    """A comparison's cells, from `difference` on."""
    p = found.p if found.defined else None
    return [found.mean, found.low, found.high, p, p_holm, found.effect, found.n, found.groups]


def _users_csv(reports: Sequence[Report]) -> str:
    """One line a user, arm and metric, over the examples that the arm shares with the baseline."""
    head = ["results", "task", "metric", "arm", "user", "mean", "baseline", "n"]
    return _csv(
        head,
        (
            [results.title, table.task, metric, arm.name, mean.user, mean.arm, mean.other, mean.n]
            for results, table in _tables(reports)
            for metric in table.metrics
            if METRICS[metric].aggregate != "macro_f1"
            for arm in table.arms
            for mean in user_means(results, table.task, arm.name, table.baseline, metric)
        ),
    )


def _csv(head: Sequence[str], lines: Iterator[list[object]]) -> str:
    """What is undefined is left empty."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(head)
    for line in lines:
        table.writerow(["" if isinstance(value, float) and math.isnan(value) else value for value in line])
    return out.getvalue()


def _tables(reports: Sequence[Report]) -> Iterator[tuple[Results, Table]]:
    for results, tables in reports:
        for table in tables:
            yield results, table


def _markdown(reports: Sequence[Report]) -> str:
    """The tables as Markdown to paste."""
    out = []
    for results, tables in reports:
        out += [f"## {_md(results.title)}", ""]
        facts = [results.model, results.data, f"seed {results.seed}"]
        facts += [f"judged by {results.judge}"] if results.judge else []
        out += ["; ".join(_md(fact) for fact in facts if fact) + ".", ""]
        out += [f"**{_md(remark)}**\n" for remark in results.remarks]
        for table in tables:
            out += [*_markdown_table(table), ""]
    return "\n".join([*out, f"{_md(text.HOW)} {text.TESTS}", ""])


def _markdown_table(table: Table) -> Iterator[str]:
    yield f"### {_md(table.task)} ({table.examples:,} examples, {table.users:,} users)"
    yield ""
    yield from _md_rows(
        ["arm", *(text.heading(metric) for metric in table.metrics)],
        [
            [arm.name, *(_md_cell(table, table.cells.get((arm.name, metric))) for metric in table.metrics)]
            for arm in table.arms
        ],
    )
    pairs = [pair for pair in table.pairs if pair.kind != "baseline" and pair.metric in table.main]
    if pairs:
        yield ""
        yield from _md_rows(
            ["comparison", "score", "difference", "95 % interval", "p", "p (Holm)", "effect"],
            [
                [
                    text.versus(pair),
                    text.heading(pair.metric),
                    text.difference(pair.metric, pair.found),
                    text.bounds(pair.metric, pair.found),
                    *text.chances(pair),
                    text.effect(pair.found.effect),
                ]
                for pair in pairs
            ],
        )
    notes = [
        (arm.name, words) for arm in table.arms for words in text.verdict_words(table.verdicts_of(arm.name))
    ]
    notes += text.troubles(table)
    if notes:
        yield ""
        yield from (f"- {_md(arm)}: {_md(words)}" for arm, words in notes)


def _md_cell(table: Table, cell: Cell | None) -> str:
    if cell is None:
        return ""
    mean = text.number(cell.metric, cell.mean)
    pair = table.against(cell.arm, cell.metric)
    if pair is None:
        return mean
    return f"{mean} ({text.difference(cell.metric, pair.found)}; {text.bounds(cell.metric, pair.found)})"


def _md_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_md, head))} |"
    yield f"| --- |{' ---: |' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(map(_md, row))} |"


def _md(words: str) -> str:
    """A name in Markdown: nothing in it is markup, and it stays on its line."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#&" else c for c in text.plain(words))
    return " ".join(escaped.split())


def _page(reports: Sequence[Report]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("penname.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(duration=text.duration, cut=text.cut)
    pages.globals.update(text=text, metrics=METRICS, opened=_OPEN)
    share = max(1, EXAMPLES // sum(len(tables) for _, tables in reports))
    return pages.get_template("report.html.j2").render(
        sections=[_section(results, tables, share) for results, tables in reports], some=EXAMPLES
    )


def _section(results: Results, tables: Sequence[Table], share: int) -> dict[str, object]:
    """What the page's template needs of one evaluation."""
    colour = plots.colours(results.arms)
    return {
        "results": results,
        "colour": colour,
        "arms": {arm.name: arm for arm in results.arms},
        "examples": sum(table.examples for table in tables),
        "users": len({row.users[0] for row in results.rows}),
        "parts": [_part(results, table, share, colour) for table in tables],
    }


def _part(results: Results, table: Table, share: int, colour: dict[str, int]) -> dict[str, object]:
    """What it needs of one task."""
    subject = _subject(table)
    return {
        "table": table,
        "baseline": plots.intervals(table, table.pairs_of("baseline"), colour),
        "compared": plots.intervals(
            table, (p for p in table.pairs if p.kind != "baseline" and p.metric in table.main), colour
        ),
        "scatters": plots.scatters(results, table, subject[1], colour) if subject else [],
        "worst": _worst_users(results, table, subject),
        "examples": chosen(results, table, share),
        "troubles": text.troubles(table),
    }


def _worst_users(results: Results, table: Table, subject: tuple[str, str] | None) -> dict[str, object] | None:
    """The users for whom the arm that gains most gains least, with their means."""
    if subject is None:
        return None
    arm, metric = subject
    means = user_means(results, table.task, arm, table.baseline, metric)
    means.sort(key=lambda mean: gain(metric, mean.arm - mean.other))
    return {"arm": arm, "metric": metric, "means": means[:_USERS], "users": len(means)}
