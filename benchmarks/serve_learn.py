"""How soon a preference counts: seconds from POST to the answer, over HTTP on loopback with a real server.

Each of several new users prefers one text to another, time and again, with `penname serve --adapt RUN`: a
prompt of some 20 tokens, two answers of some 40. With each answer the user's row in the run must be another
one. At the end one of them is written for at temperature 0, and so is an onlooker who prefers nothing: what
the onlooker gets must be the same bytes as before.

    python benchmarks/serve_learn.py RUN [--preferences 20] [--clients 1 2] [--threads 1 2]

It works on a copy of RUN. `--threads` are those that the server computes with, each with a server of its own;
`--clients` are users who prefer at the same time.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from penname.methods.prlhf.table import UserTable
from penname.serve.settings import ServeSettings
from penname.store import Store
from serve_process import started

ONLOOKER = "onlooker"
WORDS = (
    "the a some river stone child mill song summer house street rain old small bright early ran sang fell "
    "stood came went and but over near under with about it they we"
).split()
TOKENS = 24  # of each text that is written
TOPICS = ("A walk by the river", "The old mill", "Thanks for the soup", "Our choir on Friday")


def text(words: int, chance: random.Random) -> str:
    """Words of about a token each."""
    return " ".join(chance.choices(WORDS, k=words)).capitalize() + "."


@contextmanager
def threads(number: int) -> Iterator[None]:
    """A process that is started meanwhile computes with so many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


class Client:
    """A service that acts for all users."""

    def __init__(self, address: str, key: str, run: Path) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=address, headers=headers, timeout=600)
        self._run = run

    def wait(self) -> None:
        """Until the server has started: the model is loaded before it answers."""
        self._http.get("/health").raise_for_status()

    def write(self, user: str) -> list[str]:
        """What is written for the user at temperature 0, one text a topic."""
        return [self._written(user, topic) for topic in TOPICS]

    def _written(self, user: str, topic: str) -> str:
        body = {
            "model": f"penname/p-dpo:{self._run.name}",
            "messages": [{"role": "user", "content": topic}],
            "user": user,
            "temperature": 0,
            "max_tokens": TOKENS,
        }
        answer = self._http.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])

    def prefer(self, user: str, chance: random.Random) -> float:
        """Seconds until the answer, with which the user's row must be another one."""
        prompt, chosen, rejected = (text(words, chance) for words in (17, 34, 34))
        body = {"kind": "choice", "prompt": prompt, "chosen": chosen, "rejected": rejected}
        before = self._row(user)
        begun = time.perf_counter()
        answer = self._http.post(f"/v1/users/{user}/preferences", json=body)
        took = time.perf_counter() - begun
        answer.raise_for_status()
        [learnt] = answer.json()["learnt"]
        if learnt["state"] != "learnt" or self._row(user) == before:
            raise SystemExit(f"{user}'s preference was not learnt: {learnt}")
        return took

    def _row(self, user: str) -> bytes | None:
        with UserTable.open(self._run) as table:
            found = table.row(user)
            return None if found is None else found.tobytes()


def measure(client: Client, users: list[str], preferences: int) -> list[float]:
    """Seconds of each preference; the users prefer at the same time."""
    with ThreadPoolExecutor(len(users)) as pool:

        def many(user: str) -> list[float]:
            chance = random.Random(user)
            return [client.prefer(user, chance) for _ in range(preferences)]

        return [one for some in pool.map(many, users) for one in some]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run of P-DPO with soft prompts")
    parser.add_argument("--preferences", type=int, default=20, help="of each user")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    for number in args.threads:
        with tempfile.TemporaryDirectory() as folder, threads(number):
            run = Path(shutil.copytree(args.run, Path(folder) / args.run.resolve().name))
            db = Path(folder) / "store.db"
            groups = [[f"user-{count}-{one}" for one in range(count)] for count in args.clients]
            people = [ONLOOKER, *(user for group in groups for user in group)]
            with Store(db) as store:
                for user in people:
                    store.add_user(user)
                key = store.create_key(service=True, users=people)[1]
            settings = ServeSettings(db=db, runs=(run,), adapt=(run.name,), per_minute=100_000, page=False)
            with started(settings) as (_, address):
                client = Client(address, key, run)
                client.wait()
                onlooker, generic = client.write(ONLOOKER), client.write(groups[0][0])
                for users in groups:
                    took = measure(client, users, args.preferences)
                    print(
                        f"{number} threads, {len(users)} at once: median {statistics.median(took):.2f} s, "
                        f"worst of {len(took)} {max(took):.2f} s",
                        flush=True,
                    )
                now = client.write(groups[0][0])
                changed = sum(one != other for one, other in zip(now, generic, strict=True))
                if client.write(ONLOOKER) != onlooker:
                    raise SystemExit("another user's text has changed")
                print(f"own texts changed: {changed} of {len(TOPICS)}; the onlooker's: none")


if __name__ == "__main__":
    main()
