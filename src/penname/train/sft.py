"""Supervised fine-tuning on written texts: the base on which everything else is trained.

trained = train_sft([Written("Title: …\nAbstract:", " …")], Path("out"))
Its `model/` is a whole model, with what was learnt laid into the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penname.errors import BadInputError
from penname.records import Prompt, digest
from penname.train.folder import Trained, check_free, finish, workshop
from penname.train.loop import LoopSettings, Progress, steps_of, train
from penname.train.model import LoraSettings, Trainable, Weights, load_trainable, save_merged
from penname.train.optimizer import Optimizer, OptimizerSettings
from penname.train.supervised import SupervisedJob, Target

METHOD = "sft"


@dataclass(frozen=True)
class SFTConfig:
    """Settings of supervised fine-tuning."""

    weights: Weights = "lora"  # what of the model is trained
    lora: LoraSettings = LoraSettings()
    dtype: Literal["float32", "bfloat16"] | None = None  # None: bfloat16 where the processor is fast at it
    max_tokens: int = 2048  # of a prompt with its answer; longer ones are left out, and counted
    portion: int = 4096  # tokens read at once: bounds memory
    held_out: float = 0.1  # share of the prompts held out for evaluation while training
    optimizer: OptimizerSettings = OptimizerSettings(lr=2e-4)
    loop: LoopSettings = field(default_factory=LoopSettings)  # a batch counts prompts, with all their answers


@dataclass(frozen=True)
class Written:
    """A text to learn to write, after its prompt; both as the model reads them."""

    prompt: Prompt
    answer: str
    weight: float = 1.0


def train_sft(
    written: Sequence[Written],
    out: Path,
    *,
    model: str | None = None,
    config: SFTConfig = SFTConfig(),
    method: str = METHOD,
    about: Mapping[str, Any] = {},
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Fine-tune a model, or go on where that was stopped.

    An answer ends with the token that ends texts: where to stop is learnt too. Empty answers, what is said
    twice, and what does not fit into `max_tokens` or the model's context are left out, counted and told.

    Args:
        out: the result's folder; must not be there yet.
        model: the base, as `penname.lm.load_model` takes it.
        method, about: what the result's card says it is, and what else its settings are (JSON values).
        progress: called with steps done, steps in all, and the newest figures.
        note: told what a person should know.

    Raises:
        BadInputError: nothing is left to train on, or `out` is there.
        TrainedError: a checkpoint is cut short.
        ModelError: the model cannot be loaded, or not trained here.
    """
    check_free(out.expanduser())
    trainable = load_trainable(
        model, weights=config.weights, lora=config.lora, dtype=config.dtype, seed=config.loop.seed
    )
    targets, left_out = _targets(written, trainable, config.max_tokens)
    for why, number in left_out.items():
        note(f"{number:,} {why}")
    kept, held = _split(targets, config.held_out, config.loop.seed)
    if not kept:
        raise BadInputError("there is no text to learn from")
    asked = {
        "method": method,
        "model_fingerprint": trainable.fingerprint,
        "settings": {**asdict(config), **about},
        "data": {
            "fingerprint": digest([(one.prompt, one.answer, one.weight) for one in targets]),
            "texts": len(kept),
            "held_out": len(held),
            "left_out": left_out,
        },
    }
    with workshop(out, asked) as folder:
        job = SupervisedJob(trainable.reader, kept, held, portion=config.portion)
        steps = steps_of(job.size, config.loop)
        optimizer = Optimizer(trainable.parameters, {}, config.optimizer, steps)
        found = train(job, optimizer, config.loop, folder, progress=progress)
        card = {
            **asked,
            "model": trainable.spec,
            "held_out": found,
            "rewards": [],
            "version": version("penname"),
        }
        return finish(folder, out, card, lambda result: save_merged(trainable, optimizer, result))


def _targets(written: Sequence[Written], model: Trainable, most: int) -> tuple[list[Target], dict[str, int]]:
    """What can be learnt, in token ids, and how many were left out by reason."""
    most = min(most, model.context)
    left_out: dict[str, int] = {}
    found: dict[Target, None] = {}
    for one in written:
        target = Target(model.prompt(one.prompt), model.answer(one.answer), one.weight)
        if not one.answer.strip():
            why = "texts left out: empty"
        elif target in found:
            why = "texts left out: said twice"
        elif target.tokens > most:
            why = f"texts left out: longer than {most:,} tokens with their prompts"
        else:
            found[target] = None
            continue
        left_out[why] = left_out.get(why, 0) + 1
    return list(found), left_out


def _split(targets: Sequence[Target], share: float, seed: int) -> tuple[list[Target], list[Target]]:
    """Those to train on, and those held out: all answers of a prompt on one side."""
    prompts = list(dict.fromkeys(one.prompt for one in targets))
    drawn = np.random.default_rng(seed).permutation(len(prompts))[: int(share * len(prompts))]
    held = {prompts[place] for place in drawn}
    return [one for one in targets if one.prompt not in held], [one for one in targets if one.prompt in held]
