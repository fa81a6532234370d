"""What reaches the terminal: data on stdout, everything else on stderr, and no text of a user as commands.

A document may hold terminal escapes (ESC, CSI …) or what looks like Rich's markup. Whatever is printed for
people goes through `clean`; what is printed as JSON through `to_json`, which loses nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import Console
    from rich.progress import Progress

# C0 but newline and tab, DEL, C1 (U+009B alone is an escape sequence's start to some terminals), the
# characters that reorder a line, and lone surrogates, which no stream can encode.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` with every control character but newline and tab made visible, as in a Python string."""
    return _UNSAFE.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), text.replace("\r\n", "\n"))


def line(text: str, width: int = 0) -> str:
    """`text` on one clean line, cut with … where it is longer than `width` characters (0: not cut)."""
    words = " ".join(clean(text[: 4 * width] if width else text).split())
    return words if not width or len(words) <= width else words[: width - 1].rstrip() + "…"


def to_json(value: Any) -> str:
    """`value` as one line of JSON; readable, and holding no control character raw."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSAFE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def say(text: str = "") -> None:
    """A line, or more, for people on stdout."""
    print(clean(text))


def say_json(value: Any) -> None:
    """One value as a line of JSON on stdout."""
    print(to_json(value))


def note(text: str) -> None:
    """A line that is not the result, on stderr."""
    print(clean(text), file=sys.stderr)


def confirmed(question: str) -> bool:
    """Whether whoever is at stdin says yes; the end of input is a no."""
    print(f"{clean(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, stderr: bool = False) -> None:
    """Rows for people: a drawn table on a terminal, tab-separated lines in a pipe or file (streamed)."""
    stream = sys.stderr if stderr else sys.stdout
    if not stream.isatty():
        print("\t".join(head), file=stream)
        for row in rows:
            print("\t".join(line(str(cell)) for cell in row), file=stream)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in head:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        number = [isinstance(cell, int) for cell in row]
        drawn.add_row(
            *(Text(line(str(c)), justify="right" if n else "left") for c, n in zip(row, number, strict=True))
        )
    _console(stderr=stderr).print(drawn)


@contextmanager
def progress(what: str, total: int | None = None, *, left: bool = False) -> Iterator[Progress]:
    """A moving line on stderr, drawn only where stderr is a terminal; its one task has id 0.

    With `left` it shows the time left as well.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = _console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    counted = [BarColumn(), MofNCompleteColumn()] if total is not None else []
    remaining = [TimeRemainingColumn(), TextColumn("left")] if left else []
    columns = [SpinnerColumn(), text, *counted, TimeElapsedColumn(), *remaining]
    shown = Progress(
        *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
    )
    with shown:
        shown.add_task(clean(what), total=total)
        yield shown


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def day(moment: datetime | None) -> str:
    """The date of `moment` (UTC), such as 2024-03-01; "" for None."""
    return moment.date().isoformat() if moment else ""


def plural(number: int, noun: str, several: str = "") -> str:
    """`1 document`, `2,000 documents`."""
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
