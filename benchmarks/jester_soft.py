"""Soft-prompt P-RM beside the low-rank form on Jester, for as many users as the time allows.

The low-rank form reads each joke once, for everybody. P-RM with soft prompts reads every joke for every user,
as the user's rows stand before it: N users cost N passes over the texts, and a step of training two for each
pair. So here are N seen users with M preferences each, drawn by lot from their training ratings, and the test
is all pairs of their held-out ratings, as in benchmarks/jester.py.

    python benchmarks/jester_soft.py [--users 10] [--pairs 40] [--epochs 1] [--data ../shared/data] [--seed 0]

No joke's text is shown or kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from jester import JOKES, described, embedded, load, preferences, right
from penname.methods.prlhf.comparisons import Pairs
from penname.methods.prlhf.config import PDPOConfig
from penname.methods.prlhf.lowrank import LowRankConfig, fit
from penname.methods.prlhf.reward import open_reward
from penname.methods.prlhf.train import train_preferences
from penname.train.loop import LoopSettings
from penname.train.optimizer import OptimizerSettings
from penname.train.preferences.data import Pair, prepare

PROMPT = "A joke:"


def drawn(train: np.ndarray, n: int, seed: int) -> Pairs:
    """`n` preferences of each user, fewer where there are no more."""
    everything = preferences(train)
    chance = np.random.default_rng(seed)
    taken = []
    for user in range(len(train)):
        mine = np.flatnonzero(everything.user == user)
        taken.append(chance.permutation(mine)[:n])
    places = np.concatenate(taken)
    return Pairs(everything.user[places], everything.chosen[places], everything.rejected[places])


def soft(pairs: Pairs, texts: list[str], users: int, config: PDPOConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of all jokes for each user and for nobody, (users, JOKES) each, by P-RM trained on pairs."""
    rows = [
        Pair(f"user-{user}", PROMPT, texts[chosen], texts[rejected])
        for user, chosen, rejected in zip(pairs.user, pairs.chosen, pairs.rejected, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as shown:
        task = shown.add_task("P-RM", total=None)
        trained = train_preferences(
            "p-rm",
            prepare(rows),
            Path(folder) / "run",
            config=config,
            progress=lambda done, total, _: shown.update(task, completed=done, total=total),
        )
        reward = open_reward(trained.path)
        names: list[str | None] = [*(f"user-{number}" for number in range(users)), None]
        asked = [(name, joke) for name in names for joke in texts]
        found = reward.rewards(
            [PROMPT] * len(asked), [joke for _, joke in asked], [name for name, _ in asked]
        )
    scores = np.array(found).reshape(users + 1, JOKES)
    return scores[:-1], np.tile(scores[-1], (users, 1))


def main() -> None:
    """Train both forms on the same preferences, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = given.data / "jester"
    split = load(folder, "test")
    train, test = split.train[: given.users], split.seen_test[: given.users]
    texts = json.loads((folder / "jokes.json").read_text(encoding="utf-8"))
    pairs = drawn(train, given.pairs, given.seed)
    vectors = embedded(folder, None)
    config = LowRankConfig(seed=given.seed)
    print(f"{given.users} seen users, {len(pairs)} preferences to learn from")

    arms = {"population mean (ratings of all)": np.tile(np.nanmean(split.train, 0), (given.users, 1))}
    started = time.perf_counter()
    reward, weights = fit(vectors, preferences(split.train), len(split.train), config)
    took = {"low rank, all users' preferences": time.perf_counter() - started}
    arms["low rank, all users' preferences"] = weights[: given.users] @ reward.basis(vectors).T
    started = time.perf_counter()
    reward, weights = fit(vectors, pairs, given.users, replace(config, floor=1e3))
    took["low rank, these preferences"] = time.perf_counter() - started
    arms["low rank, these preferences"] = weights @ reward.basis(vectors).T
    settings = PDPOConfig(
        held_out=0.0,
        optimizer=OptimizerSettings(lr=5e-4, user_lr=0.01),
        loop=LoopSettings(epochs=given.epochs, batch=8, seed=given.seed),
    )
    started = time.perf_counter()
    own, nobody = soft(pairs, texts, given.users, settings)
    took["P-RM, these preferences"] = time.perf_counter() - started
    arms["P-RM, these preferences"] = own
    arms["P-RM, swapped users"] = np.roll(own, 1, 0)
    arms["P-RM, the generic user"] = nobody
    print(f"{'':36}accuracy, 95 % interval  users  worst  seconds")
    for name, scores in arms.items():
        seconds = f"{took[name]:.0f}" if name in took else ""
        print(f"{name:36}{described(right(scores, test), given.seed)}  {seconds:>7}")


if __name__ == "__main__":
    main()
