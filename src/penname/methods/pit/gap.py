"""PIT's gap reward (arXiv 2310.00898): r(x, y, y_ref), by how much the text y is better than the draft y_ref.

    train_gap(prepared.pairs, Path("out"))
    gap = open_gap("out")
    gap.gaps([Case(request, draft)], [text])

Its loss sees differences of raw values s alone, so the zero is set here: r(x, y, y_ref) = s(y | y_ref) −
s(y_ref | y_ref). A text that is its own draft has a gap of exactly 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from penname.errors import PromptTooLongError, TrainedError
from penname.lm import ModelConfig
from penname.lm.files import fingerprint
from penname.methods.pit.calibration import probability
from penname.methods.pit.form import Case, Form
from penname.methods.pit.gap_train import HEAD, METHOD, GapConfig, train_gap
from penname.tasks import PromptTexts
from penname.train.base import load_run
from penname.train.checkpoint import load_tensors
from penname.train.folder import CARD, Trained, open_trained
from penname.train.model import Trainable
from penname.train.packed import Tree
from penname.train.portions import portions

__all__ = ["Gap", "GapConfig", "open_gap", "train_gap"]

Ids = tuple[int, ...]


def open_gap(folder: Path | str, model: str | ModelConfig | None = None) -> Gap:
    """The gap reward in `folder`. The base model alone never stands in for it.

    Args:
        model: the base model, where it is no longer where the run recorded it.

    Raises:
        TrainedError: no such result, or it is cut short, or its base model is not there or has other weights.
    """
    trained = open_trained(folder, METHOD)
    temperature = _temperature(trained.path / CARD)
    return Gap(trained, load_run(trained, model), temperature)


class _Reading(NamedTuple):
    """What is asked of one case."""

    prompt: Ids
    draft: Ids
    text: Ids

    @property
    def tokens(self) -> int:
        """Of the prompt with its longer text."""
        return len(self.prompt) + max(len(self.draft), len(self.text))


class Gap:
    """A trained gap reward; made by `open_gap`.

    `fingerprint` changes with what decides its values; `temperature` is that of `probability`.
    """

    def __init__(self, trained: Trained, model: Trainable, temperature: float) -> None:
        self.path = trained.path
        self.temperature = temperature
        self.fingerprint = fingerprint(
            file for file in trained.path.rglob("*") if file.name == CARD or file.suffix == ".safetensors"
        )
        self._model = model
        self._head = _head(trained.path / HEAD, model)
        self._form = Form(model.shape, PromptTexts.load())
        self._portion = int(trained.settings["portion"])

    def gaps(self, cases: Sequence[Case], texts: Sequence[str]) -> list[float]:
        """r(x, y, y_ref) of each text over its case's draft, in nats of log odds before calibration.

        Above 0: better. Exactly 0 for the draft itself; −inf for a blank text, which is not read. What
        several cases share is read once.

        Raises:
            PromptTooLongError: a case's draft with the text does not fit into the context.
        """
        readings: list[_Reading | None] = []
        for place, (case, text) in enumerate(zip(cases, texts, strict=True)):
            reading = self._reading(case, text) if text.strip() else None
            if reading is not None and reading.tokens > self._model.context:
                raise PromptTooLongError(
                    f"case {place + 1}: the draft with its prompt and "
                    f"the text it has {reading.tokens:,} tokens; the model reads {self._model.context:,}"
                )
            readings.append(reading)
        values = self._values(one for one in readings if one is not None)
        return [
            -math.inf if one is None else values[one.prompt, one.text] - values[one.prompt, one.draft]
            for one in readings
        ]

    def fits(self, case: Case, text: str) -> bool:
        """Whether `gaps` can read that."""
        return self._reading(case, text).tokens <= self._model.context

    def probability(self, gap: float) -> float:
        """That the text is better than its draft, by what pairs held out say: σ(gap / temperature)."""
        return probability(gap, self.temperature)

    def _reading(self, case: Case, text: str) -> _Reading:
        return _Reading(
            self._model.prompt(self._form.prompt(case)),
            self._model.answer(self._form.answer(case.draft)),
            self._model.answer(self._form.answer(text)),
        )

    @torch.no_grad()
    def _values(self, readings: Iterable[_Reading]) -> dict[tuple[Ids, Ids], float]:
        """s of each text after its prompt, drafts too: a prompt is read once for as many as fit a portion."""
        branches: dict[Ids, dict[Ids, None]] = {}
        for one in readings:
            branches.setdefault(one.prompt, {}).update(dict.fromkeys((one.draft, one.text)))
        trees = (
            Tree(prompt, tuple(some))
            for prompt, mine in branches.items()
            for some in portions(mine, len, self._portion - len(prompt))
        )
        found: dict[tuple[Ids, Ids], float] = {}
        for run in portions(trees, _tokens, self._portion):
            values = (self._model.reader.last_hidden(run).float() @ self._head).tolist()
            keys = [(tree.prompt, branch) for tree in run for branch in tree.branches]
            found.update(zip(keys, values, strict=True))
        return found


def _tokens(tree: Tree) -> int:
    return len(tree.prompt) + sum(map(len, tree.branches))


def _temperature(card: Path) -> float:
    """Raises TrainedError where the card does not say one."""
    try:
        found = float(json.loads(card.read_text(encoding="utf-8"))["calibration"]["temperature"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainedError(
            f"{card} says no temperature ({error}): train again, or copy the folder anew"
        ) from None
    if not (found > 0 and math.isfinite(found)):
        raise TrainedError(f"{card}: a temperature of {found} there cannot be: train again, or copy it anew")
    return found


def _head(file: Path, model: Trainable) -> torch.Tensor:
    """(width,). Raises TrainedError where it is missing, cut short, or of another width."""
    tensors = load_tensors(file)[0]
    head = tensors.get("head")
    if head is None or head.shape != (model.reader.width,):
        raise TrainedError(f"{file} was made for another model, or is none of a gap reward: train again")
    return head.to(model.reader.device)
