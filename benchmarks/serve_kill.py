"""SIGKILL under load: is everything there that a server acknowledged?

    python benchmarks/serve_kill.py --rounds 50

Each round starts `penname serve` over the same store, posts documents from several clients at once, kills the
server at a random moment, and looks into the store. Prints one line a round, and fails where something
acknowledged is missing or a half-written document is there.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from penname.store import Store

COMMAND = [sys.executable, "-c", "from penname.cli import main; main()", "serve", "--port", "0", "--no-page"]
TEXT = "word " * 400
MODEL = "http://127.0.0.1:9/v1#nobody"  # no document needs a model; profiles fail, and are only counted


def start(db: Path) -> tuple[subprocess.Popen[str], threading.Thread, str]:
    """A server over the store, what reads its log so that it can go on writing it, and its address."""
    options = ["--db", str(db), "--model", MODEL, "--per-minute", "1000000"]
    server = subprocess.Popen([*COMMAND, *options], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            reader = threading.Thread(target=server.stderr.read)
            reader.start()
            return server, reader, found[0]
    raise RuntimeError(f"the server ended with {server.wait()}")


def post(
    address: str, key: str, name: str, acknowledged: list[str], enough: int, reached: threading.Event
) -> None:
    """Post documents until the server is gone; `reached` is set when `enough` are acknowledged."""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
        for number in range(1_000_000):
            document = f"{name}-{number}"
            body = {"documents": [{"id": document, "text": f"{document} {TEXT}"}]}
            try:
                response = client.post("/v1/users/me/documents", json=body)
            except httpx.TransportError:
                return
            if response.status_code == 201:
                acknowledged.append(document)
            if len(acknowledged) >= enough:
                reached.set()


def round_of(number: int, db: Path, key: str, clients: int, enough: int, seconds: float) -> tuple[int, int]:
    """One round, killed `seconds` after `enough` documents are acknowledged.

    Returns:
        Documents acknowledged, and how many of them are missing or damaged.
    """
    server, reader, address = start(db)
    acknowledged: list[str] = []
    reached = threading.Event()
    threads = [
        threading.Thread(
            target=post, args=(address, key, f"{number}-{client}", acknowledged, enough, reached)
        )
        for client in range(clients)
    ]
    for thread in threads:
        thread.start()
    if not reached.wait(300):
        raise RuntimeError("the server acknowledges nothing")
    time.sleep(seconds)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    for thread in [*threads, reader]:
        thread.join()
    assert server.stderr is not None
    server.stderr.close()
    with Store(db) as store:
        found = {document.id: document.text for document in store.user("ann").documents()}
    lost = sum(found.get(name) != f"{name} {TEXT}" for name in acknowledged)
    damaged = sum(text != f"{name} {TEXT}" for name, text in found.items())
    return len(acknowledged), lost + damaged


def run(rounds: int, clients: int, seed: int) -> int:
    """How many acknowledged documents were lost in all rounds."""
    chance = random.Random(seed)
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "store.db"
        with Store(db) as store:
            store.add_user("ann")
            key = store.create_key(user="ann")[1]
        for number in range(rounds):
            kept, missing = round_of(number, db, key, clients, chance.randint(1, 40), chance.uniform(0, 0.1))
            print(f"round {number + 1}: {kept} acknowledged, {missing} lost", flush=True)
            lost += missing
    return lost


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(1 if run(given.rounds, given.clients, given.seed) else 0)
