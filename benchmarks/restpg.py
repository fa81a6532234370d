"""REST-PG against what it is made of, on real proposals: SFT, with reasoning, ReST-EM, REST-PG by iteration.

Authors' documents before 2024 to learn from, those after mid-2024 to test on (the split of the data);
settings are chosen on the validation split, or on `earlier`, which adds what of the training split no model
learnt from. A task is `abstract` (the beginning of the abstract from the title) or `P-4` (the title from the
abstract). Every run is scored by the reward that trained it, by metrics that did not, and by the mutual
information under the base model, a judge that gave no reward; the control writes from another user's
documents.

    python benchmarks/restpg.py OUT [--task abstract] [--seeds 0] [--split test] [--reward similarity] …

Every part is kept in OUT, and a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from penname.evaluate.arms import plan
from penname.evaluate.benchmarks import Loaded, load
from penname.evaluate.proposals import opening
from penname.evaluate.results import Results
from penname.evaluate.rewards import SumReward, reward_of
from penname.evaluate.run import Settings, evaluate
from penname.lm import load_embedder, load_model
from penname.methods.restpg.config import RestPGConfig
from penname.methods.restpg.examples import Answer, Material
from penname.methods.restpg.format import Format
from penname.methods.restpg.reasoning import Reasoner, ReasoningConfig
from penname.methods.restpg.train import train_rest_pg
from penname.records import Request
from penname.store import Store
from penname.tasks import PromptTexts
from penname.tasks import task as find_task
from penname.train.loop import LoopSettings
from penname.train.optimizer import OptimizerSettings
from penname.train.sft import SFTConfig
from penname.writer import Writer

OPENING = 400  # characters of an abstract: some 90 tokens
METRICS = ("rouge1", "rougeL", "chrf", "similarity", "style", "authorship", "words")
JUDGES = ("pmi",)  # and the reward itself, where it is none of all these
SWAPPED = " (another user's documents)"
console = Console(highlight=False)

Scores = dict[str, dict[str, dict[str, float]]]
"""By way of writing, text and metric."""


def requests(store: Store, data: Path, split: str, task: str, limit: int, seed: int) -> list[Request]:
    """The split's texts to write, drawn by `seed`; a larger limit keeps those of a smaller one.

    `earlier`: the validation split's, then those of the training split.
    """
    if split == "earlier":
        parts = [requests(store, data, one, task, limit, seed) for one in ("validation", "train")]
        return [one for part in parts for one in part]
    loaded = load("proposals", store, data=data, split=split, tasks=["P-4"])
    drawn = random.Random(f"{seed} {split}").sample(list(loaded.requests), len(loaded.requests))
    found = []
    for one in drawn:
        if task == "abstract":
            real = opening(one.input, OPENING)
            one = one.model_copy(update={"task": "abstract", "input": one.gold, "gold": real})
        found.append(one)
    return found[:limit]


def configs(given: argparse.Namespace, seed: int) -> dict[str, RestPGConfig]:
    """The runs, by name."""
    epochs = LoopSettings(
        epochs=given.epochs, batch=given.batch, evaluate_every=10, checkpoint_every=10, seed=seed
    )
    sft = SFTConfig(optimizer=OptimizerSettings(lr=given.lr), loop=epochs)
    full = RestPGConfig(
        reasoning=Format(budget=given.budget),
        iterations=given.iterations,
        samples=given.samples,
        quantile=given.quantile,
        start=given.start,
        answer_tokens=given.answer_tokens,
        seed=seed,
        sft=sft,
    )
    return {
        "rest-em": replace(full, reasoning=None),
        "rest-pg": full,
    }


def train(
    folder: Path,
    config: RestPGConfig,
    writer: Writer,
    found: Sequence[Request],
    reward: SumReward,
    given: argparse.Namespace,
) -> None:
    """One run, unless it is there."""
    if folder.exists():
        return
    materials = [Material.of(draft) for draft in writer.prompts(found)]
    with Progress(console=Console(stderr=True)) as shown:
        task = shown.add_task(folder.name, total=None)

        def tell(stage: str, done: int, total: int, _: Mapping[str, float]) -> None:
            shown.update(task, completed=done, total=total, description=f"{folder.name} {stage}")

        train_rest_pg(
            materials,
            folder,
            task=find_task(given.task),
            config=config,
            reasoner=Reasoner(
                writer.model, PromptTexts.load(), ReasoningConfig(Format(budget=given.budget).room)
            ),
            reward=reward,
            context={"stages": given.context, "k": given.k},
            progress=tell,
            note=lambda text: console.print(f"{folder.name}: {text}"),
        )


def arms(out: Path, given: argparse.Namespace, seed: int) -> dict[str, str]:
    """The methods to compare, by a short name: every iteration of every run."""
    found = {"as it is": given.context}
    for run in given.runs:
        folder = out / f"{run}-{seed}"
        last = len(json.loads((folder / "penname.json").read_text(encoding="utf-8"))["iterations"])
        first = {"rest-em": "sft", "rest-pg": "sft-reasoning"}[run]
        for number in range(last + 1):
            name = f"{run} {number}" if number else first
            place = folder if number == last else folder / "iterations" / str(number)
            found[name] = f"rest-pg:{place}"
    return found


def scored(
    results: Results, names: Mapping[str, str], judges: Mapping[str, SumReward], by_id: Mapping[str, Request]
) -> Scores:
    """What each way of writing got of each text, by its short name."""
    labels = {method: name for name, method in names.items()}
    scores: Scores = {}
    for arm in results.arms:
        rows = [row for row in results.rows if row.arm == arm.name]
        answers = [Answer(by_id[row.example], row.text) for row in rows]
        name = labels[arm.name.split(" · ")[0]] + (SWAPPED if arm.control else "")
        scores[name] = {row.example: dict(row.scores) for row in rows}
        for judge, reward in judges.items():
            for row, value in zip(rows, reward.rewards(answers), strict=True):
                scores[name][row.example][judge] = value
    return scores


def report(scores: Scores, users: Mapping[str, str], columns: Sequence[str]) -> None:
    """Means of each way of writing, and relative differences with intervals over users.

    To fine-tuning, without reasoning and with it, and to the last iteration of ReST-EM.
    """
    last = [name for name in scores if name.startswith("rest-em") and SWAPPED not in name][-1:]
    for beside in [name for name in ("sft", *last, "sft-reasoning") if name in scores]:
        console.print(f"\nMeans, and differences to {beside} in per cent [95 %, bootstrap over users]")
        for name, mine in scores.items():
            cells = "  ".join(_cell(mine, scores[beside], users, one) for one in columns)
            console.print(f"{name:28s} {cells}", soft_wrap=True)


def together(seeds: Mapping[int, Scores]) -> Scores:
    """The scores of several seeds as one: of the ways of writing that each has; a text counts once a seed."""
    first, *others = seeds.values()
    return {
        name: {f"{seed} {text}": row for seed, scores in seeds.items() for text, row in scores[name].items()}
        for name in first
        if all(name in scores for scores in others)
    }


def _cell(
    mine: Mapping[str, Mapping[str, float]],
    base: Mapping[str, Mapping[str, float]],
    users: Mapping[str, str],
    metric: str,
) -> str:
    # An author's manner cannot be told where nothing earlier of the author is left to learn it from.
    mean = np.mean([one[metric] for one in mine.values() if metric in one])
    return f"{metric} {mean:.4g} {_apart(mine, base, users, metric)}"


def _apart(
    mine: Mapping[str, Mapping[str, float]],
    base: Mapping[str, Mapping[str, float]],
    users: Mapping[str, str],
    metric: str,
) -> str:
    """The relative difference of two means, with its interval: over the texts that both have a score of."""
    shared = [name for name in mine if metric in mine[name] and metric in base.get(name, {})]
    people = sorted({users[name] for name in shared})
    sums = np.array(
        [
            [sum(side[name][metric] for name in shared if users[name] == user) for side in (mine, base)]
            for user in people
        ]
    )
    drawn = np.random.default_rng(0).integers(0, len(people), (2000, len(people)))
    total = sums[drawn].sum(axis=1)
    apart = 100 * (total[:, 0] / total[:, 1] - 1)
    here = 100 * (sums[:, 0].sum() / sums[:, 1].sum() - 1)
    return f"({here:+.1f} [{np.quantile(apart, 0.025):+.1f}, {np.quantile(apart, 0.975):+.1f}])"


def main() -> None:
    """Train, write, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="a folder for everything")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/proposals.jsonl.gz"))
    parser.add_argument("--task", choices=("abstract", "P-4"), default="abstract")
    parser.add_argument("--split", choices=("validation", "earlier", "test"), default="test")
    parser.add_argument("--runs", nargs="+", choices=("rest-em", "rest-pg"), default=["rest-em", "rest-pg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--inputs", type=int, default=160, help="texts to learn from")
    parser.add_argument("--held", type=int, default=100, help="texts of the split to write")
    parser.add_argument("--context", default="retrieval")
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--reward", default="similarity")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--quantile", type=float, default=0.75)
    parser.add_argument("--start", choices=("base", "previous"), default="base")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=16, help="prompts of a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=0.1, help="of the texts that are scored")
    parser.add_argument("--answer-tokens", type=int, default=112)
    parser.add_argument("--budget", type=int, default=96, help="tokens of reasoning, cue and bridge")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model, embedder = load_model(), load_embedder()
    texts = PromptTexts.load()
    found: dict[int, Scores] = {}
    owners: dict[str, str] = {}
    for seed in given.seeds:
        with Store(given.out / f"users-{seed}.db") as store:
            to_learn = requests(store, given.data, "train", given.task, given.inputs, seed)
            learnt = {one.id for one in to_learn}
            drawn = requests(store, given.data, given.split, given.task, given.held + given.inputs, 0)
            held = [one for one in drawn if one.id not in learnt][: given.held]  # some of `earlier` are
            console.print(f"seed {seed}: {len(to_learn)} texts to learn from, {len(held)} of {given.split}")

            def reward(spec: str, about: Sequence[Request], store: Store = store) -> SumReward:
                kept = given.out / "rewards.sqlite"
                return reward_of(spec, store=store, requests=about, model=model, embedder=embedder, kept=kept)

            room = given.answer_tokens + given.budget
            writer = Writer(store, model, given.context, k=given.k, max_tokens=room, texts=texts)
            for name, config in configs(given, seed).items():
                if name in given.runs:
                    folder = given.out / f"{name}-{seed}"
                    train(folder, config, writer, to_learn, reward(given.reward, to_learn), given)
            names = arms(given.out, given, seed)
            results = evaluate(
                Loaded("proposals", f"{given.task}", given.split, tuple(held)),
                store,
                model,
                plan(list(names.values()), ["all"], ["swap-user"]),
                given.out / f"{given.split}-{seed}",
                settings=Settings(given.k, given.temperature, given.answer_tokens, seed, METRICS),
                embedder=embedder,
                note=lambda text: console.print(f"note: {text}"),
            )
            asked = [spec for spec in dict.fromkeys([*JUDGES, given.reward]) if spec not in METRICS]
            judges = {spec: reward(spec, held) for spec in asked}
            found[seed] = scored(results, names, judges, {one.id: one for one in held})
            users = {one.id: one.users[0] for one in held}
            owners |= {f"{seed} {text}": user for text, user in users.items()}
            report(found[seed], users, [*METRICS, *judges])
    if len(found) > 1:
        console.print(f"\nSeeds {', '.join(map(str, found))} together")
        report(together(found), owners, [*METRICS, *asked])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
