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

Without --data token ids are made up (seed fixed): prompts of 20 to 200 tokens, answers of 20 to 200, four
users. A file is of TRL's form: JSON Lines of prompt, chosen, rejected, user_id.

    python benchmarks/pdpo.py [--model smollm2-135m] [--data FILE] [--pairs 32] [--batch 4] [--turns 5]
                              [--dtype bfloat16] [--threads 2]

TRL is no dependency: pip install trl==1.16.0; without it that part is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penname.lm import gguf
from penname.lm.config import EMBEDDED, parse
from penname.lm.libraries import quiet
from penname.methods.prlhf.answers import Answers, Question
from penname.methods.prlhf.config import PDPOConfig
from penname.methods.prlhf.data import fit, prepare
from penname.methods.prlhf.data_read import read_preferences
from penname.methods.prlhf.jobs import Example, PreferenceJob, judge_pairs
from penname.methods.prlhf.texts import TextReader
from penname.methods.prlhf.users import GENERIC, SoftUsers
from penname.train.kept import Asked, Kept
from penname.train.model import LoraSettings, Trainable, load_trainable
from penname.train.optimizer import Optimizer, OptimizerSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from naive_preferences import Naive

TOKENS = PDPOConfig().user_tokens
ALPHA, BETA, PORTION = PDPOConfig().alpha, PDPOConfig().beta, PDPOConfig().portion
LORA = LoraSettings()
RATES = OptimizerSettings(warmup=0)
FOREVER = 10**9  # steps of the schedule: so the rate stays
USERS = 4  # of the made-up pairs
TRL_LINE = "pip install trl==1.16.0"
PARTS = {"P-DPO": ("ours", "peer"), "vanilla": ("ours-vanilla", "trl")}
MATRIX = {"aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear", "aten::_addmm_activation"}

Batch = Sequence[Example]


class Ours:
    """penname's own step, as its loop takes it."""

    def __init__(self, options: argparse.Namespace, *, users: bool) -> None:
        self.model = trainable(options)
        examples = pairs(options, self.model)
        if not users:
            examples = [replace(one, user=GENERIC) for one in examples]
        started = time.perf_counter()
        self.examples = with_reference(examples, self.model)
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
        loss = 0.0
        for portion in self._job.backward(batch):
            self._optimizer.collect()
            loss += portion["loss"]
        self._optimizer.step(self._number)
        self._number += 1
        return loss


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
        import datasets
        from peft import LoraConfig
        from transformers import AutoTokenizer, TrainerCallback
        from transformers.trainer_callback import PrinterCallback
        from trl import DPOConfig, DPOTrainer

        seconds: list[float] = []
        losses: list[float] = []

        class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                seconds.append(-time.perf_counter())

            def on_step_end(self, *_: Any, **__: Any) -> None:
                seconds[-1] += time.perf_counter()

        class Ready(DPOTrainer):  # type: ignore[misc, unused-ignore]
            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                return dataset  # it holds token ids

            def training_step(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().training_step(*args, **kwargs)
                losses.append(float(loss))
                return loss

        self._seconds, self._losses, self._examples, self._batch = seconds, losses, examples, options.batch
        rows = {
            "prompt_ids": [list(one.prompt) for one in examples],
            "chosen_ids": [list(one.answers[0]) for one in examples],
            "rejected_ids": [list(one.answers[1]) for one in examples],
        }
        lora = LoraConfig(
            r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        settings = DPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=options.dtype == "bfloat16",
            beta=BETA,
            per_device_train_batch_size=options.batch,
            num_train_epochs=1,
            learning_rate=RATES.lr,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            max_length=None,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        self._trainer = Ready(
            model=network(options),
            args=settings,
            train_dataset=datasets.Dataset.from_dict(rows),
            processing_class=AutoTokenizer.from_pretrained(weights_folder(options)),
            peft_config=lora,
            callbacks=[Clock()],
        )
        self._trainer.remove_callback(PrinterCallback)

    def epoch(self) -> tuple[float, list[float]]:
        """Seconds per pair without the first step, and the loss of each step."""
        self._seconds.clear()
        self._losses.clear()
        self._trainer.train()
        timed = len(self._examples) - self._batch
        return sum(self._seconds[1:]) / timed, list(self._losses)


def trainable(options: argparse.Namespace) -> Trainable:
    return load_trainable(options.model, dtype=options.dtype, device="cpu", lora=LORA)


def weights_folder(options: argparse.Namespace) -> Path:
    config = parse(options.model)
    if config.model == EMBEDDED or config.model.lower().endswith(".gguf"):
        return gguf.weights_folder(gguf.find(config.model))
    return Path(config.model)


def network(options: argparse.Namespace) -> Any:
    """The model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        weights_folder(options), dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
    )


def with_lora(model: Any) -> Any:
    """Adapters with the first values that penname's have."""
    from peft import LoraConfig, get_peft_model

    model.requires_grad_(False)
    torch.manual_seed(0)
    config = LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def soft_users(embeddings: torch.Tensor, examples: Batch) -> SoftUsers:
    return SoftUsers("individual", 1 + max(one.user for one in examples), embeddings, TOKENS, 1, seed=0)


def pairs(options: argparse.Namespace, model: Trainable) -> list[Example]:
    """The pairs to train on, in token ids, without the reference's numbers."""
    if options.data is None:
        return made_up(options.pairs, model.reader.vocabulary)
    reader = TextReader(model, None)
    most = min(PDPOConfig().max_tokens, model.context) - TOKENS
    prepared = fit(prepare(read_preferences(options.data)), reader.lengths, most)
    items = prepared.pairs[: options.pairs]
    if len(items) < 2 * options.batch:
        sys.exit(f"{options.data} has {len(items)} pairs that fit: fewer than two batches")
    numbers = {user: number for number, user in enumerate(prepared.users)}
    return reader.examples(items, numbers)


def made_up(count: int, vocabulary: int) -> list[Example]:
    rng = np.random.default_rng(0)

    def text() -> tuple[int, ...]:
        return tuple(rng.integers(vocabulary, size=rng.integers(20, 201)).tolist())

    return [Example(int(rng.integers(USERS)), text(), (text(), text()), (0.0, 0.0)) for _ in range(count)]


def with_reference(examples: Batch, model: Trainable) -> list[Example]:
    """The reference's numbers, computed and kept on disk as a training does it."""
    answers = Answers(model.reader)

    def compute(asked: Sequence[Asked]) -> Iterator[Mapping[int, float]]:
        return answers.each([Question(GENERIC, *one) for one in asked], PORTION)

    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(Path(folder, "reference.sqlite"), model.fingerprint)
        found = kept.ask([(one.prompt, answer) for one in examples for answer in one.answers], compute)
    return [
        replace(one, reference=(found[2 * place], found[2 * place + 1])) for place, one in enumerate(examples)
    ]


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def compare(part: str, options: argparse.Namespace) -> Ours | None:
    """Print both in turn; gives ours, for what else is asked of it."""
    if part == "vanilla" and find_spec("trl") is None:
        print(f"\n{part}: left out, as TRL is not installed: {TRL_LINE}", flush=True)
        return None
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(options, users=part == "P-DPO")
        examples = ours.examples
        peer = Peer(options, examples) if part == "P-DPO" else Trl(options, examples, Path(folder))
        name = "peer" if part == "P-DPO" else "TRL"
        print(f"\n{part:12}{'ours':>10}{name:>10}{'ratio':>10}   pairs a second")
        ratios, speeds, first = [], [], None
        for turn in range(1, options.turns + 1):
            (mine, losses), (others, other_losses) = ours.epoch(), peer.epoch()
            first = first or (losses, other_losses)
            speeds.append((1 / mine, 1 / others))
            ratios.append(others / mine)
            row = "".join(f"{speed:10.3f}" for speed in speeds[-1])
            print(f"turn {turn:<7}{row}{ratios[-1]:10.2f}", flush=True)
    middle = [statistics.median(column) for column in zip(*speeds, strict=True)]
    row = "".join(f"{speed:10.3f}" for speed in middle)
    print(f"{'median':12}{row}{statistics.median(ratios):10.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")
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


def profile(ours: Ours, options: argparse.Namespace) -> None:
    """Print where the time of a step goes."""
    batch = range(min(options.batch, len(ours.examples)))
    ours.step(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        ours.step(batch)
        wall = 1e6 * (time.perf_counter() - started)
    spent: Counter[str] = Counter()
    for event in found.events():
        spent[_kind(event)] += event.self_cpu_time_total
    spent["outside of torch"] = max(0, wall - spent.total())
    print(f"\nwhere a step of ours goes ({wall / 1e6:.2f} s under the profiler)")
    for kind, time_of in spent.most_common():
        print(f"  {kind:36}{time_of / wall:6.1%}")


def _kind(event: Any) -> str:
    names = [event.name]
    above = event
    while above.cpu_parent is not None:
        above = above.cpu_parent
        names.append(above.name)
    for mark, kind in (("_Trees", "attention"), ("_TokenLogProbs", "head"), ("Optimizer.", "optimizer")):
        if any(mark in name for name in names):
            return kind
    return "matrix products of the layers" if event.name in MATRIX else "elementwise, copies, bookkeeping"


def memory() -> None:
    """Print the peak memory of each, in a process of its own."""
    print(f"\n{'memory, GB':16}{'loaded':>10}{'peak':>10}")
    for name in (one for part in PARTS.values() for one in part):
        if name == "trl" and find_spec("trl") is None:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:  # a negative one: killed by that signal, as for want of memory
            print(f"{name:16}failed ({done.returncode}): {done.stderr.strip()[-500:]}", flush=True)
            continue
        loaded, peak = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:16}{loaded:10.2f}{peak:10.2f}", flush=True)


def only(name: str, options: argparse.Namespace) -> None:
    """Train one epoch; print this process's gigabytes at the beginning, and at most."""
    made: dict[str, Callable[[Path], Ours | Peer | Trl]] = {
        "ours": lambda _: Ours(options, users=True),
        "ours-vanilla": lambda _: Ours(options, users=False),
        "peer": lambda _: Peer(options, ids()),
        "trl": lambda folder: Trl(options, ids(), folder),
    }
    with tempfile.TemporaryDirectory() as folder:
        one = made[name](Path(folder))
        loaded = _gigabytes("VmRSS")
        one.epoch()
    print(json.dumps([loaded, _gigabytes("VmHWM")]))


def ids() -> list[Example]:
    """The pairs, made in a process of their own: so nothing of penname's is in the peers' memory."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", "ids"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    return [Example(u, tuple(p), (tuple(w), tuple(r)), (0.0, 0.0)) for u, p, (w, r) in rows]


def _gigabytes(field: str) -> float:
    """VmRSS, what this process holds now, or VmHWM, the most it held; getrusage would count its parent's."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1e6
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--data", help="preferences as JSON Lines in TRL's form")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pairs < 2 * options.batch:
        parser.error("--pairs: at least two batches, as TRL's first step is not timed")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    quiet()
    if options.only == "ids":
        print(json.dumps([(one.user, one.prompt, one.answers) for one in pairs(options, trainable(options))]))
        return
    if options.only:
        only(options.only, options)
        return
    data = options.data or "made-up tokens"
    print(
        f"{options.model}, {options.dtype}, {options.threads} threads; {options.pairs} pairs of {data}, "
        f"batches of {options.batch}; LoRA rank {LORA.rank}, {TOKENS} soft rows per user"
    )
    memory()  # first: the other processes find this one small
    personal = compare("P-DPO", options)
    assert personal is not None
    lengths = [len(one.prompt) + len(answer) for one in personal.examples for answer in one.answers]
    read = sum(one.tokens for one in personal.examples)
    print(
        f"texts of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all; {read} with a prompt "
        "read once for both answers"
    )
    profile(personal, options)
    del personal
    compare("vanilla", options)


if __name__ == "__main__":
    main()
