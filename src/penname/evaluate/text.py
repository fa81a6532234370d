"""Numbers, times and words as the console and the page show them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from penname.evaluate.metrics import METRICS
from penname.evaluate.statistics import ENOUGH, Comparison
from penname.evaluate.tables import Counts, Pair, Table

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_JOINT = " · "  # between the parts of an arm's name
_LONG = 4  # letters: shorter words (the, of, and) are in every text, and marking them says nothing
_DIRECTION = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

HOW = (
    "Means are over all of an arm's examples. Differences are over the examples that both arms have, so they "
    "need not be the means' own. Intervals: 95 %, bootstrap over users; an example of several users counts "
    f"for the first. * the interval leaves out 0 (never said of fewer than {ENOUGH} users)."
)
"""How the numbers were made, for a reader of any face."""

TESTS = (
    "p: paired permutation test over users, and after Holm's correction over all comparisons of the task. "
    "Effect: the users' mean difference in standard deviations of it."
)
"""The same for tests and effects, where these are shown."""


def number(metric: str, value: float) -> str:
    """A score with the decimals that its metric is worth."""
    return f"{value:.{METRICS[metric].digits}f}".replace("-", "−")


def signed(metric: str, value: float) -> str:
    """A difference, always with its sign."""
    return f"{value:+.{METRICS[metric].digits}f}".replace("-", "−")


def difference(metric: str, found: Comparison) -> str:
    """A mean difference, starred where it is clear."""
    return signed(metric, found.mean) + (" *" if found.clear else "")


def bounds(metric: str, found: Comparison) -> str:
    """The interval of a difference, or why there is none."""
    if not found.defined:
        return "undefined: one user"
    return f"{signed(metric, found.low)} to {signed(metric, found.high)}"


def chances(pair: Pair) -> tuple[str, str]:
    """A pair's p-value and the one after Holm's correction; dashes where nothing was tested."""
    return (_chance(pair.found.p), _chance(pair.p)) if pair.found.defined else ("–", "–")


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def effect(value: float) -> str:
    """An effect size in standard deviations; a dash where there is none."""
    return "–" if value != value else f"{value:+.2f}".replace("-", "−")


def arrow(metric: str) -> str:
    """↑ where higher is better, ↓ where lower is, nothing where neither is."""
    return {"higher": " ↑", "lower": " ↓", "neither": ""}[METRICS[metric].better]


def heading(metric: str) -> str:
    """The metric's label with its arrow."""
    return METRICS[metric].label + arrow(metric)


def versus(pair: Pair) -> str:
    """What a pair compares, without what both names begin with: "step-back · all − one"."""
    ours, theirs = pair.arm.split(_JOINT), pair.other.split(_JOINT)
    same = next((i for i, part in enumerate(theirs) if ours[i : i + 1] != [part]), 0)
    return f"{pair.arm} − {_JOINT.join(theirs[same:])}"


def verdict_words(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Verdicts of one arm in words, from `Table.verdicts_of`: "ROUGE-1, chrF: gains"."""
    return [f"{labels(metrics)}: {words}" for words, metrics in found.items()]


def labels(metrics: Sequence[str]) -> str:
    """The metrics' labels, one after another."""
    return ", ".join(METRICS[metric].label for metric in metrics)


def troubles(table: Table) -> list[tuple[str, str]]:
    """(arm, what went wrong with its drafts), for the arms where anything did."""
    return [(arm, words) for arm, counts in table.counts.items() if (words := _trouble(counts))]


def _trouble(counts: Counts) -> str:
    parts = [
        f"{n:,} {what}"
        for n, what in (
            (counts.empty, "empty"),
            (counts.unreadable, "without an answer that can be read"),
            (counts.cut, "cut at the token limit"),
        )
        if n
    ]
    return f"{', '.join(parts)} (of {counts.rows:,})" if parts else ""


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


def marked(draft: str, gold: str, other: str | None = None) -> Iterator[tuple[str, str]]:
    """The draft in pieces, each with what it is: "" or a word of 4 or more letters that is also in `gold`.

    Such a word is "won" where `other` (the baseline's draft) has it not, else "shared". The pieces joined are
    the draft; letter case is ignored.
    """
    known, elsewhere = _words(gold), _words(draft if other is None else other)
    done = 0
    for match in _WORD.finditer(draft):
        word = match[0].casefold()
        if len(word) >= _LONG and word in known:
            if match.start() > done:
                yield draft[done : match.start()], ""
            yield match[0], "shared" if word in elsewhere else "won"
            done = match.end()
    if done < len(draft):
        yield draft[done:], ""


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTION
