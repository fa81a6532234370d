"""A new or changed user: that user's own part is fitted to a handful of preferences, and nothing else moves.

Of a run with soft prompts only o_u, or w_u with clusters, moves (arXiv 2402.05133, section 4.3; `softfit`
looks for it). Of the low-rank form w_u is computed. The shared weights, the generic user and all other rows
stay as they are, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from penname.errors import BadInputError, UnknownUserError
from penname.methods.erase import forget
from penname.methods.prlhf.config import FEATURED
from penname.methods.prlhf.softfit import SoftFit
from penname.store import Store
from penname.train.base import load_run
from penname.train.folder import Trained, open_trained
from penname.train.model import Trainable
from penname.train.preferences.data import Pair, Prepared, Rated, plain, prepare, read_user

LATEST = 32  # preferences of a user that are fitted to: the newest ones


@dataclass(frozen=True)
class Adapted:
    """What came of it."""

    preferences: int  # that the user's part was fitted to
    before: float  # share of them in the right order before
    after: float  # and after
    seconds: float


def adapt(folder: Path, user: str, store: Store, *, model: str | None = None) -> Adapted:
    """Fit the user's own part in the run in `folder` to the user's preferences in the store.

    Who is new to the run starts from the generic user; of soft prompts, who was in its training starts where
    the row stands. The latest 32 preferences count. The store notes the run, so that erasing a user from the
    one erases from the other.

    Raises:
        UnknownUserError: the store has no such user.
        BadInputError: the user has no preference that can be used, or the run has no users.
        TrainedError: no such run, or it cannot be used.
    """
    started = time.perf_counter()
    trained = open_trained(folder, "p-dpo", "p-rm")
    if trained.settings.get("users") in ("none", "pooled"):
        raise BadInputError(f"{folder} was trained without users: it has no vector to adapt")
    with noted(store, user, trained):
        prepared = newest(store, user, trained)
        before, after = _fitted(trained, user, prepared, model)
    return Adapted(len(prepared), before, after, time.perf_counter() - started)


def newest(store: Store, user: str, trained: Trained) -> Prepared:
    """The user's latest preferences, of the kind that the run learns from.

    Raises:
        UnknownUserError: the store has no such user.
        BadInputError: the user has no preference that can be used.
    """
    wanted: Literal["pairs", "ratings"] = "ratings" if trained.settings.get("loss") == "kto" else "pairs"
    found = list(read_user(store, user, about=bool(trained.settings.get("about"))))
    prepared = prepare(found, wanted=wanted)
    # A pair of ratings is as new as the later of the two.
    said = {
        (plain(one.prompt), text.strip()): place for place, one in enumerate(found) for text in one.answers
    }

    def age(item: Pair | Rated) -> int:
        return max(said[plain(item.prompt), text.strip()] for text in item.answers)

    pairs, rated = sorted(prepared.pairs, key=age), sorted(prepared.rated, key=age)
    return replace(prepared, pairs=tuple(pairs[-LATEST:]), rated=tuple(rated[-LATEST:]))


@contextmanager
def noted(store: Store, user: str, trained: Trained) -> Iterator[None]:
    """While the user's part of a run is fitted: the store knows of the run, so that an erase looks there.

    Raises:
        UnknownUserError: the user was erased meanwhile; nothing of the user's is left in the run.
    """
    store.add_trained(trained.path, trained.method)
    yield
    try:
        store.user(user)
    except UnknownUserError:
        forget(store, user)
        raise


def _fitted(trained: Trained, user: str, prepared: Prepared, model: str | None) -> tuple[float, float]:
    """The shares of preferences in the right order before and after; the table takes the new row."""
    if trained.settings["users"] in FEATURED:
        from penname.methods.prlhf.featured import adapt_featured

        return adapt_featured(trained, user, prepared, model)
    return _adapt_soft(trained, load_run(trained, model), user, prepared)


def _adapt_soft(trained: Trained, model: Trainable, user: str, prepared: Prepared) -> tuple[float, float]:
    """The shares of preferences in the right order before and after; the table takes the new row."""
    fit = SoftFit(trained, model)
    items = fit.fitting(prepared).items
    start = fit.start(user)
    before, found = fit.fitted(start, fit.referenced(fit.examples(items)))
    fit.put(user, start, found.place, len(items))
    return before.right, found.right
