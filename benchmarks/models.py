"""How fast does the embedded model write and score on this processor, and what does bfloat16 change?

    python benchmarks/models.py [--model smollm2-135m]

For float32 and bfloat16: tokens a second in writing one text and 32 together (100 tokens each, short
prompts), in reading prompts to write after (of about 500 tokens), in scoring real texts after such prompts,
and in scoring them after prompts that were written after just before; and how far the scores lie from
float32's, per token. Texts come from the built-in sample. The model is loaded before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import resources

from penname.lm import ModelConfig, Sampling, load_model
from penname.lm.config import DType


def prompts() -> list[tuple[str, str]]:
    """Sixteen prompts of five examples, each with the text that really followed."""
    lines = resources.files("penname.sample").joinpath("documents.jsonl").read_text("utf-8").splitlines()
    shown = [f"Title: {row['title']}\nPost: {row['text']}" for row in map(json.loads, lines)]
    made = []
    for start in range(0, 96, 6):
        title, _, text = shown[start + 5].partition("\nPost: ")
        made.append(("\n\n".join([*shown[start : start + 5], f"{title}\nPost:"]), f" {text}"))
    return made


def measure(name: str, dtype: DType) -> list[float]:
    """Print one row; returns the mean log-probability per token of each text."""
    model = load_model(ModelConfig(name, dtype=dtype))
    model.generate(["One, two,"], 1, Sampling(max_tokens=2))
    model.score(["One,"], [" two"])
    asked, texts = zip(*prompts(), strict=True)
    speeds = []
    for n, tokens in ((1, 100), (32, 100)):
        started = time.perf_counter()
        rows = model.generate(
            [f"Title: weather {i}\nPost:" for i in range(n)], 1, Sampling(max_tokens=tokens)
        )
        speeds.append(sum(row[0].tokens for row in rows) / (time.perf_counter() - started))
    started = time.perf_counter()
    model.generate(asked, 1, Sampling(max_tokens=1))
    speeds.append(sum(map(model.count, asked)) / (time.perf_counter() - started))
    # Another beginning: nothing of these has been read yet.
    for prompts_of in ([f"Of one writer.\n\n{prompt}" for prompt in asked], asked):
        started = time.perf_counter()
        scores = model.score(prompts_of, texts)
        total = sum(map(model.count, prompts_of)) + sum(score.tokens for score in scores)
        speeds.append(total / (time.perf_counter() - started))
    print(f"{dtype:10}" + "".join(f"{speed:12,.0f}" for speed in speeds), flush=True)
    return [score.total / score.tokens for score in scores]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    name = parser.parse_args().model
    print(f"{'tokens/s':10}{'one text':>12}{'32 texts':>12}{'reading':>12}{'scoring':>12}{'after read':>12}")
    exact, fast = measure(name, "float32"), measure(name, "bfloat16")
    apart = [abs(a - b) for a, b in zip(exact, fast, strict=True)]
    print(f"log-probability per token, bfloat16 from float32: {sum(apart) / len(apart):.4f} on average")


if __name__ == "__main__":
    main()
