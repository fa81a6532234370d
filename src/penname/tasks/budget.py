"""LaMP's and LongLaMP's prompt budget: documents share the room equally, and pass on what they leave unused.

The rule is that of LaMP's published prompts: with n documents and T tokens for them, each may have T // n and
what those before it left; the text of one that needs more is cut, the rest of its item is kept whole. Tokens
are counted over the whole prompt, so that what joins the items counts too and the prompt never exceeds its
room.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from penname.records import Document
from penname.tasks.base import Task, part


def share(
    texts: Sequence[str],
    lay: Callable[[int, str], str],
    size: Callable[[Sequence[str]], int],
    room: int,
) -> list[str]:
    """What of each text is kept, in order: all, a beginning that ends with a word, or "" where none fits.

    Args:
        texts: the part of each document that may be cut, best document first.
        lay: the item of document i (from 0) with that text of it.
        size: tokens of the prompt with these items in it.
        room: tokens that the prompt may have; at least those of the prompt without items.
    """
    if not texts:
        return []
    without = size([])
    each = (room - without) // len(texts)
    items: list[str] = []
    kept = []
    for number, text in enumerate(texts):
        limit = without + each * (number + 1)

        def fits(beginning: str, number: int = number, limit: int = limit) -> bool:
            return size([*items, lay(number, beginning)]) <= limit

        kept.append(text if fits(text) else _longest(text, fits))
        if kept[-1]:
            items.append(lay(number, kept[-1]))
    return kept


def _longest(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits and ends with a word (or a piece of a very long one); "" if none."""
    ends = [match.end() for match in re.finditer(r"\S{1,24}", text)]
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(text[: ends[middle - 1]]):
            low = middle
        else:
            high = middle - 1
    return text[: ends[low - 1]] if low else ""


def cut_part(task: Task) -> str:
    """The part of a document that gives way: its text, or its title where the item shows no text."""
    return "text" if "text" in string.Template(task.item).get_identifiers() else "title"


def item_text(task: Task, document: Document) -> str:
    """The part of a document that may be cut, as it stands in its item: one line, without double quotes."""
    return _quoted(part(document, cut_part(task)))


def lay_out(task: Task, document: Document, text: str) -> str:
    """The document as the task's `item` shows it, with `text` for the part that may be cut.

    Double quotes inside a part become single ones: it cannot leave the quotes that it stands in.
    """
    template = string.Template(task.item)
    parts = {name: _quoted(part(document, name)) for name in template.get_identifiers()}
    return template.substitute(parts | {cut_part(task): text})


def _quoted(text: str) -> str:
    return " ".join(text.split()).replace('"', "'")
