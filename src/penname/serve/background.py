"""What goes on after an answer, one thing at a time: profiles are made anew, and soft prompts are refined.

One thread does it, as each needs the model. What is asked for twice for a user before it has begun is done
once. When the server stops, what has begun is finished, and so are waiting fits; profiles that wait are left,
as the next draft makes what it needs by itself.

Between jobs it is looked, about once a minute, whether another process has erased users: what the server's
memory holds of them is dropped, and freed memory is given back to the system.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from penname.errors import BadInputError, PennameError, UnknownUserError
from penname.methods.stepback import History, profile_histories
from penname.serve.house import House

_LOG = logging.getLogger(__name__)

SWEEP = 60.0  # seconds after which what is in memory of erased users is looked for
MOST_WAITING = 10_000  # jobs; what comes when there are more is passed over, and counted


@dataclass(frozen=True)
class Job:
    """Something to be done for a user: the profile, or the user's own part of a run."""

    user: str
    run: str | None = None  # None: the profile
    work: Callable[[], None] | None = field(default=None, compare=False)  # what fits a run's part


class Background:
    """A thread that does jobs in turn, from `start` to `close`.

    Args:
        told: called with the kind of job ("profile" or "refine") and what became of it: "done", "failed" or
            "dropped".
    """

    def __init__(self, house: House, told: Callable[[str, str], None]) -> None:
        self._house = house
        self._told = told
        self._waiting: OrderedDict[Job, bool] = OrderedDict()  # whether an edited profile is made anew too
        self._running: Job | None = None
        self.sweeps: list[Callable[[], None]] = [house.sweep]
        """Called now and then, each to drop what it holds of users who are gone."""
        self._swept = time.monotonic()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="penname-background")

    def start(self) -> None:
        """Begin. Until then jobs wait."""
        self._thread.start()

    def profile(self, user: str, *, refresh: bool = False) -> bool:
        """The user's profile is brought up to date; with `refresh` it is made anew, even if it was edited.

        Returns:
            Whether it was taken: no where too much is waiting already, or the server stops.
        """
        return self._add(Job(user), refresh)

    def refine(self, user: str, run: str, work: Callable[[], None]) -> bool:
        """`work()` fits the user's own part of a run to the user's preferences. Returns as `profile` does."""
        return self._add(Job(user, run, work), False)

    def waits(self, user: str) -> bool:
        """Whether the user's profile is being made, or waits for it."""
        job = Job(user)
        with self._changed:
            return job in self._waiting or job == self._running

    @property
    def waiting(self) -> int:
        """How many jobs wait or run."""
        with self._changed:
            return len(self._waiting) + (self._running is not None)

    def forget(self, user: str) -> None:
        """Drop what waits for a user, as at an erasure."""
        with self._changed:
            for job in [job for job in self._waiting if job.user == user]:
                del self._waiting[job]

    def finish(self) -> None:
        """Wait until nothing waits or runs any more."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and self._running is None)

    def close(self) -> None:
        """Finish what must be finished, and end the thread."""
        with self._changed:
            self._stopping = True
            for job in [job for job in self._waiting if job.run is None]:
                del self._waiting[job]
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _add(self, job: Job, refresh: bool) -> bool:
        with self._changed:
            if self._stopping or (len(self._waiting) >= MOST_WAITING and job not in self._waiting):
                self._told(_kind(job), "dropped")
                return False
            self._waiting[job] = refresh or self._waiting.get(job, False)
            self._changed.notify_all()
            return True

    def _work(self) -> None:
        while True:
            with self._changed:
                left = self._swept + SWEEP - time.monotonic()
                self._changed.wait_for(lambda: self._waiting or self._stopping, max(left, 0))
                if self._stopping and not self._waiting:
                    return
                job, refresh = self._waiting.popitem(last=False) if self._waiting else (None, False)
                self._running = job
            if time.monotonic() >= self._swept + SWEEP:
                self._sweep()
            if job is None:
                continue
            try:
                self._told(_kind(job), self._do(job, refresh))
            finally:
                with self._changed:
                    self._running = None
                    self._changed.notify_all()

    def _sweep(self) -> None:
        for sweep in self.sweeps:
            try:
                sweep()
            except Exception as error:  # noqa: BLE001 (as for jobs; it is tried again)
                _LOG.warning("looking for erased users failed: %s", type(error).__name__)
        _give_back()
        self._swept = time.monotonic()

    def _do(self, job: Job, refresh: bool) -> str:
        """What became of the job. A failure is logged by its kind alone: its message may hold texts."""
        try:
            if job.work is None:
                self._profile(job.user, refresh)
            else:
                job.work()
        except (UnknownUserError, BadInputError):  # erased, or no document or preference that can be used
            return "dropped"
        except PennameError as error:
            _LOG.warning("%s of user %r failed: %s", _kind(job), job.user, type(error).__name__)
            return "failed"
        except Exception as error:  # noqa: BLE001 (the thread must live for the next job)
            _LOG.error("%s of user %r failed: %s (a bug)", _kind(job), job.user, type(error).__name__)
            return "failed"
        return "done"

    def _profile(self, user: str, refresh: bool) -> None:
        house = self._house
        profile_histories(house.store, house.model, [History(user)], texts=house.texts, refresh=refresh)


def _give_back() -> None:
    """Freed memory goes back to the system.

    glibc keeps what a thread has freed for that thread; a server's threads, whose requests are never alike,
    would come to hold some 3 MB more every minute. Other C libraries have no such call, and no such habit.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _kind(job: Job) -> str:
    return "profile" if job.run is None else "refine"
