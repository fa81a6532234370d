"""What personalisation costs at the door: time to the first token, and throughput, over HTTP on loopback.

A real server (uvicorn, in a process of its own) and the official `openai` client. In pairs, one request right
after the other in alternating order, warm: the same user and request with the method and with `none`, a text
of one token each (of a longer one the first token need not be seen by itself: a line break is held back); the
ratio is taken within each pair; once for subjects that are new, and once more for the same subjects in other
words, where retrieval finds what it found before. Then the same requests by several users at once, all with
the one or all with the other; the ratio of their tokens a second is taken within each turn. Documents come
from the built-in sample; every request is another one, so that no answer is remembered.

    python benchmarks/serve.py [--model smollm2-135m] [--methods step-back] [--run FOLDER]
                               [--pairs 10] [--turns 3] [--users 8] [--share-prompts]

`--run` is a run of P-DPO over the same model; it is compared with `none`, written by the base model, too; and
alone where `--methods` names none.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

from penname.evaluate.demo import load_sample
from penname.methods.stepback import edit_profile
from penname.serve.settings import ServeSettings
from penname.store import Store
from serve_process import started

TOKENS = 48  # of each text that is written by several at once
PROFILE = (
    "Writes about everyday things for friends: food, travel, work and the weather. The tone is warm, plain "
    "and a little dry. Sentences are short, paragraphs too; a text begins with what happened and ends with a "
    "wish. Contractions are common, questions are rare, and lists are never used."
)


class Asker:
    """A client of one user."""

    def __init__(self, url: str, key: str) -> None:
        self.client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=600)

    def first(self, method: str, text: str) -> float:
        """Seconds that a text of one token takes."""
        began = time.perf_counter()
        self.ask(method, text, 1)
        return time.perf_counter() - began

    def ask(self, method: str, text: str, most: int = TOKENS) -> int:
        """The tokens written, `most` at most."""
        tokens = 0
        stream = self.client.chat.completions.create(
            model=f"penname/{method}",
            messages=[{"role": "user", "content": text}],
            temperature=0,
            max_tokens=most,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        if not tokens:
            raise SystemExit(f"{method} writes nothing for {text!r}: measure with another model")
        return tokens


def pairs(ask: Callable[[str, str], float], method: str, texts: Sequence[str]) -> list[tuple[float, float]]:
    """What `ask` gives for each text with the method and with `none`, in alternating order."""
    found = []
    for number, text in enumerate(texts):
        order = (method, "none") if number % 2 else ("none", method)
        took = {name: ask(name, text) for name in order}
        found.append((took[method], took["none"]))
    return found


def row(name: str, unit: str, found: Sequence[tuple[float, float]], scale: float, *, slower: bool) -> str:
    """A line: both medians, and the median and range of the ratios. Above 1 it is what the method costs."""
    ours, none = (statistics.median(one[i] for one in found) * scale for i in range(2))
    ratios = [a / b if slower else b / a for a, b in found]
    spread = f"{statistics.median(ratios):6.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return f"{name:34}{ours:10.1f}{none:10.1f} {unit:9}{spread}"


def measure(
    url: str, keys: Sequence[str], methods: Sequence[str], texts: Iterator[str], args: argparse.Namespace
) -> None:
    """Print both figures for each method."""
    askers = [Asker(url, key) for key in keys]
    one = askers[0]
    print(f"{'':34}{'method':>10}{'none':>10} {'':9}{'ratio (range)'}")
    for method in methods:
        for asker in askers:  # profiles, indices and weights are there before the clock starts
            asker.ask(method, next(texts))
            asker.ask("none", next(texts))
        asked = [next(texts) for _ in range(args.pairs)]
        found = pairs(one.first, method, asked)
        print(row(f"first token, {method}", "ms", found, 1000, slower=True), flush=True)
        again = pairs(one.first, method, [f"{text}, again" for text in asked])
        print(row("  its subject asked before", "ms", again, 1000, slower=True), flush=True)
        with ThreadPoolExecutor(len(askers)) as pool:

            def together(name: str, text: str) -> float:
                began = time.perf_counter()
                written = pool.map(lambda pair: pair[1].ask(name, f"{text} {pair[0]}"), enumerate(askers))
                tokens: int = sum(written)
                return tokens / (time.perf_counter() - began)

            asked = [next(texts) for _ in range(args.turns)]
            found = pairs(together, method, asked)
        print(row(f"{len(askers)} users at once, {method}", "tokens/s", found, 1, slower=False), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--methods", nargs="*", default=["step-back", "step-back+retrieval"])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--share-prompts", action="store_true", help="as `penname serve` has it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "store.db"
        with Store(db) as store:
            load_sample(store)
            users = [user.id for user in store.users()]
            keys = []
            for number in range(args.users):
                name = f"reader {number}"  # the sample's writers in turn, as many as are wanted
                documents = store.user(users[number % len(users)]).documents()
                store.add_user(name).add(documents)
                edit_profile(store, name, PROFILE)  # to make one takes minutes, and is not measured here
                keys.append(store.create_key(user=name, service=False)[1])
            titles = [document.title for user in users for document in store.user(user).documents()]
        texts = (f"{title}, part {turn}" for turn in range(1, 1000) for title in titles)
        runs = () if args.run is None else (args.run,)
        settings = ServeSettings(
            db=db,
            model=args.model,
            runs=runs,
            per_minute=1_000_000,
            share_prompts=args.share_prompts,
            page=False,
        )
        methods = [*args.methods, *(f"p-dpo:{run.resolve().name}" for run in runs)]
        with started(settings) as (_, address):
            measure(f"{address}/v1", keys, methods, texts, args)


if __name__ == "__main__":
    main()
