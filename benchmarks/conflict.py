"""Conflicting tastes: ten users over real proposals; seven want the longer text, three the shorter.

For one title a proposal has a short real text (its description, one sentence) and a long one (the beginning
of its abstract). Each user is shown some titles and prefers one kind throughout, as in the TL;DR experiment
of arXiv 2402.05133. As there, all begins with a model fine-tuned on the task's texts, here on both kinds of
every title to learn from. Compared are that model as it is, with the user's preferences in context, pooled
DPO (it knows no users), P-DPO with individual and with cluster user models, and rewards on fixed features;
the control swaps the user's vector for another user's.

Two questions: of held-out pairs, how many does each put right for each user; and how long is what it writes
for each user. Every part is kept in OUT, and a second call goes on where the first stopped.

    python benchmarks/conflict.py OUT [--split test] [--seed 0] [--ablations] [--held 20] [--titles 12]
        [--pairs 40] [--runs NAME …] [--data ../shared/data]
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import Progress

from penname.evaluate import preferences as benchmark
from penname.evaluate.held import read
from penname.lm import ModelConfig, load_model
from penname.methods.prlhf.adapt import adapt
from penname.methods.prlhf.config import PDPOConfig
from penname.methods.prlhf.featured import train_featured
from penname.methods.prlhf.reward import open_reward
from penname.methods.prlhf.train import train_preferences
from penname.records import Preference, Request
from penname.store import Store
from penname.train.loop import LoopSettings
from penname.train.optimizer import OptimizerSettings
from penname.train.preferences.data import prepare, read_preferences
from penname.train.preferences.prompts import as_completion, as_prompt
from penname.train.sft import SFTConfig, Written, train_sft
from penname.writer import Writer

TASK = "abstract"
USERS, MINORITY = 10, 3
LONGEST = 280  # characters of a text: some 60 tokens
DATES = {
    "train": ("0", "2024-01-01"),
    "validation": ("2024-01-01", "2024-07-01"),
    "test": ("2024-07-01", "9"),
}
TASTES = {
    "majority": "likes texts that tell the whole story",
    "minority": "likes texts of one short sentence",
}
# Chosen on the validation split: rates, α, and what keeps texts texts: without an anchor, or a sparse gap,
# what is written for the three falls to pieces. The paper's α of 0.5 is among the ablations.
CONFIG = PDPOConfig(
    alpha=1.0,
    optimizer=OptimizerSettings(lr=5e-4, user_lr=0.01),
    loop=LoopSettings(epochs=1, batch=8, evaluate_every=15, checkpoint_every=15),
)
ANCHORED = replace(CONFIG, anchor=1.0, loop=replace(CONFIG.loop, epochs=1.5))
LEANING = replace(
    CONFIG,
    beta=0.15,
    sparse=5,
    anchor=0.02,
    lean=2.0,
    optimizer=OptimizerSettings(lr=5e-4, user_lr=0.005),
    loop=replace(CONFIG.loop, epochs=6),
)
SFT = SFTConfig(
    optimizer=OptimizerSettings(lr=1e-3),
    loop=LoopSettings(epochs=3, batch=16, evaluate_every=10, checkpoint_every=10),
)
RUNS = {
    "individual leaning": LEANING,
    "individual sparse": replace(LEANING, lean=0.0),
    "individual anchored": ANCHORED,
    "individual": CONFIG,
    "individual two passes": replace(CONFIG, loop=replace(CONFIG.loop, epochs=2)),
    "pooled": replace(CONFIG, users="none"),
    "cluster": replace(CONFIG, users="cluster"),
}
ABLATIONS = {
    "alpha 0.5": replace(CONFIG, alpha=0.5),
    "1 row": replace(CONFIG, user_tokens=1),
    "2 clusters": replace(CONFIG, users="cluster", clusters=2),
    "individual and told": CONFIG,
}
console = Console(highlight=False)
Config = TypeVar("Config", PDPOConfig, SFTConfig)


@dataclass(frozen=True)
class Texts:
    """Two real texts of one title."""

    title: str
    short: str
    long: str


def beginning(text: str) -> str:
    """The text, or as many of its first sentences as fit into `LONGEST` characters."""
    text = " ".join(text.split())
    if len(text) <= LONGEST:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", text[:LONGEST])]
    if ends and ends[-1] > LONGEST // 3:
        return text[: ends[-1]]
    return text[:LONGEST].rsplit(" ", 1)[0] + "."


def proposals(folder: Path, split: str) -> Iterator[Texts]:
    """The titles of a split whose two texts differ clearly in length."""
    first, last = DATES[split]
    with gzip.open(folder / "proposals.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if not first <= row["created"] < last or not row["description"]:
                continue
            short, long = beginning(row["description"]), beginning(row["abstract"])
            if len(long) > 1.6 * len(short) + 40:
                yield Texts(row["title"], short, long)


def rows(pool: Sequence[Texts], n: int, chance: random.Random, *, told: bool = False) -> list[dict[str, Any]]:
    """`n` titles for each user, drawn by lot, with the user's preference of each."""
    found = []
    for number in range(USERS):
        group = "majority" if number < USERS - MINORITY else "minority"
        for texts in chance.sample(pool, min(n, len(pool))):
            pair = (texts.long, texts.short) if group == "majority" else (texts.short, texts.long)
            row = {"user_id": f"user-{number}", "prompt": texts.title, "group": group}
            row |= {"chosen": pair[0], "rejected": pair[1]}
            found.append(row | ({"user_text": TASTES[group]} if told else {}))
    return found


def put(file: Path, found: Sequence[dict[str, Any]]) -> Path:
    """The rows as JSON Lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    return file


def base(out: Path, pool: Sequence[Texts], seed: int) -> str:
    """The embedded model fine-tuned on both texts of every title to learn from: it takes no side."""
    folder = out / "base"
    if not folder.exists():
        written = [
            Written(as_prompt(one.title, "completion", task=TASK), as_completion(text, "completion"))
            for one in pool
            for text in (one.short, one.long)
        ]
        with Progress(console=Console(stderr=True)) as shown:
            task = shown.add_task("fine-tuning", total=None)
            train_sft(
                written,
                folder,
                config=seeded(SFT, seed),
                progress=lambda done, total, _: shown.update(task, completed=done, total=total),
                note=console.print,
            )
    return str(folder / "model")


def train(out: Path, name: str, config: PDPOConfig, data: Path, model: str) -> Path:
    """One run of P-DPO, unless it is there; they share the reference's log-probabilities."""
    folder = out / "runs" / name.replace(" ", "-")
    if folder.exists():
        return folder
    started = time.perf_counter()
    with Progress(console=Console(stderr=True)) as shown:
        task = shown.add_task(name, total=None)
        train_preferences(
            "p-dpo",
            prepare(read_preferences(data), users=config.users != "none"),
            folder,
            model=model,
            config=config,
            task=TASK,
            reference=out / "reference.sqlite",
            progress=lambda done, total, _: shown.update(task, completed=done, total=total),
        )
    seconds = time.perf_counter() - started
    console.print(f"trained {name} in {seconds:.0f} s")
    return folder


def seeded(config: Config, seed: int) -> Config:
    """The same, with another seed."""
    return replace(config, loop=replace(config.loop, seed=seed))


def rewards(out: Path, kind: Any, data: Path, seed: int) -> Path:
    """One run of P-RM on fixed features."""
    folder = out / "runs" / f"reward-{kind}"
    if not folder.exists():
        from penname.methods.prlhf.lowrank import LowRankConfig

        config = LowRankConfig(seed=seed)
        train_featured(prepare(read_preferences(data)), folder, users=kind, config=config, task=TASK)
    return folder


def order(
    out: Path, held: Path, known: Path, methods: Sequence[str], controls: Sequence[str], model: str
) -> None:
    """How many held-out pairs each method puts right, for all users and for each."""
    found = read(str(held), history=str(known), task=TASK)
    results = benchmark.evaluate(
        found,
        ModelConfig(model),
        benchmark.plan(list(methods), list(controls)),
        out,
        note=lambda text: console.print(f"note: {text}"),
    )
    console.print("\nPairs put right, per cent (95 % interval, bootstrap over users)")
    for share in benchmark.shares(results):
        console.print(
            f"{share.part or 'all':34s} {Path(share.arm).name:28s} {share.right:6.1%} "
            f"[{share.low:.1%}, {share.high:.1%}]  {share.pairs} pairs"
        )
    right: dict[str, dict[str, list[float]]] = {}
    for row in results.rows:
        right.setdefault(row.arm, {}).setdefault(row.users[0], []).append(row.scores["preferred"])
    console.print("\nBy user, the three last")
    for arm, users in right.items():
        shares = " ".join(f"{statistics.mean(users[user]):.2f}" for user in sorted(users))
        console.print(f"{Path(arm).name:34s} {shares}")


def lengths(
    out: Path, runs: Sequence[tuple[str, str]], pool: Sequence[Texts], n: int, seed: int, base: str
) -> None:
    """Words of what each method writes for each user, from the same `n` titles."""
    titles = [texts.title for texts in random.Random(seed).sample(list(pool), n)]
    kept = out / "lengths.json"
    known: dict[str, list[list[int]]] = json.loads(kept.read_text()) if kept.is_file() else {}
    model = load_model(base)
    with Store(out / "users.db") as store:
        for number in range(USERS):
            store.add_user(f"user-{number}")
        for name, method in runs:
            if name in known:
                continue
            writer = Writer(store, model, method, temperature=0.7, max_tokens=120, seed=seed)
            requests = [
                Request(task=TASK, input=title, users=(f"user-{number}",))
                for number in range(USERS)
                for title in titles
            ]
            drafts = writer.write_many(requests)
            words = [len(draft.text.split()) for draft in drafts]
            known[name] = [words[number * n : (number + 1) * n] for number in range(USERS)]
            kept.write_text(json.dumps(known))
    chance = np.random.default_rng(seed)
    console.print(f"\nWords of a text, {n} titles for each user (95 % interval, bootstrap over titles)")
    for name, _ in runs:
        words = np.array(known[name], dtype=float)
        long, short = words[: USERS - MINORITY].mean(0), words[USERS - MINORITY :].mean(0)
        drawn = chance.integers(0, n, (2000, n))
        apart = (long - short)[drawn].mean(1)
        console.print(
            f"{name:28s} the seven {_mean(long, drawn)}  the three {_mean(short, drawn)}  difference "
            f"{(long - short).mean():.1f} [{np.quantile(apart, 0.025):.1f}, {np.quantile(apart, 0.975):.1f}]"
            f"  by user {' '.join(f'{statistics.mean(some):.0f}' for some in known[name])}"
        )


def newcomers(out: Path, run: Path, pool: Sequence[Texts], seed: int) -> None:
    """New users of opposite tastes, in three draws: fitted to five preferences, fifteen pairs to order."""
    copied = out / "adapted"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(run, copied)
    console.print(f"\nNewcomers to {run.name} with 5 preferences: of 15 further pairs in the right order")
    with Store(out / "newcomers.db") as store:
        for number in range(seed + 1, seed + 4):
            titles = random.Random(number).sample(list(pool), 20)
            for taste in ("short", "long"):
                user = f"{taste}-{number}"
                opened = store.add_user(user)
                pairs = [
                    (one, *((one.short, one.long) if taste == "short" else (one.long, one.short)))
                    for one in titles
                ]
                for texts, chosen, rejected in pairs[:5]:
                    opened.prefer(
                        Preference(
                            user=user, kind="choice", prompt=texts.title, chosen=chosen, rejected=rejected
                        )
                    )
                before = _right(copied, user, pairs[5:])
                found = adapt(copied, user, store)
                after = _right(copied, user, pairs[5:])
                console.print(f"{user:8s} before {before}, after {after}; {found.seconds:.1f} s")


def _right(run: Path, user: str, pairs: Sequence[tuple[Texts, str, str]]) -> int:
    found = open_reward(run).rewards(
        [texts.title for texts, _, _ in pairs for _ in range(2)],
        [text for _, chosen, rejected in pairs for text in (chosen, rejected)],
        [user] * (2 * len(pairs)),
    )
    return sum(chosen > rejected for chosen, rejected in zip(found[::2], found[1::2], strict=True))


def _mean(values: np.ndarray, drawn: np.ndarray) -> str:
    means = values[drawn].mean(1)
    return f"{values.mean():.1f} [{np.quantile(means, 0.025):.1f}, {np.quantile(means, 0.975):.1f}]"


def main() -> None:
    """Build, train, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="a folder for everything")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--pairs", type=int, default=40, help="preferences of each user to learn from")
    parser.add_argument("--held", type=int, default=20, help="held-out pairs of each user")
    parser.add_argument("--titles", type=int, default=12, help="titles written for each user")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="those of P-DPO")
    parser.add_argument("--ablations", action="store_true", help="train the ablations too, and compare them")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pools = {split: list(proposals(given.data, split)) for split in ("train", given.split)}
    files = {}
    for told in (False, True):  # the same lots, with and without text about the user
        chance = random.Random(given.seed)
        names = ("train-told", "held-told") if told else ("train", "held")
        for name, split, n in zip(names, ("train", given.split), (given.pairs, given.held), strict=True):
            files[name] = put(given.out / f"{name}.jsonl", rows(pools[split], n, chance, told=told))
    console.print(f"{len(pools['train'])} titles to learn from, {len(pools[given.split])} of {given.split}")
    model = base(given.out, pools["train"], given.seed)
    runs = {
        name: train(given.out, name, seeded(RUNS[name], given.seed), files["train"], model)
        for name in given.runs
    }
    methods = ["none", "preferences-in-context", *(f"p-dpo:{folder}" for folder in runs.values())]
    kinds = ("pooled", "alone", "low-rank")
    methods += [f"p-rm:{rewards(given.out, kind, files['train'], given.seed)}" for kind in kinds]
    order(given.out / "pairs", files["held"], files["train"], methods, ["swap-vector"], model)
    for name in ("individual leaning", "individual two passes"):
        if name in runs:
            newcomers(given.out, runs[name], pools[given.split], given.seed)
    written = [("as it is", "none"), *((name, f"p-dpo:{folder}") for name, folder in runs.items())]
    lengths(given.out, written, pools[given.split], given.titles, given.seed, model)
    if given.ablations:
        plain, told = [], []
        for name, config in ABLATIONS.items():
            side = "train-told" if "told" in name else "train"
            folder = train(given.out, name, seeded(config, given.seed), files[side], model)
            (told if side == "train-told" else plain).append(f"p-dpo:{folder}")
        order(given.out / "ablations", files["held"], files["train"], plain, ["swap-vector"], model)
        order(given.out / "told", files["held-told"], files["train-told"], ["none", *told], [], model)


if __name__ == "__main__":
    main()
