"""How fast is supervised fine-tuning, beside TRL's SFTTrainer without packing?

Tokens a second of a training step (forward, backward, the optimizer's step), on this processor:

    penname   its job and its optimizer as `train.sft.train_sft` puts them together: texts end to end
              without padding, a prompt read once for all of its answers in the batch, logits only where an
              answer is scored
    TRL       SFTTrainer as it comes (a batch is padded to its longest text; the loss is of the completion
              only), but without gradient checkpointing, logging, saving, shuffling and a limit of length; it
              sees to precision by itself (autocast over weights of the type asked for)

with the same model, weights' type, threads, LoRA (rank 8, alpha 16, every linear layer but the head), token
ids and batches. Tokens are counted as the texts have them, prompt and answer each time: what padding adds
and what is read once for several answers changes the time, not the count.

The data are real: of a proposal's title and motivation the abstract is to be written, after one or two
earlier proposals of its authors with their abstracts. With --answers K each prompt has K answers, its own and
other proposals' abstracts, side by side in the data as self-training has several samples of one request.
A training draws its batches by lot among all texts: there the gain of more than one answer is as large as the
share of them that meet in a batch.

The two run in turn in one process, after a step each that is not timed; a ratio is taken within each turn.
penname's settings of the allocator hold for the process, so for its peer as well. Peak memory is that of a
process of its own for each, the peer's with the allocator as it comes; "loaded" is its size before the first
step. Last, where the time of one step of penname's goes, by torch's profiler.

    python benchmarks/sft.py [--model smollm2-135m] [--data ../shared/data] [--texts 8] [--batch 8]
                             [--answers 1 4] [--turns 5] [--dtype bfloat16] [--threads 2] [--check]

--check compares instead, in float32, the losses of the first step: it fails where they differ by 1e-4.
TRL is no dependency: pip install trl==1.16.0.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peers import (
    FOREVER,
    LORA,
    TRL_LINE,
    arguments,
    batches,
    has_trl,
    memory,
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
from penname.train.model import Trainable
from penname.train.optimizer import Optimizer, OptimizerSettings
from penname.train.sft import SFTConfig
from penname.train.supervised import SupervisedJob, Target

PORTION = SFTConfig().portion
RATES = OptimizerSettings(lr=SFTConfig().optimizer.lr, warmup=0)
BEFORE = "2024-01-01"  # the proposals to train on
LONGEST = 400, 900  # characters of a motivation and of an abstract: some 80 and 180 tokens
TOKENS = 150, 600  # of a text with its prompt
AGREED = 1e-4


class Ours:
    """penname's own step, as its loop takes it."""

    def __init__(self, options: argparse.Namespace, answers: int) -> None:
        model = trainable(options)
        self.targets = targets(options, answers, model)
        self._optimizer = Optimizer(model.parameters, {}, RATES, FOREVER)
        self._job = SupervisedJob(model.reader, self.targets, (), portion=PORTION)
        self._batch = max(1, options.batch // answers)  # prompts: as many texts as TRL takes
        self._number = 0

    def epoch(self) -> tuple[list[float], list[float]]:
        """Seconds and loss of each step."""
        return self._steps(list(batches(range(self._job.size), self._batch)))

    def first(self) -> float:
        """The loss of the first step."""
        return self._steps([range(self._batch)])[1][0]

    def _steps(self, of: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
        seconds, losses = [], []
        for batch in of:
            started = time.perf_counter()
            losses.append(self._step(batch))
            seconds.append(time.perf_counter() - started)
        return seconds, losses

    def _step(self, batch: Sequence[int]) -> float:
        self._number += 1
        return step(self._job, self._optimizer, batch, self._number - 1)


class Trl:
    """TRL's SFTTrainer on the same token ids."""

    def __init__(self, options: argparse.Namespace, some: Sequence[Target], folder: Path) -> None:
        from trl import SFTConfig as Settings
        from trl import SFTTrainer

        rows = {
            "input_ids": [[*one.prompt, *one.answer] for one in some],
            "completion_mask": [[0] * len(one.prompt) + [1] * len(one.answer) for one in some],
        }
        self._trainer = trl_trainer(
            SFTTrainer, Settings, rows, options, folder, learning_rate=RATES.lr, completion_only_loss=True
        )

    def epoch(self) -> tuple[list[float], list[float]]:
        """Seconds and loss of each step."""
        seconds, losses = self._trainer.epoch()
        return seconds, losses

    def first(self) -> float:
        """The loss of the first step."""
        self._trainer.args.max_steps = 1
        _, [loss] = self._trainer.epoch()
        self._trainer.args.max_steps = -1
        return float(loss)


def targets(options: argparse.Namespace, answers: int, model: Trainable) -> list[Target]:
    """The texts to train on, in token ids: the first of a shuffled order that are neither short nor long."""
    asked = list(proposals(options.data))
    others = [answer for _, answer in asked]
    found: list[Target] = []
    for place, (prompt, answer) in enumerate(asked):
        several = [answer, *(others[(place + step) % len(asked)] for step in range(1, answers))]
        some = [Target(model.prompt(prompt), model.answer(one)) for one in several]
        if all(TOKENS[0] <= one.tokens <= TOKENS[1] for one in some) and len(set(some)) == answers:
            found += some
        if len(found) >= options.texts:
            return found[: options.texts]
    sys.exit(f"{options.data} has {len(found)} such texts: ask for fewer by --texts")


def proposals(folder: Path) -> Iterator[tuple[str, str]]:
    """Prompts, each with the real abstract, in an order that the proposals' names give."""
    with gzip.open(folder / "proposals.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["created"] < BEFORE and row["motivation"]]
    history: dict[str, list[str]] = defaultdict(list)
    made = []
    for row in rows:  # by date
        request = f"Title: {row['title']}\nMotivation: {cut(row['motivation'], LONGEST[0])}\nAbstract:"
        answer = " " + cut(row["abstract"], LONGEST[1])
        earlier = list(dict.fromkeys(text for author in row["authors"] for text in history[author]))
        if earlier:
            shown = earlier[-1 - len(made) % 2 :]
            made.append((row["id"][::-1], "\n\n".join([*shown, request]), answer))
        for author in row["authors"]:
            history[author].append(request + answer)
    for _, prompt, answer in sorted(made):
        yield prompt, answer


def cut(text: str, longest: int) -> str:
    """The text, or as many of its first words as fit."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest].rsplit(" ", 1)[0]


def from_ids(options: argparse.Namespace, answers: int) -> list[Target]:
    """The texts, made in a process of their own: so nothing of penname's is in the peer's memory."""
    del options
    return [Target(tuple(prompt), tuple(answer)) for prompt, answer in own_process(f"ids-{answers}")]


def compare(options: argparse.Namespace, answers: int) -> Ours:
    """Print both in turn; gives ours, for what else is asked of it."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(options, answers)
        some = ours.targets
        peer = Trl(options, some, Path(folder))
        describe(some, answers, options.batch)
        first = ours.first(), peer.first()
        print(f"{'':12}{'ours':>10}{'TRL':>10}{'ratio':>10}   tokens a second")
        speeds, losses = [], []
        tokens = sum(one.tokens for one in some)
        for turn in range(1, options.turns + 1):
            (mine, lost), (others, other_lost) = ours.epoch(), peer.epoch()
            speeds.append((tokens / sum(mine), tokens / sum(others)))
            losses.append((statistics.fmean(lost), statistics.fmean(other_lost)))
            tell(f"turn {turn}", speeds[-1], f"{speeds[-1][0] / speeds[-1][1]:10.2f}")
        tell_medians(speeds)
    print(f"loss, first step: ours {first[0]:.4f}, TRL {first[1]:.4f}")
    print(f"loss, mean of the last turn: ours {losses[-1][0]:.4f}, TRL {losses[-1][1]:.4f}")
    return ours


def describe(some: Sequence[Target], answers: int, batch: int) -> None:
    """Print what there is to read, and what each reads of it."""
    lengths = [one.tokens for one in some]
    padded = sum(len(of) * max(one.tokens for one in of) for of in batches(some, batch))
    once = sum(
        sum(map(len, {one.prompt for one in of})) + sum(len(one.answer) for one in of)
        for of in batches(some, batch)
    )
    learnt = sum(len(one.answer) for one in some)
    print(
        f"\nanswers to a prompt: {answers}; texts of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} "
        f"in all, {learnt} of them answers; TRL reads {padded}, ours {once}",
        flush=True,
    )


def check(options: argparse.Namespace) -> None:
    """Compare the losses of the first step."""
    for answers in options.answers:
        with tempfile.TemporaryDirectory() as folder:
            ours = Ours(options, answers)
            losses = ours.first(), Trl(options, ours.targets, Path(folder)).first()
        off = abs(losses[0] - losses[1])
        print(
            f"answers {answers}: loss of the first step, float32: ours {losses[0]:.6f}, TRL {losses[1]:.6f}"
        )
        if not off < AGREED:
            sys.exit(f"they differ by {off:.1e}")


def only(name: str, options: argparse.Namespace) -> None:
    """What a process of its own is for."""
    what, _, number = name.partition("-")
    answers = int(number)
    if what == "ids":
        found = targets(options, answers, trainable(options))
        print(json.dumps([(one.prompt, one.answer) for one in found]))
        return
    with tempfile.TemporaryDirectory() as folder:

        def make() -> Any:
            if what == "ours":
                return Ours(options, answers)
            return Trl(options, from_ids(options, answers), Path(folder))

        print_peak(make)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--answers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if not has_trl():
        parser.error(f"TRL is not installed: {TRL_LINE}")
    if options.check:
        options.dtype = "float32"
    still(options.threads)
    if options.only:
        only(options.only, options)
        return
    print(
        f"{options.model}, {options.dtype}, {options.threads} threads; {options.texts} texts, batches of "
        f"{options.batch}; LoRA rank {LORA.rank}; portions of {PORTION} tokens"
    )
    if options.check:
        check(options)
        return
    memory([f"{what}-{answers}" for answers in options.answers for what in ("ours", "trl")])
    for answers in options.answers:
        ours = compare(options, answers)
        profile(ours.first)
        del ours


if __name__ == "__main__":
    main()
