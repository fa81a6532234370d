"""What the tests of training share: preferences of opposite tastes, and trainings of the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penname.methods.prlhf.config import PDPOConfig
from penname.methods.prlhf.train import Method, train_preferences
from penname.train.folder import Trained
from penname.train.loop import LoopSettings, Progress
from penname.train.model import LoraSettings
from penname.train.optimizer import OptimizerSettings
from penname.train.preferences.data import Pair, Prepared, Rated

NOUNS = ("cat", "dog", "log", "mat", "hat", "sun", "sea", "oak", "bee", "owl", "fox", "hen")
TASTES: Mapping[str, Literal["long", "short"]] = {"ann": "long", "bob": "short"}


@contextmanager
def one_thread() -> Iterator[None]:
    """Tensors of a few numbers are no work for several threads; and sums come out the same everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answers(noun: str) -> tuple[str, str]:
    """A long answer and a short one."""
    return f"the {noun} sat on the mat and the dog lay on the log", f"the {noun}"


def preferences(
    tastes: Mapping[str, Literal["long", "short"]] = TASTES, nouns: tuple[str, ...] = NOUNS, about: str = ""
) -> Prepared:
    """Pairs of users who each always want the longer answer, or the shorter."""
    pairs = []
    for noun in nouns:
        long, short = answers(noun)
        for user, taste in tastes.items():
            chosen, rejected = (long, short) if taste == "long" else (short, long)
            pairs.append(Pair(user, f"Tell of the {noun}.", chosen, rejected, about and f"{user} {about}"))
    return Prepared(pairs=tuple(pairs))


def ratings(prepared: Prepared) -> Prepared:
    """The same, as single ratings."""
    return Prepared(
        rated=tuple(
            Rated(pair.user, pair.prompt, answer, answer == pair.chosen)
            for pair in prepared.pairs
            for answer in pair.answers
        )
    )


def settings(
    steps: float = 10, *, batch: int = 4, loop: Mapping[str, Any] = {}, **changes: Any
) -> PDPOConfig:
    """Of a training of the tiny model: float32, high rates, about `steps` steps on 20 pairs."""
    config = PDPOConfig(
        dtype="float32",
        user_tokens=3,
        clusters=2,
        max_tokens=256,
        held_out=0.2,
        lora=LoraSettings(4, 8),
        optimizer=OptimizerSettings(lr=2e-3, user_lr=2e-2, warmup=2),
        loop=LoopSettings(epochs=steps * batch / 20, batch=batch, evaluate_every=5, checkpoint_every=5),
    )
    return replace(config, loop=replace(config.loop, **loop), **changes)


def train(
    method: Method,
    out: Path,
    model: Path | str,
    prepared: Prepared | None = None,
    config: PDPOConfig | None = None,
    *,
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
    **more: Any,
) -> Trained:
    return train_preferences(
        method,
        prepared or preferences(),
        out,
        model=str(model),
        config=config or settings(),
        progress=progress,
        note=note,
        **more,
    )


def metrics(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl, without what the clock says."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def curve(folder: Path) -> list[float]:
    """The training loss of each step."""
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


class FakeEmbedder:
    """An embedder that hashes letters: cheap, and the same for the same text."""

    def __init__(self, fingerprint: str = "fake") -> None:
        self.fingerprint = fingerprint
        self.read: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.read += texts
        rows = np.zeros((len(texts), 8), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for letter in text:
                row[ord(letter) % 8] += 1
        found: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return found
