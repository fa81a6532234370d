"""How fast is training on preferences, beside a plain step of P-DPO and beside TRL's DPOTrainer?

Pairs a second of a training step (forward, backward, the optimizer's step), on this processor:

    P-DPO     penname with users, against a trainer written as the published code works
              (tests/naive_preferences.py): every pair doubled for the generic user, all four texts padded to
              the longest, the reference read again at every step, the head and a float32 softmax at every
              place, AdamW
    vanilla   penname without users, against TRL's DPOTrainer as it comes, but without gradient checkpointing,
              logging, saving, shuffling and a limit of length; it sees to precision by itself (autocast over
              weights of the type asked for)

with the same model, weights' type, threads, LoRA (rank 8, alpha 16, every linear layer but the head), token
ids and batches. The two run in turn in one process, an epoch each per turn; a ratio is taken within each
turn. TRL is timed from a step's beginning to its end, which leaves out its loading of data, and without the
first step of each turn. penname's settings of the allocator hold for the process, so for its peers as well.

penname asks the reference once and keeps the answers. That is not in the steps' times, so it is told apart,
with the ratio where it counts in full in a training of one epoch. Losses are printed of the first step
(without users it is log 2 for anyone, as B of the LoRA is 0) and on average of the first turn (TRL draws
other values of A). In bfloat16 an answer's log-probability is off by half a unit or so whoever computes it,
and each in its own way: see with float32 that the losses agree. Peak memory is that of a process of its own
for each, the peers' with the allocator as it comes; "loaded" is its size before the first step, penname's
with the reference read. Last, where the time of one step of penname's with users goes, by torch's profiler.

Without --data token ids are made up (seed fixed), of four users: prompts and answers of 20 to 200 tokens,
or of other lengths by --prompts and --answers. TL;DR, the paper's data, has summaries of 24 to 48 tokens to
posts of up to 512. A file is of TRL's form: JSON Lines of prompt, chosen, rejected, user_id.

    python benchmarks/pdpo.py [--model smollm2-135m] [--data FILE] [--pairs 32] [--batch 4] [--turns 5]
                              [--prompts 20 200] [--answers 20 200] [--dtype bfloat16] [--threads 2]
                              [--parts P-DPO vanilla]

TRL is no dependency: pip install trl==1.16.0; without it that part is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peers import (
    FOREVER,
    LORA,
    TRL_LINE,
    arguments,
    batches,
    has_trl,
    lora_config,
    memory,
    network,
    own_process,
    print_peak,
    profile,
    step,
    still,
    tell,
    tell_medians,
    trainable,
    trl_trainer,
)
from penname.methods.prlhf.answers import Answers, Question
from penname.methods.prlhf.config import PDPOConfig
from penname.methods.prlhf.jobs import Example, PreferenceJob, judge_pairs, with_reference
from penname.methods.prlhf.texts import TextReader
from penname.methods.prlhf.users import GENERIC, SoftUsers
from penname.train.kept import Asked, Kept
from penname.train.model import Trainable
from penname.train.optimizer import Optimizer, OptimizerSettings
from penname.train.preferences.data import fit, prepare
from penname.train.preferences.read import read_preferences

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from naive_preferences import Naive

TOKENS = PDPOConfig().user_tokens
ALPHA, BETA, PORTION = PDPOConfig().alpha, PDPOConfig().beta, PDPOConfig().portion
RATES = OptimizerSettings(warmup=0)
USERS = 4  # of the made-up pairs
PARTS = {"P-DPO": ("ours", "peer"), "vanilla": ("ours-vanilla", "trl")}

Batch = Sequence[Example]


class Ours:
    """penname's own step, as its loop takes it."""

    def __init__(self, options: argparse.Namespace, *, users: bool) -> None:
        self.model = trainable(options)
        examples = pairs(options, self.model)
        if not users:
            examples = [replace(one, user=GENERIC) for one in examples]
        started = time.perf_counter()
        self.examples = referenced(examples, self.model)
        self.reference_seconds = time.perf_counter() - started
        soft = soft_users(self.model.reader.embeddings.weight, examples) if users else None
        own = soft.trained() if soft is not None else {}
        self._optimizer = Optimizer(self.model.parameters, own, RATES, FOREVER)
        self._job = PreferenceJob(
            Answers(self.model.reader, soft),
            judge_pairs(BETA, "sigmoid"),
            self.examples,
            (),
            alpha=ALPHA,
            portion=PORTION,
        )
        self._batch = options.batch
        self._number = 0

    def epoch(self) -> tuple[float, list[float]]:
        """Seconds per pair, and the loss of each step."""
        started = time.perf_counter()
        losses = [self.step(batch) for batch in batches(range(len(self.examples)), self._batch)]
        return (time.perf_counter() - started) / len(self.examples), losses

    def step(self, batch: Sequence[int]) -> float:
        self._number += 1
        return step(self._job, self._optimizer, batch, self._number - 1)


class Peer:
    """The plain step of P-DPO, with AdamW."""

    def __init__(self, options: argparse.Namespace, examples: Batch) -> None:
        self.model = with_lora(network(options))
        self._examples = examples
        self._batch = options.batch
        users = soft_users(self.model.get_input_embeddings().weight, examples)
        users.own.sparse = False
        self._naive = Naive(self.model, users=users.trained(), tokens=TOKENS)
        weights = [one for one in self.model.parameters() if one.requires_grad]
        groups = [{"params": weights, "lr": RATES.lr}, {"params": users.parameters(), "lr": RATES.user_lr}]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=RATES.weight_decay)

    def epoch(self) -> tuple[float, list[float]]:
        """Seconds per pair, and the loss of each step."""
        losses = []
        started = time.perf_counter()
        for batch in batches(self._examples, self._batch):
            self._optimizer.zero_grad()
            loss = self._naive.loss(batch, alpha=ALPHA, beta=BETA)
            loss.backward()
            everything = [one for group in self._optimizer.param_groups for one in group["params"]]
            torch.nn.utils.clip_grad_norm_(everything, RATES.clip)
            self._optimizer.step()
            losses.append(float(loss.detach()))
        return (time.perf_counter() - started) / len(self._examples), losses


class Trl:
    """TRL's DPOTrainer on the same token ids."""

    def __init__(self, options: argparse.Namespace, examples: Batch, folder: Path) -> None:
        from trl import DPOConfig, DPOTrainer

        class Ready(DPOTrainer):  # type: ignore[misc, unused-ignore]
            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                return dataset  # it holds token ids

        rows = {
            "prompt_ids": [list(one.prompt) for one in examples],
            "chosen_ids": [list(one.answers[0]) for one in examples],
            "rejected_ids": [list(one.answers[1]) for one in examples],
        }
        self._timed = len(examples) - options.batch
        self._trainer = trl_trainer(
            Ready, DPOConfig, rows, options, folder, learning_rate=RATES.lr, beta=BETA
        )

    def epoch(self) -> tuple[float, list[float]]:
        """Seconds per pair without the first step, and the loss of each step."""
        seconds, losses = self._trainer.epoch()
        return sum(seconds[1:]) / self._timed, losses


def with_lora(model: Any) -> Any:
    """Adapters with the first values that penname's have."""
    from peft import get_peft_model

    model.requires_grad_(False)
    torch.manual_seed(0)
    return get_peft_model(model, lora_config(), autocast_adapter_dtype=False)


def soft_users(embeddings: torch.Tensor, examples: Batch) -> SoftUsers:
    return SoftUsers("individual", 1 + max(one.user for one in examples), embeddings, TOKENS, 1, seed=0)


def pairs(options: argparse.Namespace, model: Trainable) -> list[Example]:
    """The pairs to train on, in token ids, without the reference's numbers."""
    if options.data is None:
        return made_up(options, model.reader.vocabulary)
    reader = TextReader(model, None)
    most = min(PDPOConfig().max_tokens, model.context) - TOKENS
    prepared = fit(prepare(read_preferences(options.data)), reader.lengths, most)
    items = prepared.pairs[: options.pairs]
    if len(items) < 2 * options.batch:
        sys.exit(f"{options.data} has {len(items)} pairs that fit: fewer than two batches")
    numbers = {user: number for number, user in enumerate(prepared.users)}
    return reader.examples(items, numbers)


def made_up(options: argparse.Namespace, vocabulary: int) -> list[Example]:
    rng = np.random.default_rng(0)

    def text(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.integers(vocabulary, size=rng.integers(least, most + 1)).tolist())

    return [
        Example(
            int(rng.integers(USERS)),
            text(*options.prompts),
            (text(*options.answers), text(*options.answers)),
            (0.0, 0.0),
        )
        for _ in range(options.pairs)
    ]


def referenced(examples: Batch, model: Trainable) -> list[Example]:
    """The reference's numbers, computed and kept on disk as a training does it."""
    answers = Answers(model.reader)

    def compute(asked: Sequence[Asked]) -> Iterator[Mapping[int, float]]:
        return answers.each([Question(GENERIC, *one) for one in asked], PORTION)

    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(Path(folder, "reference.sqlite"), model.fingerprint)
        return with_reference(examples, lambda asked: kept.ask(asked, compute))


def compare(part: str, options: argparse.Namespace) -> Ours | None:
    """Print both in turn; gives ours, for what else is asked of it."""
    if part == "vanilla" and not has_trl():
        print(f"\n{part}: left out, as TRL is not installed: {TRL_LINE}", flush=True)
        return None
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(options, users=part == "P-DPO")
        examples = ours.examples
        peer = Peer(options, examples) if part == "P-DPO" else Trl(options, examples, Path(folder))
        name = "peer" if part == "P-DPO" else "TRL"
        print(f"\n{part:12}{'ours':>10}{name:>10}{'ratio':>10}   pairs a second")
        speeds, first = [], None
        for turn in range(1, options.turns + 1):
            (mine, losses), (others, other_losses) = ours.epoch(), peer.epoch()
            first = first or (losses, other_losses)
            speeds.append((1 / mine, 1 / others))
            tell(f"turn {turn}", speeds[-1], f"{others / mine:10.2f}")
    middle = tell_medians(speeds)
    epoch = len(examples) / middle[0]
    whole = len(examples) / middle[1] / (epoch + ours.reference_seconds)
    print(
        f"the reference, once: {ours.reference_seconds:.1f} s for {len(examples)} pairs; "
        f"ratio with all of it in one epoch: {whole:.2f}"
    )
    assert first is not None
    for what, values in (
        ("first step", [one[0] for one in first]),
        ("mean of the first turn", [statistics.fmean(one) for one in first]),
    ):
        print(f"loss, {what}: ours {values[0]:.6f}, {name} {values[1]:.6f}")
    return ours


def only(name: str, options: argparse.Namespace) -> None:
    """What a process of its own is for."""
    if name == "ids":
        print(json.dumps([(one.user, one.prompt, one.answers) for one in pairs(options, trainable(options))]))
        return
    with tempfile.TemporaryDirectory() as folder:

        def make() -> Ours | Peer | Trl:
            if name.startswith("ours"):
                return Ours(options, users=name == "ours")
            return Peer(options, ids()) if name == "peer" else Trl(options, ids(), Path(folder))

        print_peak(make)


def ids() -> list[Example]:
    """The pairs, made in a process of their own: so nothing of penname's is in the peers' memory."""
    return [Example(u, tuple(p), (tuple(w), tuple(r)), (0.0, 0.0)) for u, p, (w, r) in own_process("ids")]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", help="preferences as JSON Lines in TRL's form")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    for name in ("--prompts", "--answers"):
        parser.add_argument(
            name,
            nargs=2,
            type=int,
            default=(20, 200),
            metavar=("LEAST", "MOST"),
            help="tokens of made-up ones",
        )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    if options.pairs < 2 * options.batch:
        parser.error("--pairs: at least two batches, as TRL's first step is not timed")
    still(options.threads)
    if options.only:
        only(options.only, options)
        return
    data = options.data or "made-up tokens"
    print(
        f"{options.model}, {options.dtype}, {options.threads} threads; {options.pairs} pairs of {data}, "
        f"batches of {options.batch}; LoRA rank {LORA.rank}, {TOKENS} soft rows per user"
    )
    names = [one for part in options.parts for one in PARTS[part]]
    # Memory first: the other processes find this one small.
    memory([one for one in names if one != "trl" or has_trl()])
    if "P-DPO" in options.parts:
        personalised(options)
    if "vanilla" in options.parts:
        compare("vanilla", options)


def personalised(options: argparse.Namespace) -> None:
    """With users; then what was read, and where the time of a step goes."""
    personal = compare("P-DPO", options)
    assert personal is not None
    lengths = [len(one.prompt) + len(answer) for one in personal.examples for answer in one.answers]
    read = sum(one.tokens for one in personal.examples)
    print(
        f"texts of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all; {read} with a prompt "
        "read once for both answers"
    )
    profile(partial(personal.step, range(options.batch)))


if __name__ == "__main__":
    main()
