"""How each retriever scores the documents of a past (see `base.Scorer`)."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penname.records import Document
from penname.retrieve.base import Embedder, Scorer, Scores, best_first
from penname.retrieve.history import History, Past

K1, B = 1.5, 0.75  # BM25: saturation of repeated words, and how far long documents are discounted
RRF = 60  # the constant of Cormack et al. 2009
EMBED_BATCH = 64  # documents embedded, and then stored, at a time: a kill loses at most these

_WORD_BYTES = 120  # a word of the vocabulary with its number, measured

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Han
_MARKS = "\u0300-\u036f\u064b-\u065f\u0900-\u0963\u0966-\u0dff"  # parts of words that re's \w leaves out
_WORD = rf"[^\W{_UNSPACED}]"
_TOKENS = re.compile(rf"{_WORD}+(?:[{_MARKS}]+{_WORD}*)*|[{_UNSPACED}]")


def tokenise(text: str) -> list[str]:
    """The words of `text`, whatever their case, width or composition (Unicode's NFKC and case folding).

    No stop words are taken out and nothing is stemmed: histories come in any language, and a word that is in
    every document weighs next to nothing anyway. Each Chinese or Japanese character is a word; other scripts
    without spaces (Thai, Khmer) match by whole runs only.
    """
    # Normalised twice: folding can take composed characters apart.
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _TOKENS.findall(unicodedata.normalize("NFKC", folded))


def lexical(past: Past, query: str) -> Scores:
    """BM25 of title and text, in Lucene's variant, with k1 = 1.5 and b = 0.75; 0: no word in common.

    The index is bm25s's, one for each past that is asked about: the frequencies of words and the mean length
    are those of the past's own documents. A word that the query repeats counts each time.
    """
    vocabulary = _postings(past.history).vocabulary
    known = [vocabulary[word] for word in tokenise(query) if word in vocabulary]
    if not known:
        return np.zeros(len(past.documents), dtype=np.float32)
    index = past.history.part(("bm25", past.places), lambda: _index(past))
    scores: Scores = index.get_scores_from_ids(known)
    return scores


@dataclass(frozen=True)
class _Postings:
    """Which words stand in which documents of a history, and how often: P pairs, by word, then document."""

    vocabulary: dict[str, int]
    words: NDArray[np.int32]  # (P,)
    documents: NDArray[np.int32]  # (P,)
    counts: NDArray[np.int32]  # (P,)
    lengths: NDArray[np.int64]  # (n,): words of each document


def _postings(history: History) -> _Postings:
    def build() -> tuple[_Postings, int]:
        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__  # a new word gets the next number
        texts = [[numbers[word] for word in tokenise(_text(d))] for d in history.documents]
        n, lengths = len(texts), np.array([len(text) for text in texts])
        words_in_turn = np.fromiter(chain.from_iterable(texts), dtype=np.int64, count=lengths.sum())
        pairs = words_in_turn * n + np.repeat(np.arange(n), lengths)
        pairs, often = np.unique(pairs, return_counts=True)
        words, documents, counts = (a.astype(np.int32) for a in (pairs // n, pairs % n, often))
        size = 3 * counts.nbytes + lengths.nbytes + _WORD_BYTES * len(numbers)
        return _Postings(dict(numbers), words, documents, counts, lengths), size

    return history.part("postings", build)


def _index(past: Past) -> tuple[Any, int]:
    """The past's bm25s index and its size in bytes.

    bm25s can build it from the texts; this selects from the postings, which takes a fraction of the time, and
    every new date needs an index. What is filled in is what `bm25s.BM25.build_index_from_ids` returns.
    """
    import bm25s

    postings = _postings(past.history)
    used = past.mask()
    mine = used[postings.documents]
    words, counts = postings.words[mine], postings.counts[mine]
    documents = (np.cumsum(used, dtype=np.int32) - 1)[postings.documents[mine]]
    lengths = postings.lengths[used]

    n = len(lengths)
    found_in = np.bincount(words, minlength=len(postings.vocabulary))  # (V,): documents with the word
    idf = np.log(1 + (n - found_in + 0.5) / (found_in + 0.5))
    relative = lengths[documents] * n / max(lengths.sum(), 1)  # to the mean length; 1: no words at all
    scores = idf[words] * counts / (counts + K1 * (1 - B + B * relative))

    index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
    index.nonoccurrence_array = None
    index.scores = {
        "data": scores.astype(np.float32),
        "indices": documents,
        "indptr": np.concatenate([[0], np.cumsum(found_in)]),
        "num_docs": n,
    }
    return index, sum(index.scores[name].nbytes for name in ("data", "indices", "indptr"))


class Dense:
    """Cosine of the query's and the document's embedding (title, line break, text), from -1 to 1.

    The embedder reads the beginning of a long document only (256 tokens for the embedded one). Documents
    are embedded once: their vectors are kept in the store under the embedder's fingerprint.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def __call__(self, past: Past, query: str) -> Scores:
        history = past.history
        matrix = history.part(("vectors", self._embedder.fingerprint), lambda: self._matrix(past))
        first, end, excluded = past.places
        rows = matrix[past.mask()] if excluded else matrix[first:end]  # without a copy where possible
        # vecdot, not @: each row's product is then the same whichever rows stand beside it, so that equal
        # documents score equally and a date changes no score.
        scores: Scores = np.vecdot(rows, self._embedder.embed([query])[0])
        return scores

    def _matrix(self, past: Past) -> tuple[NDArray[np.float32], int]:
        """The vectors of all documents of the history, (n, d), and their size in bytes.

        All, not only the past's: a vector depends on its own document alone, and is wanted again later.
        """
        documents = past.history.documents
        model = self._embedder.fingerprint
        vectors = past.user.vectors(model, [d.id for d in documents])
        missing = [d for d in documents if d.id not in vectors]
        for i in range(0, len(missing), EMBED_BATCH):
            batch = missing[i : i + EMBED_BATCH]
            embedded = self._embedder.embed([_text(d) for d in batch])
            new = {d.id: vector for d, vector in zip(batch, embedded, strict=True)}
            past.user.put_vectors(model, new, history_version=past.history.version)
            vectors.update(new)
        matrix = np.stack([vectors[d.id] for d in documents])
        return matrix, matrix.nbytes


def recency(past: Past, query: str) -> Scores:  # noqa: ARG001 (a Scorer)
    """The document's place in the past: 1 for the oldest, n for the newest; undated ones come first."""
    return np.arange(1, len(past.documents) + 1, dtype=np.float64)


class Random:
    """A number in [0, 1) for each document, by a hash of seed, user, query and document.

    The order is one of all orders by chance, the same in every process, and the same for the documents
    that remain when others are left out.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, past: Past, query: str) -> Scores:
        drawn = json.dumps([self._seed, past.user.id, query]).encode()
        start = hashlib.blake2b(drawn, digest_size=8)
        return np.array([_drawn(start.copy(), document) for document in past.documents])


def _drawn(start: hashlib.blake2b, document: Document) -> float:
    start.update(document.id.encode())
    return (int.from_bytes(start.digest()) >> 11) / 2**53  # 53 bits: what a float holds exactly


def fusion(lexical: Scorer, dense: Scorer) -> Scorer:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): the sum of 1 / (60 + rank).

    Ranks count from 1 over all documents of the past; those without a word in common with the query have no
    lexical rank.
    """

    def score(past: Past, query: str) -> Scores:
        words = lexical(past, query)
        return np.where(words > 0, _reciprocal_ranks(words), 0) + _reciprocal_ranks(dense(past, query))

    return score


def _reciprocal_ranks(scores: Scores) -> NDArray[np.float64]:
    places = np.empty(len(scores))
    places[best_first(scores)] = 1 / (RRF + np.arange(1, len(scores) + 1))
    return places


def _text(document: Document) -> str:
    return f"{document.title}\n{document.text}" if document.title else document.text
