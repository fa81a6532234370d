"""Numbers, times and words as the console and the page show them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from penname.evaluate.metrics import METRICS
from penname.evaluate.results import Line

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_LONG = 4  # letters: shorter words (the, of, and) are in every text, and marking them says nothing
_DIRECTION = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def number(metric: str, value: float) -> str:
    """A score with the decimals that its metric is worth."""
    return f"{value:.{METRICS[metric].digits}f}".replace("-", "−")


def signed(metric: str, value: float) -> str:
    """A difference, always with its sign."""
    return f"{value:+.{METRICS[metric].digits}f}".replace("-", "−")


def bounds(line: Line) -> str:
    """The interval of a line's difference, or why there is none."""
    if line.difference is None:
        return ""
    if not line.difference.defined:
        return "undefined: one user"
    return f"{signed(line.metric, line.difference.low)} to {signed(line.metric, line.difference.high)}"


def duration(seconds: float) -> str:
    """0.03 s, 8.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.{2 if seconds < 1 else 1}f} s"
    minutes = round(seconds / 60)
    return (
        f"{int(seconds // 60)} min {int(seconds % 60)} s"
        if minutes < 90
        else f"{minutes // 60} h {minutes % 60} min"
    )


def plain(text: str) -> str:
    """`text` without what could steer a terminal: control characters and changes of writing direction."""
    return "".join(c for c in text if c in "\n\t" or not _steers(c)).strip()


def cut(text: str, limit: int) -> str:
    """`text` in at most `limit` characters, ended by an ellipsis at a word's end where it is longer."""
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    at_word = head[: head.rfind(" ")] if " " in head[limit // 2 :] else head
    return at_word.rstrip(" \n\t,;:.–—-") + "…"


def marked(draft: str, gold: str) -> Iterator[tuple[str, bool]]:
    """The draft in pieces, each with whether it is a word of 4 or more letters that also occurs in `gold`.

    The pieces joined are the draft; letter case is ignored.
    """
    known = {word.casefold() for word in _WORD.findall(gold)}
    done = 0
    for match in _WORD.finditer(draft):
        if len(match[0]) >= _LONG and match[0].casefold() in known:
            if match.start() > done:
                yield draft[done : match.start()], False
            yield match[0], True
            done = match.end()
    if done < len(draft):
        yield draft[done:], False


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTION
