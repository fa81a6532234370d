"""How near a draft comes to what the user really wrote.

Pure functions: each takes pairs of (draft, real text) and returns one score a pair, in order. Libraries are
loaded when a function is called, and none of them fetches anything. A blank draft scores 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from penname.errors import BadInputError
from penname.lm.base import Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pair = tuple[str, str]
"""(draft, real text)"""


class Embedder(Protocol):
    """What `similarity` needs of an embedder."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d), each row of length 1."""
        ...


@dataclass(frozen=True)
class Metric:
    """How a score is named and read."""

    label: str  # as people write it
    better: Literal["higher", "lower"]
    digits: int  # decimals that are worth printing
    about: str  # what it measures, in one line


METRICS = {
    "rouge1": Metric("ROUGE-1", "higher", 3, "words in common with the real text, stemmed (0 to 1)"),
    "rougeL": Metric("ROUGE-L", "higher", 3, "longest sequence of words in common, stemmed (0 to 1)"),
    "chrf": Metric("chrF", "higher", 1, "runs of 1 to 6 characters in common; any language (0 to 100)"),
    "similarity": Metric("similarity", "higher", 3, "nearness in meaning: cosine of embeddings (−1 to 1)"),
    "bits_per_byte": Metric("bits/byte", "lower", 3, "how surprising the real text is to the model"),
}
"""Every score a report may hold, in the order in which it is shown."""


def rouge1(pairs: Sequence[Pair]) -> list[float]:
    """ROUGE-1 F-measure in [0, 1], Porter-stemmed (Lin, 2004).

    As rouge-score has it, a word is a run of a–z and 0–9: texts in other scripts score 0; see `chrf`.
    """
    return _rouge("rouge1", pairs)


def rouge_l(pairs: Sequence[Pair]) -> list[float]:
    """ROUGE-L F-measure in [0, 1], Porter-stemmed, over the whole text; words as in `rouge1`."""
    return _rouge("rougeL", pairs)


def chrf(pairs: Sequence[Pair]) -> list[float]:
    """Sentence chrF (chrF2, characters only) in [0, 100] (Popović, 2015)."""
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    return [float(scorer.sentence_score(draft, [gold]).score) for draft, gold in pairs]


def similarity(pairs: Sequence[Pair], embedder: Embedder) -> list[float]:
    """Cosine of the two texts' embeddings in [-1, 1]. A text that occurs several times is embedded once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair if text.strip()))
    if not texts:
        return [0.0] * len(pairs)
    vectors = dict(zip(texts, embedder.embed(texts), strict=True))
    return [
        float(vectors[draft] @ vectors[gold]) if draft in vectors and gold in vectors else 0.0
        for draft, gold in pairs
    ]


def bits_per_byte(scores: Sequence[Score], golds: Sequence[str]) -> list[float]:
    """Bits that the model needs for each byte of the real texts' UTF-8: −total / ln 2 / bytes.

    Comparable between models with different tokenisers; lower is better.

    Args:
        scores: log p(real text | prompt), one for each of `golds`.
        golds: the real texts that were scored.

    Raises:
        BadInputError: a real text is empty, or there are not as many scores as texts.
    """
    if len(scores) != len(golds):
        raise BadInputError(f"{len(scores)} scores for {len(golds)} real texts: give one score a text")
    for number, gold in enumerate(golds):
        if not gold:
            raise BadInputError(f"real text {number} is empty: it has no bits per byte")
    return [
        -score.total / math.log(2) / len(gold.encode()) for score, gold in zip(scores, golds, strict=True)
    ]


def text_scores(pairs: Sequence[Pair], embedder: Embedder | None = None) -> list[dict[str, float]]:
    """The metrics that need only the two texts, by name in `METRICS`; `similarity` with an embedder."""
    columns: dict[str, list[float]] = {"rouge1": rouge1(pairs), "rougeL": rouge_l(pairs), "chrf": chrf(pairs)}
    if embedder is not None:
        columns["similarity"] = similarity(pairs, embedder)
    return [{name: column[i] for name, column in columns.items()} for i in range(len(pairs))]


def _rouge(kind: str, pairs: Sequence[Pair]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    score: Callable[[str, str], dict[str, tuple[float, float, float]]]
    score = RougeScorer([kind], use_stemmer=True).score
    return [float(score(gold, draft)[kind][2]) for draft, gold in pairs]  # precision, recall, F
