"""The one interface of all retrievers: score the usable part of a history, give the best."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from penname.errors import BadInputError
from penname.records import Hit
from penname.retrieve.history import Histories, Past

if TYPE_CHECKING:
    from penname.store import UserStore

Scores = NDArray[np.float32] | NDArray[np.float64]
Scorer = Callable[[Past, str], Scores]
"""From a past of n documents (n > 0) and a query to n scores, oldest document first; higher is better."""


class Embedder(Protocol):
    """What turns texts into vectors; `penname.lm.Embedder` is one."""

    @property
    def fingerprint(self) -> str:
        """Changes when the vectors do."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors, (len(texts), d), of Euclidean length 1."""
        ...


class Retriever:
    """Finds documents in one user's history; made by `penname.retrieve.retriever`."""

    def __init__(self, name: str, score: Scorer, histories: Histories) -> None:
        self.name = name
        self._score = score
        self._histories = histories

    def top(
        self,
        user: UserStore,
        query: str,
        k: int,
        before: datetime | None = None,
        exclude: Collection[str] = (),
    ) -> list[Hit]:
        """The `k` best documents of `user` for `query`, best first; of equals the more recent first.

        Fewer only where the user has fewer: documents that do not match at all (score 0) fill the list up,
        most recent first, because any example of how somebody writes is better than none.

        A warm request (the user's history has not changed since the last one) reads no documents.

        Args:
            before: only documents written strictly earlier are used; undated ones are not. A naive time is
                read as UTC. None: the whole history.
            exclude: ids of documents that are not used.

        Neither documents from `before` on nor excluded ones influence the others' scores in any way: the
        answer is that of a history without them.

        Raises:
            BadInputError: `k` is below 1.
            UnknownUserError: the user has been erased.
        """
        if k < 1:
            raise BadInputError(f"k is {k}: ask for 1 document or more")
        past = self._histories.past(user, before, exclude)
        if not past.documents:
            return []
        scores = self._score(past, query)
        return [
            # Not checked again: the parts are records already.
            Hit.model_construct(user=user.id, document=past.documents[i], score=float(scores[i]))
            for i in best_first(scores)[:k]
        ]

    def forget(self, user: UserStore) -> None:
        """Drop what is kept in memory of this user, as after an erasure."""
        self._histories.forget(user)

    def sweep(self, there: Callable[[Collection[str]], Container[str]]) -> None:
        """Drop what is kept in memory of users who are gone.

        Args:
            there: which of these users, all of one store, are still in it.
        """
        self._histories.sweep(there)


def best_first(scores: Scores) -> NDArray[np.intp]:
    """Positions by descending score; of equal scores the later position (the more recent) first."""
    last = len(scores) - 1
    return last - np.argsort(-scores[::-1], kind="stable")
