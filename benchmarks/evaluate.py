"""What does batching gain an evaluation, and how much of a run is not the model's work?

    python benchmarks/evaluate.py [--data proposals.jsonl.gz] [--limit 4] [--tokens 64] [--pairs 3]

Methods none and step-back+retrieval, for one author and for all, each beside the control swap-user, on the
built-in sample or on the validation split of the proposals: `evaluate` against a plain loop that takes one
prompt after the other, `generate([prompt])` and then `score([prompt], [real text])` for every arm and
example, with the same prompts and metrics. Both find the profiles in the store, and run in turn, the first of
them changing; the figure is the median of the pairs' ratios. Drafts that two arms have in common are written
once by `evaluate`, and each time by the loop.

The model is loaded anew before each run, so that none finds what another has read. A first run, in a store
without profiles, says which share of the time is no model's (the models': profile, write, score, and embed,
the sentence embeddings of a metric). Last:
`choose` among 8 options after a prompt of about 600 tokens, where the options share one reading of the
prompt, against as many prompts that share nothing. The peak memory is that of the process so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median

from penname.evaluate import Arm, Loaded, Results, Settings, evaluate, load, plan
from penname.evaluate.arms import Cast, personal
from penname.evaluate.metrics import bits_per_byte
from penname.evaluate.scoring import Scorer, wanted
from penname.lm import LanguageModel, Sampling, load_embedder, load_model
from penname.retrieve import retriever
from penname.retrieve.base import Embedder
from penname.store import Store
from penname.tasks import continuation
from penname.tasks import task as find_task
from penname.writer import DEFAULT_METHOD, Writer, finished, stages

MODEL_WORK = ("profile", "write", "score", "embed")
OPTIONS = 8
PROMPT_TOKENS = 600


class Bench:
    """What both ways of evaluating are given."""

    def __init__(
        self, loaded: Loaded, store: Store, model: LanguageModel, embedder: Embedder, tokens: int
    ) -> None:
        self.loaded, self.store, self.model, self.embedder = loaded, store, model, embedder
        self.settings = Settings(max_tokens=tokens)
        self.arms = plan(["none", DEFAULT_METHOD], ["one", "all"], ["swap-user"])

    def batched(self, folder: Path) -> Results:
        """penname's way."""
        return evaluate(
            self.loaded,
            self.store,
            self.model,
            self.arms,
            folder,
            settings=self.settings,
            embedder=self.embedder,
        )

    def one_by_one(self, folder: Path) -> list[dict[str, float]]:
        """The plain loop; returns the scores of each draft."""
        pool = self.loaded.pool or self.loaded.requests
        cast = Cast(self.store, pool, self.settings.k, self.settings.seed)
        scorer = Scorer(self.store, self.embedder, pool, cast)
        writers = {arm.method: self._writer(arm) for arm in self.arms}
        found = []
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for arm in self.arms:
                for example in self.loaded.requests:
                    task, writer, gold = find_task(example.task), writers[arm.method], example.gold or ""
                    asked = cast.asked(arm, example, task)
                    if asked is None:
                        continue
                    [draft] = writer.prompts([asked[0]], [asked[1]])
                    [[answer]] = self.model.generate([draft.prompt], 1, writer.sampling(task))
                    draft = finished(draft, answer)
                    likely = self.model.score([draft.prompt], [continuation(gold, self.model.shape)])
                    [scores] = scorer.texts(task, [(example, draft.text)], [wanted(task, (), False)])
                    scores |= scorer.similarities([(example, draft.text)])[0]
                    found.append({**scores, "bits_per_byte": bits_per_byte(likely, [gold])[0]})
                    file.write(json.dumps([arm.name, example.id, draft.text, found[-1]]) + "\n")
        return found

    def _writer(self, arm: Arm) -> Writer:
        named = stages(arm.method).get("retrieval") if personal(arm.method) else ""
        return Writer(
            self.store,
            self.model,
            arm.method,
            search=retriever(named or "lexical", self.settings.seed, self.embedder),
            k=self.settings.k,
            max_tokens=self.settings.max_tokens,
        )


def warmed(name: str | None) -> LanguageModel:
    """The model, loaded, and nothing else read by it."""
    model = load_model(name)
    model.generate(["One, two,"], 1, Sampling(max_tokens=2))
    model.score(["One,"], [" two"])
    return model


def timed(work: Callable[[Path], Sequence[dict[str, float]]]) -> tuple[float, int, float]:
    """Seconds, drafts, and the mean bits per byte: the two ways must agree on it."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        scores = work(Path(folder))
        took = time.perf_counter() - started
    return took, len(scores), fmean(row["bits_per_byte"] for row in scores)


def first_run(bench: Bench) -> None:
    """One run from nothing, profiles included: where its time goes."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        results = bench.batched(Path(folder))
        took = time.perf_counter() - started
    model = sum(results.seconds.get(stage, 0.0) for stage in MODEL_WORK)
    parts = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in results.seconds.items())
    print(f"{bench.loaded.data}: {len(bench.loaded.requests)} examples, {len(results.rows)} drafts")
    print(f"first run: {took:.1f} s ({parts}); not a model's: {1 - model / took:.1%}")
    print(f"peak memory after it: {peak_mib():.0f} MiB", flush=True)


def in_turn(bench: Bench, pairs: int) -> None:
    """Both ways, one after the other, and the median of the ratios."""
    ways = {
        "batched": lambda folder: [row.scores for row in bench.batched(folder).rows],
        "one by one": bench.one_by_one,
    }
    ratios = []
    for number in range(pairs):
        took = {}
        for name in sorted(ways, reverse=bool(number % 2)):
            bench.model = warmed(bench.model.name)
            took[name], drafts, bits = timed(ways[name])
            print(f"{name:12}{took[name]:8.1f} s{drafts / took[name]:8.2f} drafts/s   bits/byte {bits:.4f}")
        ratios.append(took["one by one"] / took["batched"])
        print(f"{'ratio':12}{ratios[-1]:8.2f}", flush=True)
    print(f"batched is {median(ratios):.2f} times as fast (median of {pairs})")


def choosing(model: LanguageModel, texts: Sequence[str], pairs: int = 5) -> None:
    """`choose` with one reading of the prompt, and scoring the same options each after a whole reading."""
    words = " ".join(texts).split()
    while model.count(" ".join(words)) > PROMPT_TOKENS:
        words = words[: int(len(words) * 0.98)]
    prompt = " ".join(words)
    options = [f" {text[:60]}" for text in texts[-OPTIONS:]]
    # Another first word each: nothing is left to share, and all else is the same.
    apart = [f"{chr(65 + number)} {prompt}" for number in range(OPTIONS)]
    model.choose(["One,"], [[" two", " three"]])
    ratios = []
    for number in range(pairs):
        # A beginning that nothing has begun with yet, each time.
        started = time.perf_counter()
        model.choose([f"{number} {prompt}"], [options])
        middle = time.perf_counter()
        model.score([f"{number} {each}" for each in apart], options)
        ratios.append((time.perf_counter() - middle) / (middle - started))
    print(
        f"choose among {OPTIONS} options after {model.count(prompt)} tokens: {median(ratios):.2f} times as "
        f"fast as with a reading of the prompt for each (median of {pairs})"
    )


def peak_mib() -> float:
    """The largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None)
    parser.add_argument("--data", type=Path, default=None, help="the proposals' file; default: the sample")
    parser.add_argument("--limit", type=int, default=4, help="examples of each task")
    parser.add_argument("--tokens", type=int, default=64, help="of a draft at most")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    model, embedder = warmed(options.model), load_embedder()
    embedder.embed(["one"])
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder, "bench.db")) as store:
        name, split = ("proposals", "validation") if options.data else ("sample", None)
        loaded = load(name, store, data=options.data, split=split, limit=options.limit)
        bench = Bench(loaded, store, model, embedder, options.tokens)
        first_run(bench)
        in_turn(bench, options.pairs)
        choosing(model, [one.text for user in store.users() for one in store.user(user.id).documents()][:40])
    print(f"peak memory: {peak_mib():.0f} MiB")


if __name__ == "__main__":
    main()
