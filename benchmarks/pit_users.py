"""Does a text become what *its user* would make of it? PIT with ten users whose goals conflict.

The texts and users are those of benchmarks/conflict.py: for one title a proposal has a short real text and a
long one; seven users want the longer, three the shorter. Each pair is an edit: the draft is the one that its
user does not want, the revision the other. Text about the user, one sentence as a profile holds it, stands in
the prompt of fine-tuning and of the gap reward.

Two questions on titles of the split: of held-out pairs, in how many does the gap reward say that the user's
own revision is better than the draft, and the draft worse than it; and how long is what a draft of middling
length (the first sentences of the long text) becomes for each user, in one round of the model alone and in
rounds that the gap reward judges. The controls put another user's text about the user in the prompt (of the
other group), and none.

    python benchmarks/pit_users.py OUT [--split test] [--seed 0] [--pairs 36] [--held 12]
        [--data ../shared/data]

Every part is kept in OUT, and a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from conflict import TASTES, Texts, proposals, put, rows
from penname.lm import EMBEDDED, load_model
from penname.methods.pit.data import revisions
from penname.methods.pit.form import Case, Form
from penname.methods.pit.gap import GapConfig, open_gap, train_gap
from penname.methods.pit.improve import ImproveConfig, Improver
from penname.methods.pit.thirds import thirds
from penname.tasks import PromptTexts
from penname.train.loop import LoopSettings
from penname.train.optimizer import OptimizerSettings
from penname.train.preferences.data import Pair, prepare, read_preferences
from penname.train.sft import SFTConfig, train_sft
from revisions_report import share, signed

OTHER = {TASTES["majority"]: TASTES["minority"], TASTES["minority"]: TASTES["majority"]}
SHOWN = {"own": lambda about: about, "swapped": OTHER.__getitem__, "none": lambda _: ""}
console = Console(highlight=False, width=140)


def pairs(out: Path, name: str, pool: Sequence[Texts], n: int, seed: int) -> list[Pair]:
    """Pairs of each user, with text about the user; kept in OUT."""
    file = put(out / f"{name}.jsonl", rows(pool, n, random.Random(f"{seed} {name}"), told=True))
    return [one for one in read_preferences(file) if isinstance(one, Pair)]


def train(out: Path, found: Sequence[Pair], given: argparse.Namespace) -> None:
    """Fine-tuning on a half of the titles, the gap reward on the other."""
    prepared = prepare(found)
    first, second, third = thirds(prepared, given.seed)
    second = replace(second, pairs=second.pairs + third.pairs)  # no reinforcement learning here
    loop = LoopSettings(epochs=3, batch=16, evaluate_every=10, checkpoint_every=10, seed=given.seed)
    shape = load_model(EMBEDDED).shape
    if not (out / "sft").exists():
        sft = SFTConfig(optimizer=OptimizerSettings(lr=1e-3), loop=loop)
        written = revisions(first, Form(shape, PromptTexts.load()))
        train_sft(
            written, out / "sft", config=sft, method="pit-sft", about={"shape": shape}, note=console.print
        )
    if not (out / "gap").exists():
        gap = GapConfig(optimizer=OptimizerSettings(lr=5e-4), loop=loop)
        train_gap(second.pairs, out / "gap", config=gap, note=console.print)
    console.print(f"pairs: {len(first)} for fine-tuning, {len(second)} for the gap reward")


def accuracy(out: Path, held: Sequence[Pair]) -> None:
    """Print how often the gap reward is right, with each text about the user."""
    gap = open_gap(out / "gap")
    right: dict[str, list[float]] = {}
    for shown, about in SHOWN.items():
        told = [replace(one, about=about(one.about)) for one in held]
        better = gap.gaps([Case.of(one, one.rejected) for one in told], [one.chosen for one in told])
        worse = gap.gaps([Case.of(one, one.chosen) for one in told], [one.rejected for one in told])
        right[shown] = [((up > 0) + (down < 0)) / 2 for up, down in zip(better, worse, strict=True)]
    users = [str(one.user) for one in held]
    console.print(f"\ngap reward, {len(held)} pairs of {len(set(users))} users: right, % [95 % over users]")
    for shown, values in right.items():
        for taste in TASTES:
            mine = [place for place, one in enumerate(held) if one.about == TASTES[taste]]
            told = share([values[place] for place in mine], [users[place] for place in mine])
            console.print(f"{shown:9s} {taste:9s} {told}", markup=False)


def lengths(out: Path, pool: Sequence[Texts], given: argparse.Namespace) -> None:
    """Print how long a draft becomes for each kind of user: by the model alone, and with the gap reward."""
    model = load_model(str(out / "sft" / "model"))
    improver = Improver(model, open_gap(out / "gap"), Form(model.shape, PromptTexts.load()), out)
    middling = [(one, f"{one.short} {one.long.split('. ')[0].rstrip('.')}.") for one in pool]
    drafts = statistics.mean(len(draft.split()) for _, draft in middling)
    console.print(f"\nwords of {len(pool)} drafts of {drafts:.1f}, improved by the fine-tuned model")
    ways = {
        "one round, a text each": ImproveConfig(1, float("-inf"), 1, given.temperature),
        "as `penname improve` does": ImproveConfig(temperature=given.temperature),
    }
    for way, config in ways.items():
        words: dict[str, list[float]] = {}
        for taste in TASTES:
            cases = [Case(one.title, draft, TASTES[taste]) for one, draft in middling]
            made = improver.improve(cases, config, given.seed)
            words[taste] = [float(len(one.text.split())) for one in made]
        means = ", ".join(f"{taste} {statistics.mean(values):.1f}" for taste, values in words.items())
        apart = signed(words["majority"], words["minority"], [one.title for one in pool])
        console.print(f"{way}: {means}; difference {apart} over titles", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a folder for everything")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=36, help="of each user, to learn from")
    parser.add_argument("--held", type=int, default=12, help="of each user, and drafts to improve")
    parser.add_argument("--temperature", type=float, default=0.5)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = pairs(given.out, "train", list(proposals(given.data, "train")), given.pairs, given.seed)
    train(given.out, found, given)
    pool = list(proposals(given.data, given.split))
    accuracy(given.out, pairs(given.out, given.split, pool, given.held, given.seed))
    lengths(given.out, random.Random(given.seed).sample(pool, given.held * 2), given)


if __name__ == "__main__":
    main()
