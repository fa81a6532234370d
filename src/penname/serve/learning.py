"""Learning at once: a user's own part of a run is fitted as soon as a preference is stored.

A run on fixed features looks for nothing but a few numbers; of a run of soft prompts the model is kept warm
(`softlearning`), and the fit is made more exact in the background. Either way only this user's row changes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np

from penname.errors import BadInputError, PennameError, TrainedError, UnknownUserError
from penname.methods.prlhf.adapt import LATEST, newest, noted
from penname.methods.prlhf.config import FEATURED
from penname.methods.prlhf.featured import FeaturedReward, Features, Floats
from penname.methods.prlhf.table import UserTable
from penname.records import Preference, Prompt, digest, prompt_values
from penname.serve.background import Background
from penname.serve.compute import compute
from penname.serve.house import House
from penname.serve.metrics import Metrics
from penname.serve.softlearning import SoftLearning
from penname.store import Store
from penname.train.base import checked_base
from penname.train.folder import Trained, open_trained

_LOG = logging.getLogger(__name__)
_ROWS = 4 * LATEST  # texts of a user whose features are kept
_USERS = 256  # whose texts are kept: about 100 MB, where each has judged many
_WARM = ("Say hello.", "Hello.")  # a prompt and an answer: whatever they are, the embedder is loaded

State = Literal["learnt", "nothing", "failed"]
Refinement = Literal["queued", "refined"]


@dataclass(frozen=True)
class Learnt:
    """What a run made of a preference.

    `state` is "learnt" (the next draft is written with it), "nothing" (the run cannot use any of the user's
    preferences yet, as a single rating makes no pair) or "failed". `refinement` is "refined" where there is
    no more exact fit, "queued" where one follows in the background, and None where nothing was learnt or too
    much is waiting.
    """

    run: str
    state: State
    preferences: int = 0  # that the user's part was fitted to
    seconds: float = 0.0
    refinement: Refinement | None = None


class _Remembered(Features):
    """Features of the texts that a user judged last, kept by user: each text is read once."""

    user = ""  # whose texts are asked for

    @cached_property
    def _kept(self) -> OrderedDict[str, OrderedDict[str, Floats]]:
        return OrderedDict()

    def rows(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Floats:
        """As `Features.rows`."""
        mine = self._kept.setdefault(self.user, OrderedDict())
        self._kept.move_to_end(self.user)
        asked = list(zip(prompts, texts, strict=True))
        keys = [digest([prompt_values(prompt), text]) for prompt, text in asked]
        new = {key: one for key, one in zip(keys, asked, strict=True) if key not in mine}
        if new:
            made = super().rows([prompt for prompt, _ in new.values()], [text for _, text in new.values()])
            mine.update(zip(new, made, strict=True))
        found = np.stack([mine[key] for key in keys])
        for key in keys:
            mine.move_to_end(key)
        while len(mine) > _ROWS:
            mine.popitem(last=False)
        while len(self._kept) > _USERS:
            self._kept.popitem(last=False)
        return found

    @property
    def users(self) -> list[str]:
        """Of whom something is kept."""
        return list(self._kept)

    def forget(self, user: str) -> None:
        """Drop what is kept of this user."""
        self._kept.pop(user, None)


class FeatureLearning:
    """Fits users of one run on fixed features: there is nothing to refine. Threads may use it at once.

    Raises:
        TrainedError: the run cannot be used.
    """

    def __init__(self, store: Store, trained: Trained) -> None:
        self._store = store
        self._trained = trained
        self._lock = threading.Lock()  # of two fits of a user the later one must know both preferences
        settings = trained.settings
        base = checked_base(trained, None) if settings["features"] == "model" else None
        self._features = _Remembered(settings["features"], base, settings["task"])
        if self._features.fingerprint != trained.model_fingerprint:
            raise TrainedError(
                f"{trained.path} was trained on features of another version of {trained.model}"
            )
        self._reward = FeaturedReward(trained, self._features)
        compute(lambda: self._reward.basis([_WARM[0]], [_WARM[1]]))

    def learn(self, user: str, latest: Preference) -> int:
        """As `SoftLearning.learn`."""
        del latest
        with self._lock:
            try:
                pairs = newest(self._store, user, self._trained).pairs
            except BadInputError:  # nothing but ratings that make no pair
                return 0
            self._features.user = user
            with noted(self._store, user, self._trained):
                compute(lambda: self._reward.learn(user, pairs))
            return len(pairs)

    @property
    def users(self) -> list[str]:
        """As `SoftLearning.users`."""
        return self._features.users

    def forget(self, user: str) -> None:
        """As `SoftLearning.forget`."""
        with self._lock, UserTable.open(self._trained.path) as table:
            self._features.forget(user)
            table.erase(user)


class Learner:
    """Fits users to preferences in the runs named.

    Args:
        runs: names of runs; each learns from every preference.

    Raises:
        BadInputError: one of them is not there, is of a method that learns no preferences, or has no users.
        TrainedError: one of them cannot be used.
    """

    def __init__(self, house: House, runs: Sequence[str], background: Background, metrics: Metrics) -> None:
        self._house = house
        self._background = background
        self._metrics = metrics
        self._runs = {name: self._open(name) for name in runs}
        background.sweeps.append(self._sweep)

    def learn(self, user: str, latest: Preference) -> list[Learnt]:
        """What came of it, run by run. A failure is told, not raised: the preference is stored already.

        Args:
            latest: the preference that has just been stored.

        Raises:
            UnknownUserError: the user was erased meanwhile.
        """
        return [self._learn(name, run, user, latest) for name, run in self._runs.items()]

    def forget(self, user: str) -> None:
        """Drop what is in memory of an erased user, and rows that were put while the user was erased."""
        for run in self._runs.values():
            run.forget(user)

    def _sweep(self) -> None:
        """Forget users whom another process has erased."""
        kept = {user for run in self._runs.values() for user in run.users}
        for user in kept - self._house.store.numbers(kept).keys():
            self.forget(user)

    def _open(self, name: str) -> FeatureLearning | SoftLearning:
        """The run, loaded and warm."""
        folder = self._house.runs().get(name)
        if folder is None:
            there = ", ".join(sorted(self._house.runs())) or "none"
            raise BadInputError(f"--adapt {name}: there is no such run; there are {there}")
        trained = open_trained(folder)
        users = trained.settings.get("users")
        if trained.method not in ("p-dpo", "p-rm") or users in ("none", "pooled"):
            raise BadInputError(f"--adapt {name}: a run of {trained.method} has nothing of a user's to learn")
        if users in FEATURED:
            return FeatureLearning(self._house.store, trained)
        return SoftLearning(self._house.store, trained)

    def _learn(self, name: str, run: FeatureLearning | SoftLearning, user: str, latest: Preference) -> Learnt:
        started = time.perf_counter()
        try:
            used = run.learn(user, latest)
        except UnknownUserError:  # erased meanwhile
            self.forget(user)
            raise
        except (PennameError, OSError) as error:
            _LOG.warning("run %r could not learn of user %r: %s", name, user, type(error).__name__)
            self._metrics.job("adapt", "failed")
            return Learnt(name, "failed")
        seconds = time.perf_counter() - started
        if not used:
            return Learnt(name, "nothing", seconds=seconds)
        self._metrics.job("adapt", "done")
        return Learnt(name, "learnt", used, seconds, self._refinement(name, run, user))

    def _refinement(self, name: str, run: FeatureLearning | SoftLearning, user: str) -> Refinement | None:
        if isinstance(run, FeatureLearning):
            return "refined"
        return "queued" if self._background.refine(user, name, partial(run.refine, user)) else None
