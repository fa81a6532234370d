"""What the benchmarks of training share.

The model as peers load it, TRL's trainers with a clock, peak memory, and where the time of a step goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from penname.lm import gguf
from penname.lm.config import EMBEDDED, parse
from penname.lm.libraries import quiet
from penname.train.loop import Job
from penname.train.model import LoraSettings, Trainable, load_trainable
from penname.train.optimizer import Optimizer

LORA = LoraSettings()
FOREVER = 10**9  # steps of the schedule: so the rate stays
TRL_LINE = "pip install trl==1.16.0"
MATRIX = {"aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear", "aten::_addmm_activation"}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What every such benchmark asks for; `--only` names what a process of its own is to do."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser


def still(threads: int) -> None:
    """Set the threads, and have the libraries say nothing."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    quiet()


def has_trl() -> bool:
    """Whether TRL is installed."""
    return find_spec("trl") is not None


def trainable(options: argparse.Namespace) -> Trainable:
    """The model as penname loads it."""
    return load_trainable(options.model, dtype=options.dtype, device="cpu", lora=LORA)


def weights_folder(options: argparse.Namespace) -> Path:
    """The model's folder, as transformers reads it."""
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


def lora_config() -> Any:
    """penname's LoRA, as peft is told."""
    from peft import LoraConfig

    return LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def trl_trainer(
    kind: type[Any],
    settings: type[Any],
    rows: dict[str, Any],
    options: argparse.Namespace,
    folder: Path,
    **own: Any,
) -> Any:
    """One of TRL's trainers as it comes, but without gradient checkpointing, logging, saving, shuffling and a
    limit of length; it has `epoch`, seconds and loss of each step.

    Args:
        rows: the data by column.
        own: settings of this trainer's own.
    """
    import datasets
    from transformers import AutoTokenizer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    datasets.disable_progress_bars()
    seconds: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.perf_counter()

    class Clocked(kind):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

        def epoch(self) -> tuple[list[float], list[float]]:
            seconds.clear()
            losses.clear()
            self.train()
            return list(seconds), list(losses)

    trainer = Clocked(
        model=network(options),
        args=settings(
            output_dir=str(folder),
            use_cpu=True,
            bf16=options.dtype == "bfloat16",
            per_device_train_batch_size=options.batch,
            num_train_epochs=1,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            max_length=None,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **own,
        ),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(weights_folder(options)),
        peft_config=lora_config(),
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Runs of `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def step(job: Job, optimizer: Optimizer, batch: Sequence[int], number: int) -> float:
    """Take one step as `train.loop` does; its loss."""
    loss = 0.0
    for portion in job.backward(batch):
        optimizer.collect()
        loss += portion["loss"]
    optimizer.step(number)
    return loss


def tell(label: str, speeds: Sequence[float], rest: str = "") -> None:
    """Print a row of speeds."""
    print(f"{label:12}" + "".join(f"{speed:10.3f}" for speed in speeds) + rest, flush=True)


def tell_medians(speeds: Sequence[tuple[float, float]]) -> list[float]:
    """Print both columns' medians, and that of the turns' ratios with its range; returns the first two."""
    middle = [statistics.median(column) for column in zip(*speeds, strict=True)]
    ratios = [ours / others for ours, others in speeds]
    rest = f"{statistics.median(ratios):10.2f}   ({min(ratios):.2f} to {max(ratios):.2f})"
    tell("median", middle, rest)
    return middle


def own_process(name: str) -> Any:
    """What this benchmark prints last, as JSON, when a process of its own is told to do `--only name`.

    Raises:
        RuntimeError: it failed; a negative status is the signal that killed it, as for want of memory.
    """
    command = [sys.executable, sys.argv[0], *sys.argv[1:], "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory(names: Sequence[str]) -> None:
    """Print the peak memory of each, in a process of its own that prints what `peak` does."""
    print(f"\n{'memory, GB':16}{'loaded':>10}{'peak':>10}")
    for name in names:
        try:
            loaded, peak = own_process(name)
        except RuntimeError as error:
            print(f"{name:16}{error}", flush=True)
        else:
            print(f"{name:16}{loaded:10.2f}{peak:10.2f}", flush=True)


def print_peak(make: Callable[[], Any]) -> None:
    """Make a trainer and train one epoch; print this process's gigabytes before it, and at most."""
    one = make()
    loaded = _gigabytes("VmRSS")
    one.epoch()
    print(json.dumps([loaded, _gigabytes("VmHWM")]))


def _gigabytes(field: str) -> float:
    """VmRSS, what this process holds now, or VmHWM, the most it held; getrusage would count its parent's."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1e6
    return float("nan")


def profile(step: Callable[[], Any]) -> None:
    """Print where the time of a step of penname's goes."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        step()
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
