"""One thread does all that torch computes in a server.

Each thread that torch computes in gets helpers of its own from OpenMP, and keeps them. With those of a second
thread there are more than processors, and from then on all of them sleep between any two operations: on two
processors the same preference took twice as long to learn (`benchmarks/serve_learn.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_here = threading.local()


def _enter() -> None:
    _here.computes = True


_THREAD = ThreadPoolExecutor(1, "penname-compute", _enter)


def compute(work: Callable[[], T]) -> T:
    """What `work` gives, or raises; done when all that was asked for before is done.

    It must not wait for another thread that computes.
    """
    return work() if hasattr(_here, "computes") else _THREAD.submit(work).result()
