"""Reading what a model wrote about a history: labelled lines, and lists of keywords."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penname.methods.stepback.facts import FUNCTION_WORDS, words

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
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")
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
            found[label].append(_BULLET.sub("", line))
    values = {label: [part.strip() for part in parts if part.strip()] for label, parts in found.items()}
    values = {label: parts for label, parts in values.items() if parts}
    if len(values) < 2:
        return None
    return Gist(
        topics=_entries(values.get("topics", [])),
        keywords=_entries(values.get("keywords", [])),
        background=" ".join(values.get("background", [])),
        tone=" ".join(values.get("tone", [])),
        length=" ".join(values.get("length", [])),
        structure=" ".join(values.get("structure", [])),
        favoured=_entries(values.get("favoured", [])),
    )


def parse_keywords(answer: str, document: str) -> tuple[str, ...]:
    """The keywords that a model listed on one line, kept where `document` bears them out.

    A small model goes round in circles and adds what it has not read, so a keyword counts once, and only
    when each of its content words occurs in the document (up to a plural s).
    """
    there = {_stem(word) for word in words(document)}
    kept: dict[str, str] = {}
    for entry in _entries([answer.split("\n")[0]], separators=r"[,;]"):
        named = words(entry)
        content = [word for word in named if word not in FUNCTION_WORDS]
        whole = bool(content) and named[0] == content[0] and named[-1] == content[-1]  # not "gas per"
        if whole and len(content) <= 4 and all(_stem(word) in there for word in content):
            kept.setdefault(" ".join(map(_stem, content)), entry.lower() if not entry.isupper() else entry)
    return tuple(kept.values())


def _entries(parts: list[str], separators: str = r"[;\n]|,(?=\s)") -> tuple[str, ...]:
    """The entries of a list, each once (case aside), in order, without bullets, quotes and full stops."""
    seen: dict[str, str] = {}
    for part in parts:
        for entry in re.split(separators, part):
            clean = _BULLET.sub("", entry).strip(" \t\"'“”‘’`*_.")
            if clean and clean.lower() not in ("none", "n/a"):
                seen.setdefault(clean.lower(), clean)
    return tuple(seen.values())


def _stem(word: str) -> str:
    """A word without its plural s: enough to see that it is there."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
