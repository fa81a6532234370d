"""Whose text is it? A classifier trained on the users' histories is asked about each draft.

Character n-grams weighted by tf-idf under a linear model are the usual strong baseline of authorship
attribution (Stamatatos, 2009; the PAN shared tasks). The model here is ridge regression on one 0/1 target a
user: solved at once for hundreds of users in seconds, where one logistic regression a user takes minutes, and
without a random number. Its outputs are no probabilities; only their order is used. Characters show the
subject as well as the manner: compare arms that write about the same things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penname.errors import BadInputError, UnknownUserError

MAX_DOCUMENTS = 4_000  # of all users together
_FEATURES = 5_000  # the commonest trigrams, nearly all that occur in English: a matrix of 80 MB at most
_MAX_CHARACTERS = 3_000  # of a document: its beginning
_BATCH = 500  # drafts scored at a time


@dataclass(frozen=True)
class Authorship:
    """A classifier of texts by user. `fit` makes one."""

    users: tuple[str, ...]  # in sorted order
    check: float | None  # mean score of real documents that it had not seen; None: nobody had a second one
    _vectors: Any  # sklearn's fitted TfidfVectorizer
    _model: Any  # sklearn's fitted Ridge, one target a user

    @classmethod
    def fit(cls, texts_by_user: Mapping[str, Sequence[str]], limit: int = 10) -> Authorship:
        """Trains on the last `limit` documents of each user (fewer where they would exceed `MAX_DOCUMENTS`).

        For `check`, the last document of each user is kept from a first training and then scored: it says
        how well real texts of a user are told from the others', and so what can be asked of a draft. The
        classifier that is returned is trained on all of them. Leave the drafts' real texts out.

        Args:
            texts_by_user: each user's documents, oldest first. Blank ones and users without any are left out.

        Raises:
            BadInputError: fewer than two users with documents, more than `MAX_DOCUMENTS`, or a limit below 1.
        """
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer

        if limit < 1:
            raise BadInputError(f"the limit of documents a user is {limit}: it must be 1 or more")
        written = {user: [text for text in texts if text.strip()] for user, texts in texts_by_user.items()}
        kept = {user: written[user] for user in sorted(written) if written[user]}
        if not 2 <= len(kept) <= MAX_DOCUMENTS:
            raise BadInputError(
                f"authorship is told among 2 to {MAX_DOCUMENTS:,} users with documents, not {len(kept):,}: "
                "give others, or a part of them"
            )
        most = min(limit, MAX_DOCUMENTS // len(kept))
        rows = [(user, text) for user, texts in kept.items() for text in texts[-most:]]
        vectors = TfidfVectorizer(
            analyzer="char", ngram_range=(3, 3), sublinear_tf=True, max_features=_FEATURES, dtype=np.float32
        )
        texts = vectors.fit_transform([text[:_MAX_CHARACTERS] for _, text in rows])
        return cls(tuple(kept), _check(rows, texts), vectors, _train([user for user, _ in rows], texts))

    def score(self, draft: str, user: str) -> float:
        """The share of the other users that the draft is less like than `user`: 1 is attributed to them.

        A tie counts a half, so 0.5 is chance, for any number of users, and what a blank draft gets.

        Raises:
            UnknownUserError: the user had no documents when it was trained.
        """
        return self.scores([draft], [user])[0]

    def scores(self, drafts: Sequence[str], users: Sequence[str]) -> list[float]:
        """`score` of each draft and the user beside it, in batches.

        Raises:
            BadInputError: there are not as many users as drafts.
            UnknownUserError: as `score`.
        """
        if len(drafts) != len(users):
            raise BadInputError(f"{len(drafts)} drafts and {len(users)} users: give one a draft")
        place = {user: number for number, user in enumerate(self.users)}
        for user in users:
            if user not in place:
                raise UnknownUserError(user, self.users)
        found: list[float] = []
        for start in range(0, len(drafts), _BATCH):
            texts = [draft[:_MAX_CHARACTERS] for draft in drafts[start : start + _BATCH]]
            found += _shares(
                self._model,
                self._vectors.transform(texts),
                [place[user] for user in users[start : start + _BATCH]],
            )
        return found


def _train(users: Sequence[str], texts: Any) -> Any:
    """Ridge regression of each text's own user, one column a user in sorted order.

    Args:
        texts: (n, d) sparse, of `users`.
    """
    import numpy as np
    from sklearn.linear_model import Ridge

    names, members, counts = np.unique(users, return_inverse=True, return_counts=True)
    # A user with many documents must not seem the likelier author of everything.
    weights = (len(users) / len(names) / counts[members]).astype(np.float32)
    # Dense: the products of sparse vectors of such short n-grams take ten times as long.
    model = Ridge(alpha=1.0, fit_intercept=False, solver="cholesky")
    return model.fit(texts.toarray(), np.eye(len(names), dtype=np.float32)[members], sample_weight=weights)


def _check(rows: Sequence[tuple[str, str]], texts: Any) -> float | None:
    """The mean score of each (user, text)'s last text of a user, where none of these was trained on."""
    last = {user: place for place, (user, _) in enumerate(rows)}
    kept = {rows[place][1] for place in last.values()}
    # By text and not by place: one with several authors must not be learnt from another of them.
    seen = [place for place, (_, text) in enumerate(rows) if text not in kept]
    users = [rows[place][0] for place in seen]
    names = sorted(set(users))
    if len(names) < 2:
        return None
    scores = _shares(_train(users, texts[seen]), texts[[last[user] for user in names]], range(len(names)))
    return sum(scores) / len(scores)


def _shares(model: Any, texts: Any, own: Sequence[int]) -> list[float]:
    """Of each text, the share of the other users' outputs that are below its own one's; ties count a half."""
    likeness = model.predict(texts)
    mine = likeness[range(len(own)), own][:, None]
    below, level = (likeness < mine).sum(axis=1), (likeness == mine).sum(axis=1) - 1
    shares: list[float] = ((below + level / 2) / (likeness.shape[1] - 1)).tolist()
    return shares
