"""What PIT's stages cost: the gap reward's five terms beside a plain reward model, and RL beside TRL's.

**Gap.** Milliseconds of a training step (forward, backward, the optimizer's step) for each pair, on this
processor, with the same model, type, threads, LoRA and pairs (people's drafts and what they made of them):

    five     the gap reward: four readings of a text after a draft, two prompts (`methods/pit/gap_train.py`)
    plain    a plain reward model in the same reader: both texts after the request, read once
    TRL      RewardTrainer as it comes, each text with its request, padded

**RL.** Samples a second of a whole step (sampling, scoring, updating) and the share of each, with the same
drafts, k, limit of tokens and gap reward (untrained: what it says does not change what it costs):

    ours     `methods/pit/rl.RLJob`: our sampler, prompts read once for all their samples
    TRL      RLOOTrainer as it comes, without logging and saving; its reward function asks the same gap reward

No token ends a text here, so all write as many. Arms run in turn; a ratio is taken within each turn.

    python benchmarks/pit.py [--model smollm2-135m] [--data ../shared/data] [--pairs 8] [--cases 4]
                             [--samples 4] [--tokens 64] [--turns 5] [--dtype bfloat16] [--threads 2]

TRL is no dependency: pip install trl==1.16.0.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from peers import (
    FOREVER,
    LORA,
    TRL_LINE,
    arguments,
    has_trl,
    lora_config,
    network,
    step,
    still,
    tell,
    trainable,
    trl_trainer,
    weights_folder,
)
from penname.lm import ModelConfig
from penname.lm.base import Sampling
from penname.lm.local import TransformersLM
from penname.methods.pit.config import RLConfig
from penname.methods.pit.form import Case, Form
from penname.methods.pit.gap import Gap, GapConfig, open_gap, train_gap
from penname.methods.pit.gap_train import Example, GapJob
from penname.methods.pit.rl_job import RLJob
from penname.tasks import PromptTexts
from penname.train.loop import LoopSettings, Metrics
from penname.train.model import Trainable
from penname.train.optimizer import Optimizer, OptimizerSettings
from penname.train.packed import Tree
from penname.train.preferences.data import Pair

PORTION = GapConfig().portion
RATES = OptimizerSettings(lr=GapConfig().optimizer.lr, warmup=0)
LENGTHS = 300, 900  # characters of a draft and of a revision: some 60 to 200 tokens
BEFORE = "2024-01-01"  # the revisions to train on


def pairs(folder: Path, number: int) -> list[Pair]:
    """The first revisions that are neither short nor long, in an order that their names give."""
    with gzip.open(folder / "revisions.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["drafted"] < BEFORE]
    found = [
        Pair(None, f"Title: {row['title']}\nSection: {row['section']}", row["revision"], row["draft"])
        for row in sorted(rows, key=lambda row: row["id"][::-1])
        if all(LENGTHS[0] <= len(row[side]) <= LENGTHS[1] for side in ("draft", "revision"))
    ]
    return found[:number]


class PlainJob:
    """A reward model that knows no draft: −log σ(r(w) − r(l)), both texts after the request."""

    def __init__(self, model: Trainable, head: torch.Tensor, trees: Sequence[Tree]) -> None:
        self._model, self._head, self._trees = model, head, trees

    @property
    def size(self) -> int:
        """Pairs."""
        return len(self._trees)

    def backward(self, batch: Sequence[int]) -> Iterator[Metrics]:
        """As `train.loop.Job.backward`."""
        values = self._model.reader.last_hidden([self._trees[place] for place in batch]).float() @ self._head
        better, worse = values.view(-1, 2).T
        loss = -torch.nn.functional.logsigmoid(better - worse).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        yield {"loss": float(loss.detach())}

    def evaluate(self) -> Metrics:
        """Nothing is held out."""
        return {}


class Steps:
    """A job with its optimizer, a step of all that it has at a time."""

    def __init__(self, job: Any, model: Trainable, own: dict[str, torch.nn.Parameter]) -> None:
        self._job = job
        self._optimizer = Optimizer(model.parameters, own, RATES, FOREVER)
        self._number = 0

    def seconds(self) -> float:
        """Of one step."""
        started = time.perf_counter()
        step(self._job, self._optimizer, range(self._job.size), self._number)
        self._number += 1
        return time.perf_counter() - started


def gap(options: argparse.Namespace, some: Sequence[Pair]) -> None:
    """Print what a pair costs."""
    from trl import RewardConfig, RewardTrainer

    def made(kind: str) -> Steps:
        model = trainable(options)
        form = Form(model.shape, PromptTexts.load())
        head = torch.nn.Parameter(torch.full((model.reader.width,), 1e-3))
        texts = [[model.answer(form.answer(text)) for text in pair.answers] for pair in some]
        if kind == "plain":
            trees = [
                Tree(model.prompt(str(pair.prompt)), tuple(mine))
                for pair, mine in zip(some, texts, strict=True)
            ]
            return Steps(PlainJob(model, head, trees), model, {"head": head})
        drafts = [
            [model.prompt(form.prompt(Case.of(pair, text))) for text in (pair.rejected, pair.chosen)]
            for pair in some
        ]
        examples = [Example(*prompts, *mine) for prompts, mine in zip(drafts, texts, strict=True)]
        return Steps(GapJob(model.reader, head, examples, (), portion=PORTION), model, {"head": head})

    with tempfile.TemporaryDirectory() as folder:
        options.batch = len(some)
        rows = {
            name: [f"{pair.prompt}\n {getattr(pair, name)}" for pair in some]
            for name in ("chosen", "rejected")
        }
        with mock.patch("peers.network", sequence_classifier), mock.patch("peers.lora_config", of_rewards):
            peer = trl_trainer(RewardTrainer, RewardConfig, rows, options, Path(folder))
        five, plain = made("five"), made("plain")
        for one in (five, plain):
            one.seconds()
        peer.epoch()
        print(f"\ngap: {len(some)} pairs\n{'':12}{'five':>10}{'plain':>10}{'TRL':>10}   milliseconds a pair")
        turns = []
        for turn in range(1, options.turns + 1):
            found = five.seconds(), plain.seconds(), sum(peer.epoch()[0])
            turns.append([1000 * seconds / len(some) for seconds in found])
            tell(f"turn {turn}", turns[-1])
    for place, name in ((1, "plain"), (2, "TRL")):
        ratios = [mine[0] / mine[place] for mine in turns]
        print(f"five / {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def sequence_classifier(options: argparse.Namespace) -> Any:
    """The model with a scalar head, as RewardTrainer takes it."""
    from transformers import AutoModelForSequenceClassification

    found = AutoModelForSequenceClassification.from_pretrained(
        weights_folder(options), dtype=getattr(torch, options.dtype), num_labels=1
    )
    found.config.pad_token_id = found.config.eos_token_id
    return found


def of_rewards() -> Any:
    """penname's LoRA over it."""
    from peft import LoraConfig

    return LoraConfig(
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        target_modules="all-linear",
        task_type="SEQ_CLS",
        modules_to_save=["score"],
    )


@contextmanager
def endless() -> Iterator[None]:
    """No token ends a text of the sampler: all write to their limit."""
    with mock.patch("penname.lm.local.end_tokens", return_value=frozenset()):
        yield


def rl(options: argparse.Namespace, some: Sequence[Pair]) -> None:
    """Print what a step costs, and where."""
    cases = [Case.of(pair, pair.rejected) for pair in some[: options.cases]]
    with tempfile.TemporaryDirectory() as folder:
        loop = LoopSettings(epochs=1, batch=len(some))
        config = GapConfig(dtype=options.dtype, held_out=0, loop=loop)
        train_gap(some, Path(folder) / "gap", model=options.model, config=config)
        reward = open_gap(Path(folder) / "gap")
        ours, parts = our_rl(options, cases, reward)
        peer = trl_rl(options, cases, reward, Path(folder))
        ours()
        peer()
        n = len(cases) * options.samples
        print(
            f"\nRL: {len(cases)} drafts, {options.samples} samples of {options.tokens} tokens each\n"
            f"{'':12}{'ours':>10}{'TRL':>10}{'ratio':>10}   samples a second"
        )
        ratios = []
        parts.clear()
        for turn in range(1, options.turns + 1):
            speeds = n / ours(), n / peer()
            ratios.append(speeds[0] / speeds[1])
            tell(f"turn {turn}", speeds, f"{ratios[-1]:10.2f}")
    print(f"ours / TRL: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    whole = sum(sum(one.values()) for one in parts)
    for name in parts[0]:
        print(f"  {name:12}{sum(one[name] for one in parts) / whole:6.1%} of a step of ours")


def our_rl(options: argparse.Namespace, cases: Sequence[Case], reward: Gap) -> tuple[Any, list[Metrics]]:
    """A call that takes one step and gives its seconds; and the seconds of each step's parts."""
    model = trainable(options)
    config = RLConfig(samples=options.samples, max_tokens=options.tokens, dtype=options.dtype)
    sampler = TransformersLM(
        ModelConfig(str(weights_folder(options)), shape=model.shape, dtype=options.dtype)
    )
    form = Form(model.shape, PromptTexts.load())
    optimizer = Optimizer(model.parameters, {}, replace(RATES, lr=config.optimizer.lr), FOREVER)
    job = RLJob(model, optimizer.masters, Whole(sampler), reward, form, cases, config)
    parts: list[Metrics] = []

    def one() -> float:
        started = time.perf_counter()
        spent: Metrics = {}
        for portion in job.backward(range(len(cases))):
            optimizer.collect()
            for name in ("sampling", "scoring", "updating"):
                spent[name] = spent.get(name, 0.0) + portion.get(f"seconds_{name}", 0.0)
        optimizer.step(0)
        parts.append(spent)
        return time.perf_counter() - started

    return one, parts


class Whole:
    """The sampler, with every text taken as one that ended: what is cut would not be scored."""

    def __init__(self, model: TransformersLM) -> None:
        self._model = model
        self.take = model.take

    def generate(self, prompts: Sequence[Any], n: int, sampling: Sampling) -> list[list[Any]]:
        """As `TransformersLM.generate`."""
        with endless():
            found = self._model.generate(prompts, n, replace(sampling, stop=()))
        return [[replace(one, finish="stop") for one in some] for some in found]


def trl_rl(options: argparse.Namespace, cases: Sequence[Case], reward: Gap, folder: Path) -> Any:
    """A call that takes one step of RLOOTrainer and gives its seconds."""
    import datasets
    from transformers import AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import RLOOConfig, RLOOTrainer

    form = Form("completion", PromptTexts.load())
    known = {str(form.prompt(case)): case for case in cases}

    def gaps(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return reward.gaps([known[prompt] for prompt in prompts], completions)

    model = network(options)
    model.generation_config.eos_token_id = None  # no token ends a text
    tokenizer = AutoTokenizer.from_pretrained(weights_folder(options))
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=gaps,
        args=RLOOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=options.dtype == "bfloat16",
            per_device_train_batch_size=len(cases) * options.samples,
            num_generations=options.samples,
            max_completion_length=options.tokens,
            beta=RLConfig().beta,
            temperature=1.0,
            max_steps=1,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(known)}),
        processing_class=tokenizer,
        peft_config=lora_config(),
    )
    trainer.remove_callback(PrinterCallback)

    def one() -> float:
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started

    return one


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--parts", nargs="+", choices=("gap", "rl"), default=["gap", "rl"])
    options = parser.parse_args()
    if not has_trl():
        parser.error(f"TRL is not installed: {TRL_LINE}")
    still(options.threads)
    some = pairs(options.data, options.pairs)
    print(f"{options.model}, {options.dtype}, {options.threads} threads; LoRA rank {LORA.rank}")
    for name in options.parts:
        {"gap": gap, "rl": rl}[name](options, some)


if __name__ == "__main__":
    main()
