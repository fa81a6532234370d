"""Reading what a model wrote about a history: labelled lines."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penname.tasks.keywords import BULLET, entries

_LABELS = {
    "topics": "topics",
    "keywords": "keywords",
    "background": "background",
    "tone": "tone",
    "length": "length",
    "structure": "structure",
    "favoured words": "favoured",
    "favored words": "favoured",
    "favourite words": "favoured",
    "favorite words": "favoured",
}
_LINE = re.compile(
    rf"^[\s>*_#-]*(?:\d+[.)]\s*)?[*_]*(?P<label>{'|'.join(_LABELS)})\s*[*_]*\s*:\s*[*_]*\s*(?P<rest>.*)$",
    re.IGNORECASE,
)
_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class Gist:
    """What a model said of a writer, in the parts of a profile. Lists keep its order, each entry once."""

    topics: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    background: str = ""
    tone: str = ""
    length: str = ""
    structure: str = ""
    favoured: tuple[str, ...] = ()


def parse_gist(answer: str) -> Gist | None:
    """The seven labelled lines of a gist, however decorated; None where not even two are there.

    A value may stand on its label's line or, as a list, on the lines below it.
    """
    found: dict[str, list[str]] = {}
    label = ""
    for line in _REASONING.sub("", answer).splitlines():
        if match := _LINE.match(line):
            label = _LABELS[match["label"].lower()]
            found[label] = [match["rest"]]
        elif label and line.strip():
            found[label].append(BULLET.sub("", line))
    values = {label: [part.strip() for part in parts if part.strip()] for label, parts in found.items()}
    values = {label: parts for label, parts in values.items() if parts}
    if len(values) < 2:
        return None
    return Gist(
        topics=entries(values.get("topics", [])),
        keywords=entries(values.get("keywords", [])),
        background=" ".join(values.get("background", [])),
        tone=" ".join(values.get("tone", [])),
        length=" ".join(values.get("length", [])),
        structure=" ".join(values.get("structure", [])),
        favoured=entries(values.get("favoured", [])),
    )
