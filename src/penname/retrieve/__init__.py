"""Which documents of a user's history matter for a request: five ways behind one interface.

Every retriever sees one user's history, as it stood before the request's date and without the documents
that the request excludes; the others leave no trace, not even in the statistics of words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penname.errors import UnknownRetrieverError

if TYPE_CHECKING:
    from penname.retrieve.base import Embedder, Retriever, Scorer

__all__ = ["EMBEDDING", "RETRIEVERS", "retriever"]

RETRIEVERS = {
    "lexical": "the documents that share the request's rarer words (BM25)",
    "dense": "the documents that mean what the request means (sentence embeddings)",
    "recency": "the newest documents",
    "random": "documents drawn by chance, the same ones each time",
    "fusion": "lexical and dense together (reciprocal rank fusion)",
}
"""The names that `retriever` knows, each with a line for people to read."""

EMBEDDING = ("dense", "fusion")
"""Those that use an embedder."""


def retriever(name: str, seed: int = 0, embedder: Embedder | None = None) -> Retriever:
    """The retriever called `name` (see `RETRIEVERS`), safe to share between threads.

    It keeps the histories it was asked about in memory, up to `history.CACHE_BYTES`, and drops each when that
    user's history changes. Make one and keep it.

    Args:
        name: "lexical", "dense", "recency", "random" or "fusion".
        seed: of "random"; the others ignore it.
        embedder: of those in `EMBEDDING`; None: the embedded one, loaded at its first use.

    Raises:
        UnknownRetrieverError: no such retriever.
        MissingPackageError: the embedder's package is not installed.
    """
    if name not in RETRIEVERS:
        raise UnknownRetrieverError(name, RETRIEVERS)
    # Imported here, so that the names above cost a command line nothing.
    from penname.retrieve.base import Retriever
    from penname.retrieve.history import Histories
    from penname.retrieve.scores import Dense, Random, fusion, lexical, recency

    histories = Histories()
    if name not in EMBEDDING:
        plain: dict[str, Scorer] = {"lexical": lexical, "recency": recency, "random": Random(seed)}
        return Retriever(name, plain[name], histories)
    if embedder is None:
        from penname.lm import load_embedder

        embedder = load_embedder()
    dense = Dense(embedder)
    return Retriever(name, dense if name == "dense" else fusion(lexical, dense), histories)
