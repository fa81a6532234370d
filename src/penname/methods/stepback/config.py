"""The settings of Step-Back Profiling, each with its unit and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepBackConfig:
    """Settings of the gist. Source: arXiv 2406.14275 and its official code, where one is named."""

    chunk_tokens: int = (
        3_000  # tokens of documents gisted at once (chat models), or half a small context; ours
    )
    gist_tokens: int = 400  # tokens of one gist; ours: seven short lines
    keyword_tokens: int = 32  # tokens of one document's keywords (base-like models); ours
    keyword_text: int = 600  # characters of a document that its keywords are asked of; ours
    topics: int = 8  # topics in a profile at most; ours
    keywords: int = 12  # keywords in a profile at most; ours
    favoured: int = 10  # favoured words in a profile at most; ours
    openings: int = 4  # first sentences of the latest documents; ours, tuned on proposals' validation split
    opening_text: int = 120  # characters of each at most; ours
    titles: int = 8  # of the latest documents; ours, tuned likewise
    temperature: float = 0.0  # greedy: the same history gives the same profile
