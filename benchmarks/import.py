"""How long does it take to import 100,000 rows, and how much memory?

    python benchmarks/import.py [--rows 100000] [--users 5000]

Makes a JSONL file of short documents (fixed seed), imports it into a fresh SQLite store with full synchronous
writes, as `penname import jsonl` does, then once more (nothing may change). Prints seconds, rows per second
and the peak memory of the process after a tenth of the rows and at the end: constant memory means that the
two are close.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from penname.sources import read
from penname.store import Added, Store

WORDS = (
    "the a bridge river market letter garden winter committee lamp report harbour engine quiet seven".split()
)


def make(path: Path, rows: int, users: int) -> None:
    """Write `rows` documents of 20 to 60 words by `users` users."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "user": f"user{rng.randrange(users)}",
                "title": " ".join(rng.choices(WORDS, k=5)),
                "text": " ".join(rng.choices(WORDS, k=rng.randint(20, 60))) + f" {number}",
                "date": f"2024-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
            }
            file.write(json.dumps(row) + "\n")


def peak_mib() -> float:
    """The largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=5_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        make(path, options.rows, options.users)
        early: list[float] = []

        def note(added: Added) -> None:
            if not early and added.new >= options.rows / 10:
                early.append(peak_mib())

        with Store(Path(folder, "bench.db")) as store:
            for name in ("first import", "the same again"):
                started = time.perf_counter()
                added = store.add(read("jsonl", path), on_batch=note)
                took = time.perf_counter() - started
                print(
                    f"{name:15} {took:6.1f} s  {options.rows / took:8,.0f} rows/s  "
                    f"new {added.new:,}  same {added.same:,}  bad {added.bad}"
                )
        print(
            f"peak memory     {early[0]:6.0f} MiB after a tenth of the rows, {peak_mib():.0f} MiB at the end"
        )


if __name__ == "__main__":
    main()
