"""The user's own words in a profile: openings and titles of the latest documents."""

from __future__ import annotations

import re
from collections.abc import Sequence

from penname.methods.stepback.config import StepBackConfig
from penname.records import Document


def own_words(
    documents: Sequence[Document], config: StepBackConfig
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(openings, titles) of the latest documents, the newest last, none twice.

    An opening is a document's first sentence, cut after a whole word where it is too long.
    """
    openings = dict.fromkeys(_first_sentence(one.text, config.opening_text) for one in documents)
    titles = dict.fromkeys(" ".join(one.title.split()) for one in documents if one.title.strip())
    return tuple(openings)[-config.openings :], tuple(titles)[-config.titles :]


def _first_sentence(text: str, limit: int) -> str:
    line = " ".join(text[: 4 * limit].split())
    if end := re.search(r"[.!?…](?=\s|$)", line[:limit]):
        return line[: end.end()]
    return line if len(line) <= limit else line[:limit].rsplit(" ", 1)[0] + " …"
