"""PIT against what it is made of: do drafts get better, by a judge that none of it was trained on?

People's first wordings of proposals, and what they made of them; the base model's own drafts, and the real
texts. From those before 2024 half the proposals are PIT's to learn from (revisions, real texts that are
spoilt by a rule, drafts of the base model) and half the judge's alone, a plain reward model. Those of the
split are improved, by

    original          left as it is
    real              what its author made of it, or the real text: how much the judge knows
    self-refine       critique and rewriting by prompt, by rounds
    sft               the first stage of PIT alone, one round
    pit, N rounds     N rounds, every one taken; pit, stopped: the gap reward says when to stop; with
                      --candidates the gap reward picks each round's text
    first, second     PIT with one of the two stages of its curriculum, stopped
    best of N         drafts of the base model from the title alone, the one with the largest gap reward
    best of N, plain  the same by a plain reward model of PIT's own pairs (step `plain`)

and compared with the original and with each other. A tie is half a win, and a text that is the same is a tie.
Intervals are of the bootstrap over proposals.

    python benchmarks/revisions.py OUT [--steps data judge sft gap rl rl-first rl-second evaluate]
        [--split validation|test] [--seed 0] [--cases 60] [--data ../shared/data]

Each step is kept in OUT, and goes on where it was stopped; what is trained is not trained again, so other
sizes want another OUT. OUT/pit.jsonl is in TRL's form, for `penname train pit --preferences` too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from penname.evaluate.metrics import chrf, similarity
from penname.lm import EMBEDDED, load_embedder, load_model
from penname.lm.embedder import Embedder
from penname.methods.pit.config import RLConfig
from penname.methods.pit.data import references, revisions
from penname.methods.pit.form import Case, Form
from penname.methods.pit.gap import GapConfig, train_gap
from penname.methods.pit.rl import train_rl
from penname.methods.pit.thirds import thirds
from penname.methods.prlhf.config import PDPOConfig
from penname.methods.prlhf.rerank import Reward
from penname.methods.prlhf.reward import open_reward
from penname.methods.prlhf.train import train_preferences
from penname.records import digest
from penname.tasks import PromptTexts
from penname.train.folder import CARD
from penname.train.loop import LoopSettings
from penname.train.optimizer import OptimizerSettings
from penname.train.preferences.data import Prepared, prepare, read_preferences
from penname.train.sft import SFTConfig, train_sft
from revisions_data import (
    JUDGED,
    KINDS,
    Example,
    Side,
    Source,
    Text,
    corruptions,
    drafts,
    put,
    take,
    to_draft,
)
from revisions_report import report, share, win
from revisions_systems import systems

STEPS = ("data", "judge", "sft", "gap", "rl", "rl-first", "rl-second", "plain", "evaluate")
TOGETHER = 20  # cases that are improved together, and then kept
console = Console(highlight=False, markup=False, width=160)


@contextmanager
def shown(name: str) -> Iterator[Callable[..., None]]:
    """A bar for what takes long, and how long it took."""
    started = time.perf_counter()
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task(name, total=None)
        yield lambda done, total, *_: bars.update(bar, completed=done, total=total)
    console.print(f"{name}: {time.perf_counter() - started:.0f} s")


def data(out: Path, given: argparse.Namespace) -> None:
    """The pairs to learn from, for PIT and for the judge, and those to evaluate on."""
    source = Source.read(given.data, given.max_words)
    model = load_model(given.model)
    sides = source.sides(given.seed)
    lengths = lengths_of(sides)

    def pairs(side: Side, n_corruptions: int, n_drafts: int, name: str) -> list[Example]:
        with shown(f"drafts of {name}") as tell:
            chosen = to_draft(side.texts, n_drafts)
            own = list(drafts(chosen, lengths, model, out / "drafts.jsonl", given.seed, tell))
        found = [*side.revisions, *corruptions(side.texts, n_corruptions, given.seed), *own]
        random.Random(given.seed).shuffle(found)
        return found

    made = {
        "pit": pairs(sides["pit"], given.corruptions, given.drafts, "pit"),
        "judge": pairs(sides["judge"], given.judge_corruptions, given.judge_drafts, "judge"),
    }
    for split in dict.fromkeys(("validation", given.split)):
        made[split] = pairs(source.held(split), given.cases, given.cases, split)
    for name, found in made.items():
        put(out / f"{name}.jsonl", found)
        counts = ", ".join(f"{sum(one.kind == kind for one in found)} {kind}" for kind in KINDS)
        shorter = sum(one.shorter for one in found)
        console.print(f"{name}: {len(found)} pairs ({counts}); in {shorter} the better text is the shorter")


def lengths_of(sides: Mapping[str, Side]) -> list[int]:
    """Words of the real abstracts to learn from."""
    texts = [one for side in sides.values() for one in side.texts]
    return [len(one.text.split()) for one in texts if one.section == "abstract"]


def loop(given: argparse.Namespace, epochs: float) -> LoopSettings:
    """Training in batches of 16, evaluated and kept often."""
    return LoopSettings(epochs=epochs, batch=16, evaluate_every=10, checkpoint_every=5, seed=given.seed)


def plain_reward(folder: Path, pairs: Path, given: argparse.Namespace) -> None:
    """A reward model that knows neither users nor drafts."""
    with shown(folder.name) as tell:
        train_preferences(
            "p-rm",
            prepare(read_preferences(pairs), users=False),
            folder,
            model=given.model,
            config=PDPOConfig(
                users="none",
                optimizer=OptimizerSettings(lr=given.judge_lr),
                loop=loop(given, given.judge_epochs),
            ),
            progress=tell,
            note=console.print,
        )


def judge(out: Path, given: argparse.Namespace) -> None:
    """The judge, and how many validation pairs it puts right."""
    if not (out / "judge").exists():
        plain_reward(out / "judge", out / "judge.jsonl", given)
    accuracy(open_reward(out / "judge"), take(out / "validation.jsonl"))


def accuracy(reward: Reward, held: Sequence[Example]) -> None:
    """Print how many of the pairs the reward puts right, by kind and where length would be wrong."""
    texts = [text for one in held for text in (one.chosen, one.rejected)]
    prompts = [one.prompt for one in held for _ in range(2)]
    found = reward.rewards(prompts, texts, [None] * len(texts))
    right = [win(better, worse) for better, worse in zip(found[::2], found[1::2], strict=True)]
    console.print("\nValidation pairs that the judge puts right, per cent [95 %]")
    for kind in ("all", *KINDS):
        for which in ("", ", the better is the shorter"):
            values, ids = [], []
            for value, one in zip(right, held, strict=True):
                if kind in ("all", one.kind) and (not which or one.shorter):
                    values.append(value)
                    ids.append(one.id)
            if values:
                console.print(f"{kind + which:42s} {share(values, ids)}  {len(values)} pairs")


def parts(out: Path, given: argparse.Namespace) -> list[Prepared]:
    """PIT's pairs in its three parts, no prompt in two."""
    prepared = prepare(read_preferences(out / "pit.jsonl"), users=False)
    return [replace(part, pairs=part.pairs[: given.train_limit]) for part in thirds(prepared, given.seed)]


def form(given: argparse.Namespace) -> Form:
    """How cases are put to the model."""
    return Form(load_model(given.model).shape, PromptTexts.load())


def sft(out: Path, given: argparse.Namespace) -> None:
    """The first stage: from the worse text to the better one."""
    part = parts(out, given)[0]
    config = SFTConfig(optimizer=OptimizerSettings(lr=given.sft_lr), loop=loop(given, given.sft_epochs))
    written = revisions(part, form(given))
    with shown(f"sft on {len(part)} pairs") as tell:
        about = {"shape": load_model(given.model).shape}
        train_sft(
            written,
            out / "sft",
            model=given.model,
            config=config,
            method="pit-sft",
            about=about,
            progress=tell,
            note=console.print,
        )


def gap(out: Path, given: argparse.Namespace) -> None:
    """The second stage: by how much a text is better than a draft."""
    pairs = parts(out, given)[1].pairs
    settings = replace(loop(given, given.gap_epochs), batch=given.gap_batch)
    config = GapConfig(optimizer=OptimizerSettings(lr=given.gap_lr), loop=settings)
    with shown(f"gap on {len(pairs)} pairs") as tell:
        train_gap(pairs, out / "gap", model=given.model, config=config, progress=tell, note=console.print)


def rl(out: Path, given: argparse.Namespace, name: str) -> None:
    """The third stage, with the whole curriculum or with one half of it."""
    part, known = parts(out, given)[2], take(out / "pit.jsonl")
    if given.rl_even:
        part = evenly(part, known)
    first = references(part)[: given.rl_cases] if name != "rl-second" else []
    second = sampled(out, given, part, known)[: given.rl_cases] if name != "rl-first" else []
    settings = LoopSettings(epochs=given.rl_epochs, batch=given.rl_batch, checkpoint_every=2, seed=given.seed)
    config = RLConfig(
        samples=given.rl_samples,
        max_tokens=2 * given.max_words,
        beta=given.beta,
        optimizer=OptimizerSettings(lr=given.rl_lr, warmup=10),
        loop=settings,
    )
    with shown(f"{name} on {len(first)} and {len(second)} drafts") as tell:
        train_rl(
            first,
            second,
            out / name,
            sft=out / "sft",
            gap=out / "gap",
            config=config,
            progress=lambda _, done, total, figures: tell(done, total, figures),
            note=console.print,
        )


def evenly(part: Prepared, known: Sequence[Example]) -> Prepared:
    """The part's pairs, one of each kind in turn: as long as there are some, none has more than another."""
    kinds = {(one.prompt, one.rejected): one.kind for one in known}
    waiting = {
        kind: [pair for pair in part.pairs if kinds[pair.prompt, pair.rejected] == kind] for kind in KINDS
    }
    turns = zip_longest(*waiting.values())
    return replace(part, pairs=tuple(pair for turn in turns for pair in turn if pair))


def sampled(out: Path, given: argparse.Namespace, part: Prepared, known: Sequence[Example]) -> list[Case]:
    """The base model's drafts for the part's prompts."""
    found = {one.prompt: one for one in known}
    wanted = dict.fromkeys(str(pair.prompt) for pair in part.pairs)
    texts = [Text(one.id, one.title, one.section, one.chosen) for one in map(found.__getitem__, wanted)]
    texts = texts[: given.rl_cases]
    lengths = lengths_of(Source.read(given.data, given.max_words).sides(given.seed))
    with shown("drafts to improve last") as tell:
        made = list(drafts(texts, lengths, load_model(given.model), out / "drafts.jsonl", given.seed, tell))
    return [Case(one.prompt, one.rejected) for one in made]


def evaluate(out: Path, given: argparse.Namespace) -> None:
    """Improve the cases by every system, score what came, and compare."""
    held = take(out / f"{given.split}.jsonl")
    cases = [
        one
        for kind in JUDGED
        for one in sorted((one for one in held if one.kind == kind), key=lambda one: one.lot)[: given.cases]
    ]
    judge, embedder = open_reward(out / "judge"), load_embedder()
    file = out / f"rows-{given.split}.jsonl"
    known: list[dict[str, Any]] = []
    if file.is_file():
        known = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    waiting = systems(out, given)
    if given.systems:
        if unknown := set(given.systems) - set(waiting):
            raise SystemExit(f"--systems: {', '.join(sorted(unknown))}; there are: {', '.join(waiting)}")
        waiting = {name: waiting[name] for name in dict.fromkeys(("original", *given.systems))}
    for name in list(waiting):
        folders, system = waiting.pop(name)  # its models are let go when the next one's turn comes
        cards = [(folder / CARD).read_text("utf-8") for folder in (out / "judge", *folders)]
        settings = [given.temperature, given.seed, given.rounds, given.best_of, given.candidates]
        stamps = {one.key: digest([cards, settings, one.rejected, one.chosen]) for one in cases}
        mine = [row for row in known if row["made_by"] == name and row["stamp"] == stamps.get(row["key"])]
        done = {row["key"] for row in mine}
        lacking = [one for one in cases if one.key not in done]
        with shown(name) as tell:
            for start in range(0, len(lacking), TOGETHER):
                batch = lacking[start : start + TOGETHER]
                made = []
                for variant, texts in system(batch).items():
                    for one, scores in zip(batch, scored(batch, texts, judge, embedder), strict=True):
                        place = {"made_by": name, "system": variant, "stamp": stamps[one.key], "key": one.key}
                        made.append({**place, "id": one.id, **scores})
                with file.open("a", encoding="utf-8") as stream:
                    stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
                mine += made
                tell(start + len(batch), len(lacking))
        for row in mine:
            rows.setdefault(row["system"], {})[row["key"]] = row
    told = "\n".join(
        report(rows, kind, [one.key for one in cases if kind in (one.kind, "both")])
        for kind in (*JUDGED, "both")
    )
    console.print(told, soft_wrap=True)
    (out / f"report-{given.split}.md").write_text(told, encoding="utf-8")


def scored(
    cases: Sequence[Example], texts: Sequence[str], judge: Reward, embedder: Embedder
) -> Iterator[dict[str, Any]]:
    """What is known of each text: the judge's reward, how near it is to the real text, its length."""
    rewards = judge.rewards([one.prompt for one in cases], texts, [None] * len(cases))
    pairs = [(text, one.chosen) for one, text in zip(cases, texts, strict=True)]
    near, characters = similarity(pairs, embedder), chrf(pairs)
    for text, reward, one, other in zip(texts, rewards, near, characters, strict=True):
        words = len(text.split())
        yield {"text": text, "reward": reward, "similarity": one, "chrf": other, "words": words}


def main() -> None:
    """Take the steps that were asked for, in their order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="a folder for everything")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[one for one in STEPS if one != "plain"])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PENNAME_DATA", "../shared/data")))
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-words", type=int, default=120, help="of every text, whole sentences")
    for side, name in (("", "PIT"), ("judge-", "the judge")):
        parser.add_argument(f"--{side}corruptions", type=int, default=300, help=f"spoilt texts for {name}")
        parser.add_argument(f"--{side}drafts", type=int, default=150, help=f"the model's drafts for {name}")
    parser.add_argument("--cases", type=int, default=40, help="drafts of each kind to improve")
    parser.add_argument("--judge-epochs", type=float, default=2.0)
    parser.add_argument("--judge-lr", type=float, default=5e-4)
    parser.add_argument("--train-limit", type=int, default=None, help="pairs of each third")
    parser.add_argument("--sft-epochs", type=float, default=2.0)
    parser.add_argument("--sft-lr", type=float, default=5e-4)
    parser.add_argument("--gap-epochs", type=float, default=2.0)
    parser.add_argument("--gap-lr", type=float, default=1e-3)
    parser.add_argument("--gap-batch", type=int, default=8)
    parser.add_argument("--rl-cases", type=int, default=64, help="drafts of each stage of the curriculum")
    parser.add_argument("--rl-epochs", type=float, default=1.0)
    parser.add_argument("--rl-samples", type=int, default=4)
    parser.add_argument("--rl-batch", type=int, default=4)
    parser.add_argument("--rl-lr", type=float, default=2e-4)
    parser.add_argument(
        "--rl-even", action="store_true", help="learn from one pair of each kind in turn, else as they come"
    )
    parser.add_argument("--beta", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.5, help="of improved texts")
    parser.add_argument("--best-of", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=1, help="texts of each round of PIT to choose from")
    parser.add_argument("--systems", nargs="+", help="those to evaluate, beside the original; default: all")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        if step in given.steps:
            console.print(f"\n{step}")
            take_step(step, given.out, given)


def take_step(step: str, out: Path, given: argparse.Namespace) -> None:
    """One step, unless its result is there."""
    alone = {"data": data, "judge": judge, "evaluate": evaluate}
    if step in alone:
        alone[step](out, given)
    elif (out / step).exists():
        console.print(f"{out / step} is there")
    elif step == "plain":
        plain_reward(out / "plain", out / "pit.jsonl", given)
    elif step == "sft":
        sft(out, given)
    elif step == "gap":
        gap(out, given)
    else:
        rl(out, given, step)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
