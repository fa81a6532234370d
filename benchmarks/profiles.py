"""How many users are profiled in a minute, together and one by one?

    python benchmarks/profiles.py [--model smollm2-135m] [--users 8]

Profiles the users of the built-in sample (12 documents each, and those written with others) from nothing,
first all in one call, as `penname profile` and `penname demo` do, then in a call each. It prints users per
minute and documents per second; the model is loaded before the clock starts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from penname.evaluate.demo import load_sample
from penname.lm import Sampling, load_model
from penname.methods.stepback import History, profile_histories
from penname.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None)
    parser.add_argument("--users", type=int, default=8)
    options = parser.parse_args()
    model = load_model(options.model)
    model.generate(["One, two,"], 1, Sampling(max_tokens=2))
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("together", options.users), ("one by one", 1)):
            with Store(Path(folder, f"{size}.db")) as store:
                load_sample(store)
                histories = [History(user.id) for user in store.users()][: options.users]
                documents = sum(store.user(history.user).count for history in histories)
                started = time.perf_counter()
                for start in range(0, len(histories), size):
                    profile_histories(store, model, histories[start : start + size])
                took = time.perf_counter() - started
            print(
                f"{name:12} {len(histories)} users, {documents} documents: {took:5.1f} s, "
                f"{60 * len(histories) / took:5.1f} users/min, {documents / took:4.1f} documents/s"
            )


if __name__ == "__main__":
    main()
