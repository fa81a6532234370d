"""What each retriever finds, against naive implementations and a peer."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rank_bm25 import BM25Plus

from penname.errors import BadInputError, UnknownRetrieverError
from penname.records import Document
from penname.retrieve import RETRIEVERS, retriever
from penname.retrieve.scores import tokenise
from penname.store import Store, UserStore
from retrieve_helpers import WordEmbedder, document, few, fresh_user, histories, moment, words


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("store") / "penname.db") as opened:
        yield opened


def naive_bm25(documents: list[Document], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25, word by word from the formula (Kamphuis et al., ECIR 2020, table 1)."""
    texts = [tokenise(f"{d.title} {d.text}") for d in documents]
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score, counts = 0.0, Counter(text)
        for word in tokenise(query):
            n = sum(word in other for other in texts)
            if counts[word]:
                idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
                tf = counts[word]
                score += idf * tf / (tf + k1 * (1 - b + b * len(text) / mean))
        scores.append(score)
    return scores


def newest_first(documents: list[Document]) -> list[Document]:
    undated = [d for d in documents if d.written_at is None]
    dated = [d for d in documents if d.written_at is not None]
    ordered = sorted(undated, key=lambda d: d.id) + sorted(dated, key=lambda d: (d.written_at, d.id))
    return ordered[::-1]


@few
@given(histories(min_size=1), words)
def test_lexical_scores_are_those_of_the_formula(store: Store, documents: list[Document], query: str) -> None:
    user = fresh_user(store, documents)
    hits = retriever("lexical").top(user, query, k=100)
    expected = dict(zip((d.id for d in documents), naive_bm25(documents, query), strict=True))
    assert [h.score for h in hits] == pytest.approx([expected[h.document.id] for h in hits], abs=1e-5)
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert {h.document.id for h in hits} == set(expected)
    zero = [h.document.id for h in hits if h.score == 0]
    assert zero == [d.id for d in newest_first(documents) if expected[d.id] == 0]


def test_lexical_scores_are_those_of_bm25s_own_index(store: Store) -> None:
    rng = np.random.default_rng(1)
    texts = [[f"w{i}" for i in rng.zipf(1.5, size=rng.integers(1, 60))] for _ in range(50)]
    user = fresh_user(store, [document(f"d{i}", " ".join(text), day=i) for i, text in enumerate(texts)])
    lexical = retriever("lexical")
    for end in (1, 17, 50):
        index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        index.index(texts[:end], show_progress=False)
        for query in (["w1"], ["w2", "w3", "w2"], texts[end - 1]):
            expected = index.get_scores(query)
            hits = lexical.top(user, " ".join(query), k=50, before=moment(end))
            own = {h.document.id: h.score for h in hits}
            assert [own[f"d{i}"] for i in range(end)] == pytest.approx(expected, rel=1e-5)


def test_lexical_ranks_as_rank_bm25_does(store: Store) -> None:
    # The variants of BM25 agree where each query has one word: the idf is then one factor for all.
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(40)]
    documents = [
        document(f"d{i}", " ".join(rng.choice(vocabulary, size=rng.integers(5, 30))), day=i)
        for i in range(30)
    ]
    user = fresh_user(store, documents)
    # With delta 0, BM25Plus is the textbook's formula, without the floor of BM25Okapi's idf.
    peer = BM25Plus([d.text.split() for d in documents], k1=1.5, b=0.75, delta=0)
    lexical = retriever("lexical")
    for word in vocabulary:
        scores = peer.get_scores([word])
        expected = sorted(range(30), key=lambda i: (-scores[i], -i))
        assert [h.document.id for h in lexical.top(user, word, k=30)] == [f"d{i}" for i in expected]


def test_lexical_reads_titles_and_folds_case_and_width(store: Store) -> None:
    user = fresh_user(
        store,
        [document("a", "nothing here", title="Straße"), document("b", "ＡＢＣ"), document("c", "猫が好き")],
    )
    lexical = retriever("lexical")
    for query, expected in (("STRASSE", "a"), ("abc", "b"), ("黒猫", "c")):
        hits = lexical.top(user, query, k=3)
        assert hits[0].document.id == expected
        assert [h.score > 0 for h in hits] == [True, False, False]


def test_lexical_gives_recent_documents_where_nothing_matches(store: Store) -> None:
    user = fresh_user(store, [document("old", "...", day=1), document("new", "???", day=2)])
    for query in ("words", "", "!"):
        hits = retriever("lexical").top(user, query, k=1)
        assert [(h.document.id, h.score) for h in hits] == [("new", 0)]


def test_recency_is_newest_first_and_undated_last(store: Store) -> None:
    user = fresh_user(
        store,
        [document("n"), document("a", day=2), document("c", day=3), document("b", day=2), document("m")],
    )
    hits = retriever("recency").top(user, "anything", k=9)
    assert [h.document.id for h in hits] == ["c", "b", "a", "n", "m"]
    assert [h.score for h in hits] == [5, 4, 3, 2, 1]


def test_random_depends_on_seed_user_and_query_only(store: Store) -> None:
    documents = [document(f"d{i}", day=i) for i in range(50)]
    user, other = fresh_user(store, documents), fresh_user(store, documents)

    def order(seed: int, user: UserStore, query: str) -> list[str]:
        return [h.document.id for h in retriever("random", seed=seed).top(user, query, k=50)]

    first = order(0, user, "q")
    assert sorted(first) == sorted(d.id for d in documents)
    assert first == order(0, user, "q")
    assert (
        len({tuple(o) for o in (first, order(1, user, "q"), order(0, other, "q"), order(0, user, "r"))}) == 4
    )


def test_random_is_uniform(store: Store) -> None:
    user = fresh_user(store, [document(f"d{i}") for i in range(5)])
    random = retriever("random")
    drawn = Counter(random.top(user, str(i), k=1)[0].document.id for i in range(1000))
    chi_square = sum((drawn[f"d{i}"] - 200) ** 2 / 200 for i in range(5))
    assert chi_square < 18.5  # 4 degrees of freedom, p = 0.001; the draws are fixed


def test_random_is_the_same_in_another_process(store: Store, tmp_path: Path) -> None:
    code = (
        "from penname.records import Document; from penname.retrieve import retriever\n"
        "from penname.store import Store\n"
        f"with Store({str(tmp_path / 'p.db')!r}) as s:\n"
        "    u = s.add_user('alice'); u.add([Document(id=f'd{i}', text='t') for i in range(20)])\n"
        "    print(*(h.document.id for h in retriever('random', seed=3).top(u, 'q', 20)))\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(i)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for i in range(2)
    }
    assert len(runs) == 1


@few
@given(histories(min_size=1), words)
def test_dense_is_the_dot_product(store: Store, documents: list[Document], query: str) -> None:
    embedder = WordEmbedder()
    user = fresh_user(store, documents)
    hits = retriever("dense", embedder=embedder).top(user, query, k=100)
    texts = [f"{d.title}\n{d.text}" if d.title else d.text for d in documents]
    scores = WordEmbedder().embed(texts) @ WordEmbedder().embed([query])[0]
    expected = dict(zip((d.id for d in documents), scores, strict=True))
    assert [h.score for h in hits] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-6)
    assert [h.score for h in hits] == pytest.approx([expected[h.document.id] for h in hits], abs=1e-6)


@few
@given(histories(min_size=1), words)
def test_fusion_is_reciprocal_rank_fusion(store: Store, documents: list[Document], query: str) -> None:
    user = fresh_user(store, documents)
    embedder = WordEmbedder()
    lexical = [h for h in retriever("lexical").top(user, query, k=100) if h.score > 0]
    dense = retriever("dense", embedder=embedder).top(user, query, k=100)
    expected: dict[str, float] = defaultdict(float)
    for ranking in (lexical, dense):
        for rank, hit in enumerate(ranking, start=1):
            expected[hit.document.id] += 1 / (60 + rank)
    place = {d.id: i for i, d in enumerate(newest_first(documents))}
    order = sorted(expected, key=lambda i: (-expected[i], place[i]))
    hits = retriever("fusion", embedder=embedder).top(user, query, k=100)
    assert [h.document.id for h in hits] == order
    assert [h.score for h in hits] == pytest.approx([expected[i] for i in order])


def test_the_embedded_model_finds_what_is_meant(store: Store) -> None:
    user = fresh_user(
        store,
        [
            document("cat", "My kitten sleeps on the sofa all day.", day=1),
            document("tax", "The revenue office wants its forms by April.", day=2),
            document("sea", "We sailed along the coast in a small boat.", day=3),
        ],
    )
    dense, fusion = retriever("dense"), retriever("fusion")
    for query, expected in (
        ("pet animals", "cat"),
        ("paying governments", "tax"),
        ("ocean voyage", "sea"),
    ):
        assert dense.top(user, query, k=1)[0].document.id == expected
        assert fusion.top(user, query, k=1)[0].document.id == expected


@pytest.mark.parametrize("name", RETRIEVERS)
def test_every_retriever_gives_k_hits_of_the_user(store: Store, name: str) -> None:
    user = fresh_user(store, [document(f"d{i}", f"text {i}", day=i) for i in range(7)])
    found = retriever(name, embedder=WordEmbedder())
    assert found.name == name
    for k in (1, 5, 7, 100):
        hits = found.top(user, "text 3", k)
        assert len({h.document.id for h in hits}) == min(k, 7)
        assert all(h.user == user.id and h.document.text == f"text {h.document.id[1:]}" for h in hits)
        assert all(math.isfinite(h.score) for h in hits)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert found.top(fresh_user(store, []), "text", k=5) == []
    for k in (0, -1):
        with pytest.raises(BadInputError, match=f"k is {k}"):
            found.top(user, "text", k)


def test_an_unknown_retriever_is_answered_with_the_near_ones() -> None:
    with pytest.raises(
        UnknownRetrieverError, match=re.escape("unknown retriever 'lexicl' (did you mean 'lexical'?)")
    ):
        retriever("lexicl")


def test_words_of_many_scripts() -> None:
    assert tokenise("Don't STOP—me, ½ 3.14!") == ["don", "t", "stop", "me", "1", "2", "3", "14"]
    assert tokenise("ταΐζω Cafe\u0301 café 𝐇𝐢 हिन्दी है। 猫とcat") == [
        *("ταΐζω", "café", "café", "hi", "हिन्दी", "है", "猫", "と", "cat")
    ]
    assert tokenise(" \n…👍") == []


@given(st.text())
def test_tokens_are_their_own_tokens(text: str) -> None:
    tokens = tokenise(text)
    assert tokenise(" ".join(tokens)) == tokens
    assert all(token and not any(c.isspace() for c in token) for token in tokens)
