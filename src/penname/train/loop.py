"""The loop that trained methods share: batches, steps, evaluation, checkpoints, an end that is not a loss.

The order of examples hangs on the seed and the epoch alone, and a checkpoint holds all else: a training that
was killed goes on with the very losses that it would have had.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from penname.errors import BadInputError, TrainedError
from penname.train.checkpoint import BEST, load_tensors, newest_checkpoint, save_checkpoint, save_tensors
from penname.train.folder import METRICS
from penname.train.optimizer import Optimizer

Metrics = dict[str, float]

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with steps done, steps in all, and the newest figures."""


@dataclass(frozen=True)
class LoopSettings:
    """How long a training goes on, and what it does on the way."""

    epochs: float = 1.0  # times that every example is seen
    batch: int = 16  # examples of one step; read in as many portions as memory wants
    evaluate_every: int = 25  # steps
    checkpoint_every: int = 25  # steps
    patience: int = 0  # evaluations without a lower loss after which training ends; 0: it goes to the end
    seed: int = 0


class Job(Protocol):
    """What is trained."""

    @property
    def size(self) -> int:
        """Examples to train on."""
        ...

    def backward(self, batch: Sequence[int]) -> Iterator[Metrics]:
        """Add the gradient of the batch's mean loss, portion by portion.

        Yields after each portion what it adds to the batch's means.
        """
        ...

    def evaluate(self) -> Metrics:
        """How it stands on examples held out, "loss" among it; empty where none are held out."""
        ...


@dataclass
class _Position:
    """Where a training stands."""

    step: int = 0
    lines: int = 0  # of metrics.jsonl
    best: float = math.inf
    best_step: int = 0
    worse: int = 0  # evaluations since the best


def steps_of(size: int, settings: LoopSettings) -> int:
    """Steps of a training on `size` examples."""
    return max(1, round(settings.epochs * math.ceil(size / settings.batch)))


def train(
    job: Job,
    optimizer: Optimizer,
    settings: LoopSettings,
    folder: Path,
    *,
    progress: Progress = lambda *_: None,
) -> Metrics:
    """Train to the end, or on from where the folder's newest checkpoint stands.

    The values that did best on held-out examples are what the optimizer holds at the end; the last ones where
    nothing is held out. Ctrl-C ends the step, keeps a checkpoint, and only then interrupts.

    Args:
        folder: takes the checkpoints and metrics.jsonl.
        progress: called with steps done, steps in all, and the newest figures.

    Returns:
        The held-out figures of what is kept, with "step".

    Raises:
        TrainedError: the newest checkpoint is cut short, or metrics.jsonl is gone.
        BadInputError: there is nothing to train on, or the loss is no number.
    """
    if not job.size:
        raise BadInputError("there is nothing to train on")
    steps = steps_of(job.size, settings)
    at = _resume(optimizer, folder)
    with _interruptible() as asked:
        while at.step < steps and not (settings.patience and at.worse >= settings.patience):
            figures = _step(job, optimizer, settings, at)
            at.step += 1
            _tell(folder, at, {"step": at.step, **figures})
            if at.step % settings.evaluate_every == 0 or at.step == steps:
                figures |= _evaluate(job, optimizer, folder, at)
            progress(at.step, steps, figures)
            if at.step % settings.checkpoint_every == 0 or at.step == steps or asked.is_set():
                state = {"position": vars(at), "chance": torch.get_rng_state().tolist()}
                save_checkpoint(folder, at.step, optimizer.tensors(), state)
            if asked.is_set():
                raise KeyboardInterrupt
    if (folder / BEST).is_file():
        optimizer.load_values(load_tensors(folder / BEST)[0])
    return {"step": float(at.best_step or at.step), **({"loss": at.best} if at.best_step else {})}


def _resume(optimizer: Optimizer, folder: Path) -> _Position:
    found = newest_checkpoint(folder)
    if found is None:
        (folder / METRICS).unlink(missing_ok=True)
        (folder / BEST).unlink(missing_ok=True)
        return _Position()
    tensors, state = found
    optimizer.load(tensors)
    torch.set_rng_state(torch.tensor(state["chance"], dtype=torch.uint8))
    at = _Position(**state["position"])
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise TrainedError(
            f"{folder / METRICS} cannot be read ({error}): remove {folder} and train again"
        ) from None
    (folder / METRICS).write_text("".join(lines[: at.lines]), encoding="utf-8")
    return at


def _step(job: Job, optimizer: Optimizer, settings: LoopSettings, at: _Position) -> Metrics:
    started = time.perf_counter()
    total: Metrics = {}
    for portion in job.backward(_batch(job.size, settings, at.step)):
        optimizer.collect()
        for name, value in portion.items():
            total[name] = total.get(name, 0.0) + value
    if not math.isfinite(total.get("loss", 0.0)):
        raise BadInputError(f"the loss of step {at.step + 1} is no number: lower the learning rate")
    norm = optimizer.step(at.step)
    return {**total, "norm": norm, "seconds": time.perf_counter() - started}


def _batch(size: int, settings: LoopSettings, step: int) -> list[int]:
    """The examples of a step: every epoch is an order of its own, and its last batch may be smaller."""
    per_epoch = math.ceil(size / settings.batch)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([settings.seed, epoch]).permutation(size)
    return [int(one) for one in order[place * settings.batch : (place + 1) * settings.batch]]


def _evaluate(job: Job, optimizer: Optimizer, folder: Path, at: _Position) -> Metrics:
    with torch.no_grad():
        found = job.evaluate()
    if not found:
        return {}
    _tell(folder, at, {"step": at.step, **{f"held_out_{name}": value for name, value in found.items()}})
    if found["loss"] < at.best:
        at.best, at.best_step, at.worse = found["loss"], at.step, 0
        save_tensors(folder / BEST, {n: one.detach() for n, one in optimizer.values.items()}, {})
    else:
        at.worse += 1
    return {f"held_out_{name}": value for name, value in found.items()}


def _tell(folder: Path, at: _Position, figures: Mapping[str, Any]) -> None:
    with (folder / METRICS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(figures) + "\n")
    at.lines += 1


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C interrupts at once. Only in the main thread."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
