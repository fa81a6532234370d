"""What two texts differ in, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "old", "new"]

# Signs of scripts that are written without spaces count one by one.
_SIGNS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"\s+|[{_SIGNS}]|(?:(?![{_SIGNS}])[\w'’-])+|[^\w\s]")


def difference(old: str, new: str) -> list[tuple[Kind, str]]:
    """The parts of both texts in order: what they have in common, and what one of them has alone.

    Words, blanks and marks are compared whole. The parts that are "same" or "old" joined are `old`, those
    that are "same" or "new" are `new`, exactly.
    """
    before, after = _WORD.findall(old), _WORD.findall(new)
    parts: list[tuple[Kind, str]] = []
    matcher = SequenceMatcher(str.isspace, before, after, autojunk=False)  # texts are not aligned by blanks
    for tag, start, end, begin, stop in matcher.get_opcodes():
        if tag == "equal":
            parts.append(("same", "".join(before[start:end])))
            continue
        if end > start:
            parts.append(("old", "".join(before[start:end])))
        if stop > begin:
            parts.append(("new", "".join(after[begin:stop])))
    return parts


def marked(parts: Sequence[tuple[Kind, str]]) -> str:
    """The parts as one text: [-what went-] and {+what came+}, the rest as it is."""
    marks = {"same": "{}", "old": "[-{}-]", "new": "{{+{}+}}"}
    return "".join(marks[kind].format(text) for kind, text in parts)
