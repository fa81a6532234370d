"""What a kept index saves: one request's lexical retrieval against rank_bm25 rebuilt for each query.

The published LaMP code splits a user's whole history into words and builds a BM25 index anew for each query.
penname keeps a user's index until that history changes. Four figures, per query, over one user's documents:

    warm     penname, the second and later requests of a user: reads the history's version, scores, picks k
    date     penname, the first request with a new date: also makes an index of what was written before it
    cold     penname, a user's first request: also reads the documents from the database and splits them
    peer     rank_bm25.BM25Okapi as that code uses it: split, build, get_top_n; the texts are in memory

All run in turn in one process, several times; the ratios are taken within each turn. The documents are made
up (about 200 words, drawn by Zipf's law, seed fixed, one a day), or those of a JSON Lines file whose rows
have "text" and perhaps "title"; queries are 30 words in a row of the documents. The last line says how far
the two agree, as they differ in tokens and in the variant of BM25.

    python benchmarks/retrieve.py [--documents 500] [--turns 7] [--data FILE.jsonl]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from rank_bm25 import BM25Okapi

from penname.records import Document
from penname.retrieve import retriever
from penname.store import Store, UserStore

K = 5
FIRST = datetime(2020, 1, 1, tzinfo=UTC)  # the first document's date; one a day follows
QUERY_WORDS = 30
QUERIES = {"warm": 200, "date": 20, "cold": 3, "peer": 3}  # per turn


def synthetic(n: int, rng: np.random.Generator) -> list[Document]:
    """`n` documents of 100 to 300 words out of 20,000, word r with a probability in proportion to 1/r."""
    vocabulary = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=7)) for _ in range(20_000)]
    weights = 1 / np.arange(1, len(vocabulary) + 1)
    weights /= weights.sum()
    texts = (" ".join(rng.choice(vocabulary, m, p=weights)) for m in rng.integers(100, 301, size=n))
    return [Document(id=f"d{i}", text=text, written_at=day(i)) for i, text in enumerate(texts)]


def real(file: Path, n: int) -> list[Document]:
    """The first `n` documents of a JSON Lines file."""
    with file.open(encoding="utf-8") as lines:
        rows = (json.loads(line) for line in lines)
        texts = ((row.get("title") or "", row["text"]) for row in rows if row.get("text"))
        return [
            Document(id=f"d{i}", title=title, text=text, written_at=day(i))
            for i, (title, text) in enumerate(islice(texts, n))
        ]


def day(i: int) -> datetime:
    return FIRST + timedelta(days=i)


def queries(documents: list[Document], n: int, rng: np.random.Generator) -> list[str]:
    """`n` runs of words, each out of one document."""
    drawn = []
    for place in rng.integers(len(documents), size=n):
        words = documents[place].text.split()
        start = rng.integers(max(1, len(words) - QUERY_WORDS))
        drawn.append(" ".join(words[start : start + QUERY_WORDS]))
    return drawn


def peer(documents: list[Document], query: str) -> list[Document]:
    """As the LaMP code does it, for each query."""
    corpus = [f"{d.title} {d.text}".split() for d in documents]
    return list(BM25Okapi(corpus).get_top_n(query.split(), documents, n=K))


def seconds(find: Callable[[str], object], asked: Iterable[str]) -> float:
    """Mean seconds per query."""
    asked = list(asked)
    start = time.perf_counter()
    for query in asked:
        find(query)
    return (time.perf_counter() - start) / len(asked)


def measure(user: UserStore, documents: list[Document], turns: int, rng: np.random.Generator) -> None:
    """Run the three in turn and print the table."""
    kept, dated = retriever("lexical"), retriever("lexical")
    # The dates lie among the newest tenth, so that nearly all documents count.
    dates = cycle(day(len(documents) - i) for i in range(1 + len(documents) // 10))
    ways: dict[str, Callable[[str], object]] = {
        "warm": lambda query: kept.top(user, query, K),
        "date": lambda query: dated.top(user, query, K, before=next(dates)),
        "cold": lambda query: retriever("lexical").top(user, query, K),
        "peer": lambda query: peer(documents, query),
    }
    for find in ways.values():  # imports and first reads are not what is compared
        find(documents[0].text)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, find in ways.items():
            times[name].append(seconds(find, queries(documents, QUERIES[name], rng)))

    print(
        f"{len(documents)} documents, {mean_words(documents):.0f} words on average, k = {K}, {turns} turns\n"
    )
    print(f"{'':6}{'ms per query':>14}{'min..max':>18}{'peer takes':>14}{'min..max':>20}")
    for name, own in times.items():
        ratios = [b / a for a, b in zip(own, times["peer"], strict=True)]
        row = f"{name:6}{1000 * statistics.median(own):>14.3f}{span([1000 * t for t in own], 3):>18}"
        print(row if name == "peer" else f"{row}{statistics.median(ratios):>13.1f}x{span(ratios, 1):>20}")

    asked = queries(documents, 20, rng)
    shared = 0
    for query in asked:
        ours = {h.document.id for h in kept.top(user, query, K)}
        shared += len(ours & {d.id for d in peer(documents, query)})
    print(f"\nof the peer's {K} documents, penname gives {shared / len(asked):.1f} on average")


def span(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f}..{max(values):.{digits}f}"


def mean_words(documents: list[Document]) -> float:
    return statistics.fmean(len(d.text.split()) for d in documents)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kept index against an index rebuilt for each query.")
    parser.add_argument("--documents", type=int, default=500, help="documents of the user (500)")
    parser.add_argument("--turns", type=int, default=7, help="turns, of all ways each (7)")
    parser.add_argument("--data", type=Path, help='JSON Lines with "text" and "title"; made up without it')
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    documents = real(options.data, options.documents) if options.data else synthetic(options.documents, rng)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "penname.db") as store:
        user = store.add_user("reader")
        user.add(documents)
        measure(user, documents, options.turns, rng)


if __name__ == "__main__":
    main()
