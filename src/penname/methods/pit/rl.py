"""PIT's third stage: the policy learns from the gap reward by RLOO (arXiv 2310.00898, section 3).

    trained = train_rl(first, second, Path("out"), sft=Path("sft"), gap=Path("gap"))

    OUT.training/first, second      the curriculum's stages: checkpoints and metrics.jsonl
    OUT/model, gap                  the improved policy, a whole model; the gap reward that it learnt from

A step samples k texts of each case, asks the gap reward by how much each is better than the draft, and makes
the better ones likelier. A killed training goes on with the same samples: their seeds come from torch's
source of chance, which a checkpoint holds.

The policy learns from the text that it wrote, encoded again, and the token that ends texts. Where it wrote
the text in other tokens than those, or ended it by a label of the prompt's form, that is not quite what was
sampled; the share of such texts is told ("unlike").
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from penname.errors import BadInputError
from penname.files import put
from penname.lm import ModelConfig
from penname.lm.local import TransformersLM
from penname.methods.pit.config import RLConfig
from penname.methods.pit.form import Case, Form
from penname.methods.pit.gap import open_gap
from penname.methods.pit.rl_job import GapReward, RLJob
from penname.records import digest
from penname.tasks import PromptTexts
from penname.train.folder import (
    METRICS,
    Trained,
    check_free,
    finish,
    link_weights,
    open_trained,
    rewards_behind,
    workshop,
)
from penname.train.index import create_index
from penname.train.loop import Metrics, steps_of, train
from penname.train.model import Trainable, load_trainable, save_merged
from penname.train.optimizer import Optimizer

METHOD = "pit-rl"

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with the stage's name, steps done, steps in all, and the newest figures."""


def train_rl(
    first: Sequence[Case],
    second: Sequence[Case],
    out: Path,
    *,
    sft: Path,
    gap: Path,
    config: RLConfig = RLConfig(),
    users: Sequence[str] = (),
    about: Mapping[str, Any] = {},
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train the policy, or go on where that was stopped.

    The second stage starts from the first one's weights, with a new optimizer. Left out, counted and told:
    cases with an empty draft, cases said twice in a stage, and those that do not fit into the context.

    Args:
        first: cases with drafts from the data; empty: that stage of the curriculum is left out.
        second: cases with drafts sampled from the policy that will be improved; likewise.
        out: the result's folder; must not be there yet.
        sft: a result of pit-sft: the policy at the beginning, and π_SFT in both stages.
        gap: a result of pit-gap; hard links to its weights are part of the result.
        users: whose data the cases, or what they rest on, came from.
        about: what else the result's settings are to say (JSON values).

    Raises:
        BadInputError: no case is left; the reward tells no samples of a stage apart; `out` is there.
        TrainedError: `sft` or `gap` is no such result, or a checkpoint is cut short.
        ModelError: the model cannot be trained here.
    """
    check_free(out.expanduser())
    sft, gap = sft.expanduser(), gap.expanduser()
    shape = open_trained(sft, "pit-sft").settings.get("shape")
    base = ModelConfig(str(sft / "model"), shape=shape, dtype=config.dtype)
    model = load_trainable(base, lora=config.lora, seed=config.loop.seed)
    reward = open_gap(gap)
    texts = PromptTexts.load()
    form = Form(model.shape, texts)
    left_out: dict[str, int] = {}
    given = {"first": first, "second": second}
    kept = {name: _kept(cases, model, reward, form, config, left_out) for name, cases in given.items()}
    for why, number in left_out.items():
        note(f"{number:,} {why}")
    stages = {name: cases for name, cases in kept.items() if cases}
    if not stages:
        raise BadInputError("there is no draft to learn to improve")
    asked = {
        "method": METHOD,
        "model_fingerprint": model.fingerprint,
        "settings": {
            **asdict(config),
            "shape": model.shape,
            "prompts": texts.fingerprint,
            "gap": reward.fingerprint,
            **about,
        },
        "data": {
            "fingerprint": digest([[vars(case) for case in cases] for cases in kept.values()]),
            **{name: len(cases) for name, cases in kept.items()},
            "users": len(set(users)),
            "left_out": left_out,
        },
    }
    with workshop(out, asked) as folder:
        sampler = TransformersLM(base)
        optimizer: Optimizer | None = None
        lines: dict[str, list[Metrics]] = {}
        for number, (name, cases) in enumerate(stages.items()):
            optimizer = _next_optimizer(model, config, len(cases), optimizer)
            job = RLJob(model, optimizer.masters, sampler, reward, form, cases, config)
            at = folder / name
            at.mkdir(exist_ok=True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(2 * config.loop.seed + number)
                train(job, optimizer, config.loop, at, progress=_teller(name, progress, note))
            lines[name] = _lines(at)
            _check(name, lines[name])
        assert optimizer is not None  # there is a stage
        put(folder / METRICS, "".join(_told(name, line) for name, some in lines.items() for line in some))
        card = {
            **asked,
            "model": model.spec,
            "held_out": {},
            "stages": {name: _summary(some) for name, some in lines.items()},
            "rewards": sorted({reward.fingerprint} | rewards_behind(sft)),
            "version": version("penname"),
        }
        last = optimizer

        def fill(result: Path) -> None:
            save_merged(model, last, result)
            shutil.copytree(gap, result / "gap", copy_function=link_weights)
            create_index(result, sorted(set(users)))
            (result / "README.md").write_text(model_card(card), encoding="utf-8")

        return finish(folder, out, card, fill)


def _kept(
    cases: Sequence[Case],
    model: Trainable,
    reward: GapReward,
    form: Form,
    config: RLConfig,
    left_out: dict[str, int],
) -> list[Case]:
    """The cases that can be learnt from; the others are counted by reason in `left_out`."""
    found: dict[object, Case] = {}
    for case in cases:
        prompt = form.prompt(case)
        if not case.draft.strip():
            why = "cases left out: an empty draft"
        elif prompt in found:
            why = "cases left out: said twice"
        elif len(model.prompt(prompt)) + config.max_tokens > model.context:
            why = f"cases left out: no room for {config.max_tokens:,} tokens to write in the context"
        elif not reward.fits(case, case.draft):
            why = "cases left out: too long for the gap reward"
        else:
            found[prompt] = case
            continue
        left_out[why] = left_out.get(why, 0) + 1
    return list(found.values())


def _next_optimizer(model: Trainable, config: RLConfig, cases: int, before: Optimizer | None) -> Optimizer:
    """A stage's optimizer, with the float32 values that the stage before ended with."""
    found = Optimizer(model.parameters, {}, config.optimizer, steps_of(cases, config.loop))
    if before is not None:
        found.load_values({name: one.detach() for name, one in before.values.items()})
    return found


def _teller(
    name: str, progress: Progress, note: Callable[[str], None]
) -> Callable[[int, int, Mapping[str, float]], None]:
    """A stage's progress; what may come to nothing is said at its first step, not at its end alone."""

    def tell(done: int, total: int, figures: Mapping[str, float]) -> None:
        if done == 1 and not figures["spread"]:
            note(f"{name}: the gap reward tells no samples of the first step's cases apart")
        progress(name, done, total, figures)

    return tell


def _lines(folder: Path) -> list[Metrics]:
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def _told(stage: str, line: Metrics) -> str:
    return json.dumps({"stage": stage, **line}) + "\n"


def _check(stage: str, lines: Sequence[Metrics]) -> None:
    """Refuse a stage in which nothing could be learnt.

    Raises:
        BadInputError: it says why, with the numbers.
    """
    if any(line["spread"] for line in lines):
        return
    figures = _summary(lines)["end"]
    raise BadInputError(
        f"the gap reward told no samples of a case apart in {len(lines):,} steps of the {stage} stage: there "
        f"is nothing to learn from it. {figures['cut']:.0%} of the samples were cut at their limit, "
        f"{figures['blank']:.0%} were blank: raise max_tokens, or train the gap reward on more preferences"
    )


_SHOWN = ("reward", "better", "kl", "cut", "blank", "unlike", "words")


def _summary(lines: Sequence[Metrics]) -> dict[str, dict[str, float]]:
    """Means over the first and the last fifth of a stage's steps."""
    some = max(1, len(lines) // 5)
    ends = {"beginning": lines[:some], "end": lines[-some:]}
    return {
        place: {name: sum(line[name] for line in part) / some for name in _SHOWN}
        for place, part in ends.items()
    }


def model_card(card: Mapping[str, Any]) -> str:
    """What was trained, on what, how far it came, and how it is used; no user and no text is named."""
    data = card["data"]
    rows = "".join(
        f"| {name} | {place} | " + " | ".join(f"{figures[shown]:.3g}" for shown in _SHOWN) + " |\n"
        for name, ends in card["stages"].items()
        for place, figures in ends.items()
    )
    return f"""# {card["method"]} over {card["model"]}

Learnt to improve a draft by a gap reward (PIT, arXiv 2310.00898; RLOO, arXiv 2402.14740). Made
by penname {card["version"]}. `model/` is a whole model; `gap/` is the reward that it learnt from.

- drafts: {data["first"]:,} from the data, {data["second"]:,} sampled; of {data["users"]:,} users
- settings: {card["settings"]}
- weights that it began with: {card["model_fingerprint"]}
- data: {data["fingerprint"]}

| stage | steps of | {" | ".join(_SHOWN)} |
| --- | --- |{" --- |" * len(_SHOWN)}
{rows}
`reward` is the mean gap over the draft, `better` the share of texts with a gap above 0, `kl` the mean of
log π − log π_SFT of a text; a step's figures are of the samples that it learnt from.
"""
