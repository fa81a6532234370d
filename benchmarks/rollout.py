"""Many samples of long prompts: our sampler beside transformers' own, on the same model, type and threads.

    python benchmarks/rollout.py [--model smollm2-135m] [--prompts 2] [--samples 32] [--tokens 128]

    ours         TransformersLM.generate
    generate     transformers' generate(num_return_sequences=samples), all prompts in one call
    continuous   transformers' continuous batching, generate_batch; where it does not run, that is said
    openvino     our backend for GGUF files, for information: its weights stay quantised

Prompts are cut from the built-in sample's texts. No token ends a text here (an end token is drawn as any
other), so all write samples × tokens; the clock runs from token ids or prompts in to texts out. Arms run in
turn in one process with new seeds each turn; ratios are taken within a turn. Peak memory is that of a process
of its own, which writes once (--memory ARM is how this file calls itself).

Then the distributions: the mean log-probability per token of what each wrote, under the model at temperature
1, and the total variation between the frequencies of tokens. That between the arms is seen beside that
between the halves of each arm's own texts, which is what chance alone makes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from penname.lm import EMBEDDED, ModelConfig, Sampling, gguf
from penname.lm.embedded import GGUFModel
from penname.lm.local import TransformersLM

LENGTH = 1000  # tokens of a prompt
NO_END = frozenset({1 << 30})  # OpenVINO takes no empty set: an id that no model draws
Writer = Callable[[int], list[str]]  # seed to texts, prompt after prompt


class Arms:
    """The samplers; each is made when first asked for, so that a process for one holds no other."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.quantised = given.model == EMBEDDED or Path(given.model).suffix.lower() == ".gguf"
        self.folder = gguf.weights_folder(gguf.find(given.model)) if self.quantised else Path(given.model)
        self.model = TransformersLM(ModelConfig(str(self.folder), dtype=given.dtype, device="cpu"))
        self.prompts = prompts(self.model, given.prompts)
        self.codec = self.model._codec
        self.codec.ends = NO_END

    def make(self, name: str) -> Writer:
        """Raises what the sampler raises that cannot run here."""
        made: Writer = getattr(self, f"_{name}")()
        return made

    def _ours(self) -> Writer:
        return lambda seed: self._by(self.model, seed)

    def _openvino(self) -> Writer:
        if not self.quantised:
            raise ValueError("the model is no GGUF file")
        model = GGUFModel(ModelConfig(self.given.model, dtype=self.given.dtype))
        model._codec.ends = NO_END
        return lambda seed: self._by(model, seed)

    def _by(self, model: TransformersLM | GGUFModel, seed: int) -> list[str]:
        given = self.given
        sampling = Sampling(given.tokens, given.temperature, given.top_p, seed=seed)
        rows = model.generate(self.prompts, given.samples, sampling)
        assert all(one.tokens == given.tokens for row in rows for one in row)
        return [one.text for row in rows for one in row]

    def _generate(self) -> Writer:
        network, ids, options = self._network()

        def write(seed: int) -> list[str]:
            torch.manual_seed(seed)
            with torch.inference_mode():
                found = network.generate(
                    torch.tensor(ids), attention_mask=torch.ones(len(ids), LENGTH), **options
                )
            return [self.codec.decode(row[LENGTH:].tolist()) for row in found]

        return write

    def _continuous(self) -> Writer:
        from transformers import GenerationConfig

        network, ids, options = self._network()
        config = GenerationConfig(**options)

        def write(seed: int) -> list[str]:
            torch.manual_seed(seed)
            found = network.generate_batch(ids, generation_config=config, warmup=False)
            rows = [one.generated_tokens for one in found.values()]
            wanted = self.given.prompts * self.given.samples
            if len(rows) != wanted or any(len(row) != self.given.tokens for row in rows):
                raise RuntimeError(f"{len(rows)} of {wanted} texts came, of {sum(map(len, rows))} tokens")
            return [self.codec.decode(row) for row in rows]

        return write

    def _network(self) -> tuple[Any, list[list[int]], dict[str, Any]]:
        from transformers import AutoModelForCausalLM

        given = self.given
        network: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, given.dtype))
        network.generation_config.eos_token_id = None
        options = {
            "do_sample": True,
            "temperature": given.temperature,
            "top_p": given.top_p,
            "top_k": 0,
            "max_new_tokens": given.tokens,
            "num_return_sequences": given.samples,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        return network.eval(), [self.codec.prompt(prompt) for prompt in self.prompts], options


def prompts(model: TransformersLM, number: int) -> list[str]:
    """Prompts of exactly LENGTH tokens, each of other texts than the next."""
    lines = resources.files("penname.sample").joinpath("documents.jsonl").read_text("utf-8").splitlines()
    texts = [f"Title: {row['title']}\nPost: {row['text']}\n\n" for row in map(json.loads, lines)]
    made = []
    for start in range(number):
        ids = model._codec.prompt("".join(texts[start * 7 :] + texts[: start * 7]))
        size = LENGTH
        while model.count(text := model._codec.decode(ids[:size])) != LENGTH:
            size += LENGTH - model.count(text)  # what was cut out is not always the same tokens again
        made.append(text)
    return made


def frequencies(arms: Arms, texts: list[str]) -> Counter[int]:
    """How often each token stands in the texts."""
    return Counter(token for text in texts for token in arms.codec.completion(text.replace("\0", "")))


def variation(one: Counter[int], other: Counter[int]) -> float:
    """Total variation between two distributions that are given by counts: 0 alike, 1 nothing in common."""
    first, second = one.total(), other.total()
    return sum(abs(one[token] / first - other[token] / second) for token in one | other) / 2


def compare(arms: Arms, texts: dict[str, list[str]]) -> None:
    """Print how alike the arms' distributions are."""
    print("\nlog-probability per token of what was written, mean and standard error over texts")
    asked = [prompt for prompt in arms.prompts for _ in range(arms.given.samples)]
    halves = {}
    for name, written in texts.items():
        some = [text.replace("\0", "") for text in written[: len(asked)]]  # one turn's
        scores = [one.total / one.tokens for one in arms.model.score(asked, some) if one.tokens]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
        print(f"{name:12}{statistics.mean(scores):9.3f} ± {error:.3f}", flush=True)
        halves[name] = [frequencies(arms, written[half::2]) for half in (0, 1)]
    print("\ntotal variation of the frequencies of tokens, between halves of the texts")
    ours = halves["ours"]
    for name, (first, second) in halves.items():
        line = f"{name:12}between its own halves {variation(first, second):.3f}"
        if name != "ours":
            line += f", from ours {(variation(first, ours[0]) + variation(second, ours[1])) / 2:.3f}"
        print(line)


def peak(name: str) -> str:
    """The peak memory of a process that writes once by one arm."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{int(done.stdout.split()[-1]) / 1024:,.0f} MB" if done.returncode == 0 else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--arms", nargs="+", default=["ours", "generate", "continuous", "openvino"])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes for peak memory")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    arms = Arms(given)
    if given.memory:
        arms.make(given.memory)(0)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    speeds, texts = measure(arms)
    print(f"{'tokens/s':12}{'median':>9}{'ours in ratio':>15}{'range':>16}{'peak memory':>14}")
    for name, mine in speeds.items():
        ratios = [ours / other for ours, other in zip(speeds["ours"], mine, strict=True)]
        spread = f"{min(ratios):.2f} – {max(ratios):.2f}"
        memory = "" if given.no_memory else peak(name)
        print(
            f"{name:12}{statistics.median(mine):9,.0f}{statistics.median(ratios):15.2f}{spread:>16}{memory:>14}"
        )
    compare(arms, texts)


def measure(arms: Arms) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Tokens a second of each arm in each turn, and what it wrote in all."""
    given = arms.given
    written = given.prompts * given.samples * given.tokens
    writers: dict[str, Writer] = {}
    speeds: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    for turn in range(given.turns):
        for name in given.arms if turn == 0 else list(speeds):
            try:
                writer = writers.get(name) or arms.make(name)
                if turn == 0 and name in ("ours", "openvino"):
                    short = argparse.Namespace(**{**vars(given), "samples": 1, "tokens": 2})
                    arms.given = short
                    with contextlib.suppress(AssertionError):
                        writer(0)  # loads what is loaded when first used
                    arms.given = given
                started, used = time.perf_counter(), time.process_time()
                found = writer(turn)
                took, used = time.perf_counter() - started, time.process_time() - used
            except Exception as error:  # noqa: BLE001 - a peer may fail in any way: the table goes on without it
                print(f"{name} does not run: {type(error).__name__}: {error}", flush=True)
                continue
            writers[name] = writer
            speeds.setdefault(name, []).append(written / took)
            texts.setdefault(name, []).extend(found)
            print(f"turn {turn + 1}: {name} {took:.1f} s, {used:.1f} s of processor time", flush=True)
    return speeds, texts


if __name__ == "__main__":
    main()
