"""Keywords of a text: the question that even a small base-like model can answer, and what of it holds."""

from __future__ import annotations

import re

from penname.tasks.facts import FUNCTION_WORDS, words
from penname.tasks.prompts import PromptTexts, fill, quote_labels, shorten

BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")


def keywords_prompt(texts: PromptTexts, text: str, limit: int) -> str:
    """The question for the keywords of the first `limit` characters of `text`; the answer is one line."""
    line = quote_labels(" ".join(shorten(text, limit).split()), ("Text", "Keywords"))
    return fill(texts.completion["keywords"], document=line)


def parse_keywords(answer: str, document: str) -> tuple[str, ...]:
    """The keywords that a model listed on one line, kept where `document` bears them out.

    A small model goes round in circles and adds what it has not read, so a keyword counts once, and only
    when each of its content words occurs in the document (up to a plural s).
    """
    there = {stem(word) for word in words(document)}
    kept: dict[str, str] = {}
    for entry in entries([answer.split("\n")[0]], separators=r"[,;]"):
        named = words(entry)
        content = [word for word in named if word not in FUNCTION_WORDS]
        whole = bool(content) and named[0] == content[0] and named[-1] == content[-1]  # not "gas per"
        if whole and len(content) <= 4 and all(stem(word) in there for word in content):
            kept.setdefault(" ".join(map(stem, content)), entry.lower() if not entry.isupper() else entry)
    return tuple(kept.values())


def entries(parts: list[str], separators: str = r"[;\n]|,(?=\s)") -> tuple[str, ...]:
    """The entries of a list, each once (case aside), in order, without bullets, quotes and full stops."""
    seen: dict[str, str] = {}
    for part in parts:
        for entry in re.split(separators, part):
            clean = BULLET.sub("", entry).strip(" \t\"'“”‘’`*_.")
            if clean and clean.lower() not in ("none", "n/a"):
                seen.setdefault(clean.lower(), clean)
    return tuple(seen.values())


def stem(word: str) -> str:
    """A word without its plural s: enough to see that it is there."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
