"""A server in use for minutes: is every answer right, and does its memory stay where it is?

    python benchmarks/serve_soak.py [--model smollm2-135m] [--clients 8] [--minutes 10] [--fake]

A real server (uvicorn, in a process of its own) and clients that do what applications do, each with a key and
users of its own, who come, are written for, and are erased: drafts streamed and not, with retrieval and a
stored profile, clients that hang up in the middle, documents, preferences, lists and exports. Every answer is
checked, and that it holds no other user's text: each user's texts carry a marker. Before the clock starts the
model's own cache of prompts is filled (it has a limit: 512 MB, and 1.5 GB in OpenVINO). `--fake` puts a
model in place that writes at once, so that thousands of requests a minute show what the server itself would
leak.

Printed: requests by kind, errors, the server's resident memory, and the least of it in each third of the
time after the first minute: it goes up and down by hundreds of MB, as what is freed goes back once a minute,
and what leaks lifts the lowest points too. Exits with 1 where an answer was wrong, where more files or
threads are open at the end than at half time, or where the last third's least is above the first one's by
more than 1 % and 1 MB a minute: with `--fake`, where a minute has thousands of requests, that is some hundred
bytes a request, under what any record of a request takes (a kept draft takes 10 KB).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openai
import psutil  # type: ignore[import-untyped]
from numpy.typing import NDArray

from penname.lm.openvino import CACHE_TOKENS
from penname.serve.settings import ServeSettings
from penname.store import Store
from serve_clients import Client, Tally
from serve_process import started

STEEP, SHARE = 1.0, 0.01  # MB a minute, and of the memory: more than both is growth
FILLED = max(CACHE_TOKENS.values()) * 11 // 10  # tokens: more than are kept, by transformers less still
EVERY = 1.0  # seconds between two samples
MARKS = (1, 2, 5, 10)  # minutes of which the memory is printed

Samples = NDArray[np.float64]  # rows of minute, MB, open files, threads


def sampled(pid: int, minutes: float) -> Samples:
    """The server as it was every second."""
    server = psutil.Process(pid)
    began, rows = time.monotonic(), []
    while (passed := time.monotonic() - began) < minutes * 60:
        with server.oneshot():
            memory = server.memory_info().rss / 2**20
            rows.append((passed / 60, memory, float(server.num_fds()), float(server.num_threads())))
        time.sleep(EVERY)
    return np.array(rows)


def fill(address: str, key: str, chance: random.Random) -> None:
    """Fill the model's cache of prompts with what nobody asks for again: it would grow for long otherwise."""
    api = openai.OpenAI(base_url=f"{address}/v1", api_key=key, timeout=600)
    read = 0
    while read < FILLED:
        words = " ".join(str(chance.randrange(10**6)) for _ in range(400))
        answer = api.completions.create(model="penname/none", prompt=words, max_tokens=1)
        assert answer.usage is not None
        read += answer.usage.prompt_tokens
    print(f"the model has read {read:,} tokens before the clock starts", flush=True)


def grew(samples: Samples, clients: int) -> list[str]:
    """What did not stay as it was over the second half; printed, too."""
    for minute in MARKS:
        after = samples[samples[:, 0] >= minute]
        if len(after):
            print(f"memory at {minute:2} min {after[0, 1]:8.1f} MB")
    print(f"memory at the end {samples[-1, 1]:5.1f} MB")
    thirds = np.array_split(samples[samples[:, 0] >= min(1, samples[-1, 0] / 4)], 3)
    lows = [float(third[:, 1].min()) for third in thirds]
    minutes = thirds[2][0, 0] - thirds[0][0, 0]
    allowed = max(STEEP * minutes, SHARE * lows[0])
    print(
        f"least in each third {', '.join(f'{low:.1f}' for low in lows)} MB; {allowed:.0f} more are let pass"
    )
    problems = []
    if lows[2] - lows[0] > allowed:
        problems.append(f"memory grows: {lows[2] - lows[0]:.1f} MB in {minutes:.0f} minutes")
    half = samples[samples[:, 0] >= samples[-1, 0] / 2]
    # Of what comes and goes the least in some seconds counts, a connection of each client more or less.
    for column, name in ((2, "open files"), (3, "threads")):
        first, middle, end = (int(rows[:, column].min()) for rows in (samples[:5], half[:30], half[-30:]))
        print(f"{name}: {first} at the start, {middle} at half time, {end} at the end")
        if end > middle + clients:
            problems.append(f"{name} grow in number")
    return problems


def report(tally: Tally, minutes: float) -> list[str]:
    """Print what was asked; returns what was wrong."""
    total = sum(tally.done.values())
    print(f"{total:,} requests, {total / minutes:,.0f} a minute")
    for kind, number in sorted(tally.done.items(), key=lambda pair: -pair[1]):
        print(f"  {kind:22}{number:8,}")
    print(f"errors: {len(tally.wrong)}")
    for text, number in Counter(tally.wrong).most_common(10):
        print(f"  {number} x {text}")
    return ["answers were wrong"] if tally.wrong else []


def run(args: argparse.Namespace, folder: Path) -> list[str]:
    """What was found wrong."""
    db = folder / "store.db"
    with Store(db) as store:
        keys = [store.create_key(service=True)[1] for _ in range(args.clients)]
        store.add_user("filler")
        filler = store.create_key(user="filler", service=False)[1]
    settings = ServeSettings(db=db, model=args.model, per_minute=1_000_000, page=False)
    tally, ended = Tally(), threading.Event()
    with started(settings, fake=args.fake) as (process, address):
        if not args.fake:
            fill(address, filler, random.Random(args.seed))
        clients = [
            Client(address, key, number, tally, random.Random(args.seed + number), quick=args.fake)
            for number, key in enumerate(keys)
        ]
        threads = [threading.Thread(target=client.work, args=(ended,)) for client in clients]
        for thread in threads:
            thread.start()
        try:
            samples = sampled(process.pid or 0, args.minutes)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        series = clients[0].series()
        for client in clients:
            client.close()
    problems = [*report(tally, args.minutes), *grew(samples, args.clients)]
    print(f"lines of /metrics at the end: {series}")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all was well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fake", action="store_true", help="a model that writes at once")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        problems = run(args, Path(folder))
    print("\n".join(problems) or "all is well")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
