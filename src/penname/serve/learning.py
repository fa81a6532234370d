"""Learning at once: a user's own part of a run is fitted as soon as a preference is stored.

A run on fixed features learns in the request, as nothing but a few numbers are looked for; soft prompts are
fitted in the background, as that takes the model. Either way only this user's row changes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from penname.errors import BadInputError, PennameError, TrainedError, UnknownUserError
from penname.methods.prlhf.adapt import LATEST, newest, noted
from penname.methods.prlhf.config import FEATURED
from penname.methods.prlhf.featured import FeaturedReward, Features, Floats
from penname.records import Prompt, digest, prompt_values
from penname.serve.background import Background
from penname.serve.house import House
from penname.serve.metrics import Metrics
from penname.train.base import checked_base
from penname.train.folder import Trained, open_trained

_LOG = logging.getLogger(__name__)
_ROWS = 4 * LATEST  # texts of a user whose features are kept
_USERS = 256  # whose texts are kept: about 100 MB, where each has judged many
_WARM = ("Say hello.", "Hello.")  # a prompt and an answer: whatever they are, the embedder is loaded

State = Literal["learnt", "queued", "nothing", "failed"]


@dataclass(frozen=True)
class Learnt:
    """What a run made of a preference.

    `state` is "learnt", "queued" (it happens in the background), "nothing" (the run cannot use any of the
    user's preferences yet, as a single rating makes no pair) or "failed".
    """

    run: str
    state: State
    preferences: int = 0  # that the user's part was fitted to
    seconds: float = 0.0


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

    def forget(self, user: str) -> None:
        """Drop what is kept of this user."""
        self._kept.pop(user, None)


class Learner:
    """Fits users to preferences in the runs named.

    Args:
        runs: names of runs; each learns from every preference.

    Raises:
        BadInputError: one of them is not there, is of a method that learns no preferences, or has no users.
    """

    def __init__(self, house: House, runs: Sequence[str], background: Background, metrics: Metrics) -> None:
        self._house = house
        self._background = background
        self._metrics = metrics
        self._lock = threading.Lock()  # of two fits of a user the later one must know both preferences
        self._runs = {name: self._open(name) for name in runs}  # None: it learns in the background

    def learn(self, user: str) -> list[Learnt]:
        """What came of it, run by run. A failure is told, not raised: the preference is stored already."""
        return [
            self._queue(run, user) if opened is None else self._learn(run, user, *opened)
            for run, opened in self._runs.items()
        ]

    def forget(self, user: str) -> None:
        """Drop what is kept in memory of this user, as at an erasure."""
        with self._lock:
            for opened in self._runs.values():
                if opened is not None:
                    opened[-1].forget(user)

    def _open(self, run: str) -> tuple[Trained, FeaturedReward, _Remembered] | None:
        """The run's reward, warm, where it learns in the request; None where it does in the background."""
        folder = self._house.runs().get(run)
        if folder is None:
            there = ", ".join(sorted(self._house.runs())) or "none"
            raise BadInputError(f"--adapt {run}: there is no such run; there are {there}")
        trained = open_trained(folder)
        settings = trained.settings
        users = settings.get("users")
        if trained.method not in ("p-dpo", "p-rm") or users in ("none", "pooled"):
            raise BadInputError(f"--adapt {run}: a run of {trained.method} has nothing of a user's to learn")
        if users not in FEATURED:
            return None
        base = checked_base(trained, None) if settings["features"] == "model" else None
        features = _Remembered(settings["features"], base, settings["task"])
        if features.fingerprint != trained.model_fingerprint:
            raise TrainedError(f"{folder} was trained on features of another version of {trained.model}")
        reward = FeaturedReward(trained, features)
        reward.basis([_WARM[0]], [_WARM[1]])
        return trained, reward, features

    def _queue(self, run: str, user: str) -> Learnt:
        return Learnt(run, "queued" if self._background.fit(user, run) else "failed")

    def _learn(
        self, run: str, user: str, trained: Trained, reward: FeaturedReward, features: _Remembered
    ) -> Learnt:
        started = time.perf_counter()
        try:
            with self._lock:
                features.user = user
                used = self._fit(user, trained, reward)
        except UnknownUserError:  # erased meanwhile
            self.forget(user)
            raise
        except (PennameError, OSError) as error:
            _LOG.warning("run %r could not learn of user %r: %s", run, user, type(error).__name__)
            self._metrics.job("adapt", "failed")
            return Learnt(run, "failed")
        if used:
            self._metrics.job("adapt", "done")
        return Learnt(run, "learnt" if used else "nothing", used, time.perf_counter() - started)

    def _fit(self, user: str, trained: Trained, reward: FeaturedReward) -> int:
        """How many pairs the user's row was fitted to; 0 where there are none, and nothing was done."""
        store = self._house.store
        try:
            pairs = newest(store, user, trained).pairs
        except BadInputError:  # nothing but ratings that make no pair
            return 0
        with noted(store, user, trained):
            reward.learn(user, pairs)
        return len(pairs)
