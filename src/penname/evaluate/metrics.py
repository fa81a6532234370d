"""How near a draft comes to what the user really wrote.

Pure functions: each takes pairs of (draft, real text) and returns one score a pair, in order. Libraries are
loaded when a function is called, and none of them fetches anything. A blank draft scores 0. Answers that are
one of a few labels are scored by `answers`, manner by `style` and `authorship`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from penname.errors import BadInputError, MissingPackageError, UnknownMetricError
from penname.lm.base import Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pair = tuple[str, str]
"""(draft, real text)"""

Aggregate = Literal["mean", "rmse", "macro_f1"]


class Embedder(Protocol):
    """What `similarity` needs of an embedder."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d), each row of length 1."""
        ...


@dataclass(frozen=True)
class Metric:
    """How a score is named and read.

    `aggregate` says how the examples' scores become one number (`statistics.aggregate`): their mean, the root
    of their mean where each is a squared error, or macro-F1, which only all answers together have.
    """

    label: str  # as people write it
    better: Literal["higher", "lower", "neither"]
    digits: int  # decimals that are worth printing
    about: str  # what it measures, in one line
    aggregate: Aggregate = "mean"


METRICS = {
    "accuracy": Metric("accuracy", "higher", 3, "share of answers that are the right one"),
    "macro_f1": Metric("macro-F1", "higher", 3, "F1 of each label, averaged over all labels", "macro_f1"),
    "mae": Metric("MAE", "lower", 3, "distance of the number from the right one"),
    "rmse": Metric("RMSE", "lower", 3, "root of the mean squared distance from the right number", "rmse"),
    "rouge1": Metric("ROUGE-1", "higher", 3, "words in common with the real text (0 to 1)"),
    "rouge2": Metric("ROUGE-2", "higher", 3, "pairs of adjacent words in common (0 to 1)"),
    "rougeL": Metric("ROUGE-L", "higher", 3, "longest sequence of words in common (0 to 1)"),
    "meteor": Metric("METEOR", "higher", 3, "words, stems and synonyms in common, in order (0 to 1)"),
    "chrf": Metric("chrF", "higher", 1, "runs of 1 to 6 characters in common; any language (0 to 100)"),
    "similarity": Metric("similarity", "higher", 3, "nearness in meaning: cosine of embeddings (−1 to 1)"),
    "bits_per_byte": Metric("bits/byte", "lower", 3, "how surprising the real text is to the model"),
    "style": Metric(
        "style distance", "lower", 3, "how far function words, punctuation and lengths are from the user's"
    ),
    "authorship": Metric("authorship", "higher", 3, "share of other users it is less like (0.5: chance)"),
    "judge": Metric("judge", "higher", 3, "the anchor that the judge finds most probable"),
    "win": Metric("win rate", "higher", 3, "the judge prefers it to the baseline's draft (a tie is a half)"),
    "flips": Metric("flips", "neither", 3, "share of the judge's verdicts that hang on the drafts' order"),
    "words": Metric("words", "neither", 1, "how long the draft is"),
    "preferred": Metric("pairs right", "higher", 3, "share of pairs put in the user's order (a tie: a half)"),
    "margin": Metric("margin", "neither", 3, "how far the preferred answer is ahead, on the arm's own scale"),
}
"""Every score a report may hold, in the order in which it is shown."""

_PLAIN = ("rouge1", "rougeL", "chrf")
_TEXT = ("rouge1", "rouge2", "rougeL", "meteor", "chrf", "similarity", "words")


def rouge(pairs: Sequence[Pair], *, stemmed: bool = True) -> dict[str, list[float]]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures in [0, 1] (Lin, 2004), by name in `METRICS`.

    As rouge-score has it, a word is a run of a–z and 0–9: texts in other scripts score 0; see `chrf`.

    Args:
        stemmed: compare Porter stems. False is what LaMP's and LongLaMP's own evaluation does.
    """
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=stemmed)
    found = [scorer.score(gold, draft) for draft, gold in pairs]
    return {kind: [float(scores[kind].fmeasure) for scores in found] for kind in kinds}


def chrf(pairs: Sequence[Pair]) -> list[float]:
    """Sentence chrF (chrF2, characters only) in [0, 100] (Popović, 2015)."""
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    return [float(scorer.sentence_score(draft, [gold]).score) for draft, gold in pairs]


def meteor_ready() -> bool:
    """Whether nltk finds the data that METEOR needs: WordNet and the Punkt sentence splitter."""
    import nltk

    # WordNet may lie there as a folder or as the zip that nltk's downloader leaves.
    for places in (("corpora/wordnet", "corpora/wordnet.zip/wordnet/"), ("tokenizers/punkt_tab/english/",)):
        if not any(_found(nltk, place) for place in places):
            return False
    return True


def meteor(pairs: Sequence[Pair]) -> list[float]:
    """METEOR in [0, 1] (Banerjee and Lavie, 2005), as nltk computes it with its default weights.

    Words are split by nltk's `word_tokenize`, as in the evaluation that LongLaMP uses.

    Raises:
        MissingPackageError: nltk's data is not at hand (`meteor_ready`); nothing is fetched.
    """
    if not meteor_ready():
        raise MissingPackageError(
            "wordnet (data of nltk)",
            "METEOR",
            "`python -m nltk.downloader wordnet punkt_tab`, or unpack corpora/wordnet and "
            "tokenizers/punkt_tab into a folder that the variable NLTK_DATA names",
        )
    from nltk import corpus
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktTokenizer
    from nltk.translate.meteor_score import single_meteor_score

    sentences, words = PunktTokenizer("english"), NLTKWordTokenizer()

    def tokens(text: str) -> list[str]:
        return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]

    return [
        float(single_meteor_score(tokens(gold), tokens(draft), wordnet=corpus.wordnet))
        for draft, gold in pairs
    ]


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


def words(pairs: Sequence[Pair]) -> list[float]:
    """The drafts' lengths: runs of characters between blanks. Neither more nor fewer are better."""
    return [float(len(draft.split())) for draft, _ in pairs]


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


def text_scores(
    pairs: Sequence[Pair],
    embedder: Embedder | None = None,
    metrics: Sequence[str] | None = None,
    *,
    stemmed: bool = True,
) -> list[dict[str, float]]:
    """The metrics that need only the two texts, by name in `METRICS`, in that order, a dict a pair.

    Args:
        embedder: what `similarity` needs.
        metrics: which; others than those of texts are left out, so a task's whole list may be given. None:
            ROUGE-1, ROUGE-L and chrF, and `similarity` where there is an embedder.
        stemmed: see `rouge`.

    Raises:
        BadInputError: `similarity` is asked for without an embedder.
        MissingPackageError: `meteor` is asked for and its data is not at hand.
        UnknownMetricError: a metric is not in `METRICS`.
    """
    asked = metrics if metrics is not None else (*_PLAIN, *(("similarity",) if embedder else ()))
    for name in asked:
        if name not in METRICS:
            raise UnknownMetricError(name, METRICS)
    wanted = [name for name in _TEXT if name in asked]
    columns: dict[str, list[float]] = {}
    if any(name.startswith("rouge") for name in wanted):
        columns |= rouge(pairs, stemmed=stemmed)
    for name, score in (("meteor", meteor), ("chrf", chrf), ("words", words)):
        if name in wanted:
            columns[name] = score(pairs)
    if "similarity" in wanted:
        if embedder is None:
            raise BadInputError("the metric 'similarity' needs an embedder: give one or leave it out")
        columns["similarity"] = similarity(pairs, embedder)
    return [{name: columns[name][i] for name in wanted} for i in range(len(pairs))]


def _found(nltk: object, place: str) -> bool:
    try:
        nltk.data.find(place)  # type: ignore[attr-defined]
    except (LookupError, OSError):
        return False
    return True
