"""Metrics: parity with the libraries called directly and with naive loops, and their edges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import nltk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError, MissingPackageError, UnknownMetricError
from penname.evaluate.answers import accuracy, answer_scores, class_pairs, errors
from penname.evaluate.metrics import (
    METRICS,
    bits_per_byte,
    chrf,
    meteor,
    meteor_ready,
    rouge,
    similarity,
    text_scores,
    words,
)
from penname.evaluate.statistics import aggregate
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
STARS = ("1", "2", "3", "4", "5")


class Letters:
    """Embeds a text as its letter counts; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = np.array([[text.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("stemmed", [True, False])
def test_rouge_is_the_librarys_f_measure(stemmed: bool) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    found = rouge(PAIRS, stemmed=stemmed)
    for kind in ("rouge1", "rouge2", "rougeL"):
        scorer = RougeScorer([kind], use_stemmer=stemmed)
        assert found[kind] == [scorer.score(target=g, prediction=d)[kind].fmeasure for d, g in PAIRS]
    assert (found["rouge1"][0] > 0.5) == stemmed


@given(
    st.lists(st.sampled_from("abcde"), max_size=8), st.lists(st.sampled_from("abcde"), min_size=1, max_size=8)
)
def test_rouge_is_the_overlap_of_words_and_of_pairs(draft: list[str], gold: list[str]) -> None:
    found = rouge([(" ".join(draft), " ".join(gold))])
    for n, kind in ((1, "rouge1"), (2, "rouge2")):
        ours, theirs = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (draft, gold))
        size = sum(ours.values()) + sum(theirs.values())
        expected = 2 * sum((ours & theirs).values()) / size if ours and theirs else 0
        assert found[kind][0] == pytest.approx(expected)


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


def test_words_count_the_draft() -> None:
    assert words(PAIRS)[:4] == [6, 4, 2, 0]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data folder of nltk with an untrained Punkt, and a WordNet in which only a latch has a synonym."""

    class Lemma:
        def name(self) -> str:
            return "hasp"

    class Synset:
        def lemmas(self) -> list[Lemma]:
            return [Lemma()]

    class WordNet:
        def synsets(self, word: str) -> list[Synset]:
            return [Synset()] if word == "latch" else []

    (tmp_path / "corpora" / "wordnet").mkdir(parents=True)
    punkt = tmp_path / "tokenizers" / "punkt_tab" / "english"
    punkt.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (punkt / name).write_text("")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk.corpus, "wordnet", WordNet())


@pytest.mark.usefixtures("stand_in")
def test_meteor_matches_words_stems_and_synonyms_in_order() -> None:
    def expected(matched: int, draft: int, gold: int, chunks: int) -> float:
        precision, recall = matched / draft, matched / gold
        mean = precision * recall / (0.9 * precision + 0.1 * recall)
        return mean * (1 - 0.5 * (chunks / matched) ** 3)

    assert meteor_ready()
    found = meteor(
        [
            ("We mended the gate.", "We mended the fence."),  # two chunks: the full stop is a word
            ("Hens wander. We left.", "We left. Hens wander."),  # nltk pairs the last full stops: four chunks
            ("the hen wandered", "The hens wander"),
            ("the latch", "the hasp"),
            ("", "a real text"),
            ("nothing alike", "quite different"),
        ]
    )
    assert found == pytest.approx(
        [
            expected(4, 5, 5, 2), expected(6, 6, 6, 4), expected(3, 3, 3, 1), expected(2, 2, 2, 1), 0, 0,
        ]
    )  # fmt: skip


def test_meteor_without_its_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    assert not meteor_ready()
    with pytest.raises(MissingPackageError, match=r"METEOR needs .*wordnet.*NLTK_DATA"):
        meteor(PAIRS)


@pytest.mark.skipif(not meteor_ready(), reason="nltk's wordnet and punkt_tab are not at hand")
def test_meteor_is_nltks() -> None:
    from nltk.translate.meteor_score import meteor_score

    expected = [meteor_score([nltk.word_tokenize(gold)], nltk.word_tokenize(draft)) for draft, gold in PAIRS]
    assert meteor(PAIRS) == expected


def test_a_blank_draft_scores_nothing() -> None:
    asked = ["rouge1", "rouge2", "rougeL", "chrf", "similarity", "words"]
    for blank in ("", "  \n"):
        pair = [(blank, "a real text")]
        assert text_scores(pair, Letters(), asked) == [dict.fromkeys(asked, 0.0)]
    assert text_scores([], Letters()) == []


def test_text_scores_compute_what_is_asked_in_the_order_of_metrics() -> None:
    assert list(text_scores(PAIRS)[0]) == ["rouge1", "rougeL", "chrf"]
    assert list(text_scores(PAIRS, Letters())[0]) == ["rouge1", "rougeL", "chrf", "similarity"]
    found = text_scores(PAIRS, metrics=["words", "rouge2", "bits_per_byte", "judge"], stemmed=False)
    assert [list(scores) for scores in found] == [["rouge2", "words"]] * len(PAIRS)
    assert [scores["rouge2"] for scores in found] == rouge(PAIRS, stemmed=False)["rouge2"]
    assert text_scores(PAIRS, metrics=["accuracy"]) == [{}] * len(PAIRS)
    with pytest.raises(BadInputError, match="'similarity' needs an embedder"):
        text_scores(PAIRS, metrics=["similarity"])
    with pytest.raises(UnknownMetricError, match=r"did you mean .*'rouge2'"):
        text_scores(PAIRS, metrics=["rouge-2"])


def test_the_order_of_metrics_is_the_papers_first() -> None:
    names = "accuracy macro_f1 mae rmse rouge1 rouge2 rougeL meteor chrf similarity bits_per_byte style"
    names += " authorship judge win flips words preferred margin"
    assert list(METRICS) == names.split()
    assert {name: m.aggregate for name, m in METRICS.items() if m.aggregate != "mean"} == {
        "macro_f1": "macro_f1",
        "rmse": "rmse",
    }


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


ANSWERS = st.lists(
    st.tuples(st.sampled_from([*STARS, None]), st.sampled_from(STARS)), min_size=1, max_size=40
)


@given(ANSWERS)
def test_labels_agree_with_sklearn_over_the_whole_label_set(pairs: list[tuple[str | None, str]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    answers, golds = [answer for answer, _ in pairs], [gold for _, gold in pairs]
    readable = [answer or "none" for answer in answers]
    assert aggregate(accuracy(answers, golds)) == pytest.approx(accuracy_score(golds, readable))
    coded = class_pairs(answers, golds, STARS)
    expected = f1_score(golds, readable, labels=list(STARS), average="macro", zero_division=0)
    assert aggregate(coded, "macro_f1", classes=5) == pytest.approx(expected)
    seen = sorted({*golds, *(answer for answer in answers if answer)})
    expected = f1_score(golds, readable, labels=seen, average="macro", zero_division=0)
    assert aggregate(coded, "macro_f1") == pytest.approx(expected)


@given(ANSWERS)
def test_numbers_agree_with_numpy_and_the_rule_for_the_unreadable(
    pairs: list[tuple[str | None, str]],
) -> None:
    answers, golds = [answer for answer, _ in pairs], [gold for _, gold in pairs]
    right = np.array([float(gold) for gold in golds])
    filled = [
        (1.0 if float(gold) > 3 else 5.0) if answer is None else float(answer) for answer, gold in pairs
    ]
    scores = answer_scores(answers, golds, ["mae", "rmse"], STARS)
    assert aggregate([s["mae"] for s in scores], "mean") == pytest.approx(np.abs(filled - right).mean())
    assert aggregate([s["rmse"] for s in scores], "rmse") == pytest.approx(
        np.sqrt(np.square(filled - right).mean())
    )


def test_answers_have_their_edges() -> None:
    assert accuracy(["[1] ", None, ""], ["[1]", "[2]", "[1]"]) == [1, 0, 0]
    assert errors(["4.5", "great", "nan", "7", None], ["4", "2", "4", "5", "3"], STARS) == [0.5, 3, 3, 2, 2]
    assert class_pairs(["b", "z", None, "a"], ["a", "b", "a", "z"], ["a", "b"]) == [
        (0, 1), (1, -1), (0, -1), (-1, 0),
    ]  # fmt: skip
    assert answer_scores(["a"], ["a"], ["accuracy", "macro_f1", "rouge1"]) == [{"accuracy": 1.0}]
    assert answer_scores(["2"], ["4"], ["rmse"], STARS) == [{"rmse": 4.0}]
    assert answer_scores([], [], ["accuracy"]) == []


def test_answers_say_what_is_wrong() -> None:
    with pytest.raises(BadInputError, match="1 answers to 2 questions"):
        accuracy(["a"], ["a", "b"])
    with pytest.raises(BadInputError, match=r"choices .* must be numbers"):
        errors(["1"], ["1"], ["1", "two"])
    with pytest.raises(BadInputError, match="must be numbers"):
        errors(["1"], ["1"], [])
    with pytest.raises(BadInputError, match="right answer of example 1, 'good', is no number"):
        errors(["1", "1"], ["1", "good"], STARS)
    with pytest.raises(BadInputError, match="needs the task's labels"):
        class_pairs(["a"], ["a"], [])
    with pytest.raises(UnknownMetricError, match=r"did you mean .*'accuracy'"):
        answer_scores(["a"], ["a"], ["acuracy"])
