"""The results as a folder to keep: `report.html` to look at, `rows.jsonl` and `summary.csv` to go on with.

The page is one file: no script, nothing fetched. Every text in it is a user's or a model's and is escaped.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from penname.errors import BadInputError
from penname.evaluate import plots
from penname.evaluate.metrics import METRICS
from penname.evaluate.results import Line, Results, Row, leading, summary
from penname.evaluate.statistics import ENOUGH
from penname.evaluate.text import bounds, cut, duration, marked, number, signed
from penname.records import StyleFacts

_OPEN = 6  # requests that are unfolded when the page opens

FACTS = {
    "documents": ("documents", "{:,.0f}"),
    "words": ("words in a document", "{:,.0f}"),
    "words_low": ("… of the shortest tenth, at most", "{:,.0f}"),
    "words_high": ("… of the longest tenth, at least", "{:,.0f}"),
    "sentence_words": ("words in a sentence", "{:.1f}"),
    "paragraphs": ("paragraphs in a document", "{:.1f}"),
    "word_letters": ("letters in a word", "{:.1f}"),
    "contractions": ("contractions", "{:.1%} of words"),
    "first_person": ("I, me, my", "{:.1%} of words"),
    "first_plural": ("we, us, our", "{:.1%} of words"),
    "second_person": ("you, your", "{:.1%} of words"),
    "questions": ("questions", "{:.1%} of sentences"),
    "exclamations": ("exclamations", "{:.1%} of sentences"),
    "lowercase_starts": ("begin in lower case", "{:.1%} of sentences"),
    "lists": ("with a list", "{:.0%} of documents"),
    "commas": ("commas", "{:.1f} in 100 words"),
    "semicolons": ("semicolons and colons", "{:.1f} in 100 words"),
    "dashes": ("dashes", "{:.1f} in 100 words"),
    "parentheses": ("parentheses", "{:.1f} in 100 words"),
    "emoji": ("emoji", "{:.1f} in 100 words"),
}
"""How each measured fact of a profile is named and written."""


def write_html(results: Results, folder: Path) -> Path:
    """Write `rows.jsonl`, `summary.csv` and `report.html` into `folder` (made if it is not there).

    Each file is written beside and renamed into place, the page last: a page that is there is whole and so
    are its data. Same results, same bytes.

    Returns:
        The place of `report.html`.

    Raises:
        BadInputError: the folder cannot be made or written.
    """
    lines = summary(results)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _put(folder / "rows.jsonl", "".join(_row_json(row) + "\n" for row in results.rows))
        _put(folder / "summary.csv", _csv(lines))
        return _put(folder / "report.html", _page(results, lines))
    except OSError as error:
        raise BadInputError(
            f"cannot write the report into {folder}: {error.strerror}; name a folder that can be written"
        ) from error


def facts_of(facts: StyleFacts) -> list[tuple[str, str]]:
    """The measured facts as (name, value with unit), in the order of `FACTS`."""
    return [(label, form.format(getattr(facts, name))) for name, (label, form) in FACTS.items()]


def _put(path: Path, text: str) -> Path:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _row_json(row: Row) -> str:
    """The row with all its data. `draft.request` is dropped where it is the row's own."""
    same = {"request"} if row.draft.request == row.request else set()
    values = {
        "arm": row.arm,
        "scores": row.scores,
        "request": row.request.model_dump(mode="json"),
        "draft": row.draft.model_dump(mode="json", exclude=same),
    }
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def _csv(lines: Sequence[Line]) -> str:
    """One line an arm and metric; what is undefined is left empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["metric", "arm", "mean", "n", "users", "difference", "low", "high", "pairs", "pair_users"]
    )
    for line in lines:
        d = line.difference
        paired = [d.mean, *([d.low, d.high] if d.defined else ["", ""]), d.n, d.groups] if d else [""] * 5
        table.writerow([line.metric, line.arm, line.mean, line.n, line.users, *paired])
    return text.getvalue()


def _page(results: Results, lines: Sequence[Line]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("penname.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(duration=duration, cut=cut, facts=facts_of)
    pages.globals.update(bounds=bounds, marked=marked, number=number, signed=signed)
    return pages.get_template("report.html.j2").render(
        results=results,
        lines=lines,
        metrics=METRICS,
        enough=ENOUGH,
        differences=plots.differences(results, lines),
        by_writer=plots.by_writer(results),
        requests=results.by_request(),
        unfolded={rows[0].request.id for rows in leading(results, _OPEN)},
    )
