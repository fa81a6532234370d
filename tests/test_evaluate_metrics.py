"""Metrics: parity with the libraries called directly and with naive loops, and their edges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError
from penname.evaluate import METRICS, bits_per_byte, chrf, rouge1, rouge_l, similarity, text_scores
from penname.lm.base import Score

PAIRS = [
    ("the hens wandered into the allotment", "hens wander in the allotments"),
    ("we mended the latch", "we mended the latch"),
    ("nothing alike", "quite different words"),
    ("", "a real text"),
    (" \n", "a real text"),
    ("Die Hühner sind im Garten", "Die Hühner waren im Garten"),
    ("鶏が庭に入った", "鶏が庭に来た"),
]


class Letters:
    """Embeds a text as its letter counts; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = np.array([[text.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_rouge_is_the_librarys_f_measure() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    expected = [scorer.score(target=gold, prediction=draft) for draft, gold in PAIRS]
    assert rouge1(PAIRS) == [score["rouge1"].fmeasure for score in expected]
    assert rouge_l(PAIRS) == [score["rougeL"].fmeasure for score in expected]


@given(
    st.lists(st.sampled_from("abcde"), max_size=8), st.lists(st.sampled_from("abcde"), min_size=1, max_size=8)
)
def test_rouge1_is_the_overlap_of_words(draft: list[str], gold: list[str]) -> None:
    common = sum((Counter(draft) & Counter(gold)).values())
    expected = 2 * common / (len(draft) + len(gold))
    assert rouge1([(" ".join(draft), " ".join(gold))])[0] == pytest.approx(expected)


def test_chrf_is_sacrebleus_sentence_score() -> None:
    from sacrebleu import sentence_chrf

    assert chrf(PAIRS) == [sentence_chrf(draft, [gold]).score for draft, gold in PAIRS]
    assert chrf([("same text", "same text")]) == [100.0]


def test_similarity_is_the_cosine_and_embeds_each_text_once() -> None:
    embedder = Letters()
    pairs = [("hens", "latch"), ("hens", "hens"), ("gate", "latch")]
    found = similarity(pairs, embedder)
    naive = [float(embedder.embed([d])[0] @ embedder.embed([g])[0]) for d, g in pairs]
    assert found == pytest.approx(naive, abs=1e-6)
    assert found[1] == pytest.approx(1)
    assert embedder.asked[:3] == ["hens", "latch", "gate"]


def test_a_blank_draft_scores_nothing() -> None:
    for blank in ("", "  \n"):
        pair = [(blank, "a real text")]
        assert text_scores(pair, Letters()) == [{"rouge1": 0, "rougeL": 0, "chrf": 0, "similarity": 0}]
    assert text_scores([], Letters()) == []


def test_text_scores_name_known_metrics_and_keep_the_order() -> None:
    found = text_scores(PAIRS, Letters())
    assert all(set(scores) <= set(METRICS) for scores in found)
    assert [scores["chrf"] for scores in found] == chrf(PAIRS)
    assert "similarity" not in text_scores(PAIRS)[0]


def test_bits_per_byte_counts_bytes_of_utf8() -> None:
    scores = [
        Score(-8 * math.log(2), 2, (-4 * math.log(2),) * 2),
        Score(-6 * math.log(2), 1, (-6 * math.log(2),)),
    ]
    assert bits_per_byte(scores, ["abcd", "鶏"]) == pytest.approx([2.0, 2.0])


def test_bits_per_byte_says_what_is_wrong() -> None:
    with pytest.raises(BadInputError, match="real text 0 is empty"):
        bits_per_byte([Score(0.0, 0, ())], [""])
    with pytest.raises(BadInputError, match="0 scores for 1 real texts"):
        bits_per_byte([], ["text"])
