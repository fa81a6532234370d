"""Two servers over one store: processes of their own over HTTP, and two applications in this one."""

from __future__ import annotations

import multiprocessing
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi.testclient import TestClient

import stores
from models import ToldModel
from penname.records import Document
from penname.serve.app import create_app
from penname.serve.background import Background
from penname.serve.house import House
from penname.serve.settings import ServeSettings
from penname.store import Store
from serve_models import PLENTY

CHAT = {"model": "penname/retrieval", "messages": [{"role": "user", "content": "Thank the choir."}]}
BACKENDS = ("sqlite", "postgresql")


def marks(prompt: str) -> str:
    """What the model answers: the marks of the texts in its prompt."""
    return " ".join(sorted(set(re.findall(r"mark\w+", prompt)))) or "none"


def serve(own: socket.socket, db: str) -> None:
    """A server's process: it makes or upgrades the tables, as `penname db upgrade` does, and serves."""
    import uvicorn

    with Store(db, check=False) as store:
        store.upgrade()
    settings = ServeSettings(db=db, page=False, per_minute=100_000)
    house = House(settings, model=ToldModel(marks))
    uvicorn.Server(uvicorn.Config(create_app(settings, house), log_config=None, ws="none")).run([own])
    house.close()


@dataclass
class Two:
    """Two servers, each with a client of the same service key, and their store."""

    db: str
    clients: tuple[httpx.Client, httpx.Client]

    def user(self, name: str, *texts: str) -> str:
        """A new user, added through the first server; returns the path."""
        path = f"/v1/users/{name}"
        assert self.clients[0].put(path, json={}).status_code == 200
        for text in texts:
            self.add(0, name, text)
        return path

    def add(self, server: int, name: str, text: str) -> None:
        documents = [{"id": text, "title": "Thanks", "text": text}]
        answer = self.clients[server].post(f"/v1/users/{name}/documents", json={"documents": documents})
        assert answer.status_code == 201

    def draft(self, server: int, name: str) -> tuple[str, str]:
        """The id of a draft, and its text: which marks there were in its prompt."""
        answer = self.clients[server].post("/v1/chat/completions", json={**CHAT, "user": name})
        assert answer.status_code == 200
        made = answer.json()
        return made["id"], made["choices"][0]["message"]["content"]


@contextmanager
def processes(db: str) -> Iterator[tuple[str, str]]:
    """The addresses of two servers that start at the same moment over a store without tables."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        started = [context.Process(target=serve, args=(own, db), daemon=True) for own in sockets]
        for process in started:
            process.start()
        try:
            first, second = (f"http://127.0.0.1:{own.getsockname()[1]}" for own in sockets)
            yield first, second
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.join()


@pytest.fixture(scope="module", params=BACKENDS)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    sqlite = request.param == "sqlite"
    db = str(tmp_path_factory.mktemp("two") / "store.db") if sqlite else stores.empty_database()
    with processes(db) as addresses, ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=one, timeout=PLENTY, trust_env=False))
            for one in addresses
        ]
        for client in clients:  # both are up: of two that make the tables neither fails
            assert client.get("/health").status_code == 200
        with Store(db) as store:
            key = store.create_key(service=True)[1]
        for client in clients:
            client.headers["Authorization"] = f"Bearer {key}"
        yield Two(db, (clients[0], clients[1]))


def test_a_document_added_through_one_counts_in_the_next_request_of_the_other(two: Two) -> None:
    path = two.user("ann", "markone")
    assert two.draft(1, "ann")[1] == "markone"
    two.add(0, "ann", "marktwo")
    assert two.draft(1, "ann")[1] == "markone marktwo"
    assert two.clients[1].delete(f"{path}/documents/markone").status_code == 200
    assert two.draft(0, "ann")[1] == "marktwo"


def test_a_key_revoked_beside_the_servers_is_refused_by_both_at_once(two: Two) -> None:
    with Store(two.db) as store:
        key, secret = store.create_key(service=True)
        headers = {"Authorization": f"Bearer {secret}"}
        asked = [client.get("/v1/users", headers=headers).status_code for client in two.clients]
        assert asked == [200, 200]
        store.revoke_key(key.id)
    asked = [client.get("/v1/users", headers=headers).status_code for client in two.clients]
    assert asked == [401, 401]


def test_a_user_erased_through_one_is_nobody_to_the_other(two: Two) -> None:
    path = two.user("bob", "markold")
    with Store(two.db) as store:
        own = {"Authorization": f"Bearer {store.create_key(user='bob')[1]}"}
    draft, text = two.draft(1, "bob")
    assert text == "markold"
    explained = (f"/v1/explanations/{draft}", f"{path}/drafts/{draft}")
    assert [two.clients[1].get(one).status_code for one in explained] == [200, 200]
    assert two.clients[0].delete(path).status_code == 200
    other = two.clients[1]
    for gone in (path, f"{path}/documents", f"{path}/profile", f"{path}/drafts", *explained):
        assert other.get(gone).status_code == 404
    assert other.post("/v1/chat/completions", json={**CHAT, "user": "bob"}).status_code == 404
    assert other.get("/v1/users/me", headers=own).status_code == 401  # the user's keys went too
    two.user("bob", "marknew")  # a namesake inherits nothing
    assert [other.get(one).status_code for one in explained] == [404, 404]
    assert other.get(f"{path}/drafts").json()["data"] == []
    assert two.draft(1, "bob")[1] == "marknew"


def test_both_write_at_once(two: Two) -> None:
    path = two.user("eve")

    def write(number: int) -> tuple[int, int]:
        client = two.clients[number % 2]
        documents = {"documents": [{"id": f"{number}", "text": f"mark{number}"}]}
        preference = {"kind": "rating", "prompt": f"{number}", "completion": "so", "rating": 1}
        return (
            client.post(f"{path}/documents", json=documents).status_code,
            client.post(f"{path}/preferences", json=preference).status_code,
        )

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(write, range(24))) == {(201, 201)}
    for client in two.clients:
        documents = client.get(f"{path}/documents?limit=100").json()["data"]
        assert sorted(int(one["id"]) for one in documents) == list(range(24))
        assert len(client.get(f"{path}/preferences?limit=100").json()["data"]) == 24


def test_both_erase_and_write_at_once(two: Two) -> None:
    """Erasing rewrites an SQLite file, which others write to and read meanwhile."""

    def live(number: int) -> set[int]:
        name, client, other = f"one of many {number}", *two.clients[:: 1 if number % 2 else -1]
        path, documents = f"/v1/users/{name}", {"documents": [{"id": "1", "text": "mark"}]}
        return {
            client.put(path, json={}).status_code,
            other.post(f"{path}/documents", json=documents).status_code - 1,
            client.delete(path).status_code,
            other.get(path).status_code - 204,
        }

    with ThreadPoolExecutor(4) as pool:
        assert set().union(*pool.map(live, range(8))) == {200}


# --- two applications in this process


@contextmanager
def applications(db: str, *models: ToldModel, **settings: Any) -> Iterator[list[tuple[House, TestClient]]]:
    """An application over the store for each model."""
    with ExitStack() as stack:
        found = []
        for model in models:
            chosen = ServeSettings(**{"db": db, "page": False, **settings})
            house = House(chosen, model=model)
            stack.callback(house.close)
            found.append((house, stack.enter_context(TestClient(create_app(chosen, house)))))
        yield found


def settle(client: TestClient) -> None:
    cast(Background, cast(Any, client.app).state.background).finish()


def test_limits_are_of_each_server(tmp_path: Path) -> None:
    with applications(stores.fresh("sqlite", tmp_path), ToldModel(), ToldModel(), per_minute=1) as both:
        house = both[0][0]
        house.store.add_user("ann")
        headers = {"Authorization": f"Bearer {house.store.create_key(user='ann')[1]}"}
        clients = [client for _, client in both] * 2
        asked = [client.get("/v1/users/me", headers=headers).status_code for client in clients]
        assert asked == [200, 200, 429, 429]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_profile_that_both_make_at_the_same_time_does_no_harm(tmp_path: Path, backend: str) -> None:
    together = threading.Barrier(2, timeout=PLENTY)
    first = threading.local()

    def answer(prompt: str) -> str:
        if not hasattr(first, "met"):  # each server's own background thread
            first.met = True
            together.wait()
        return f"Topics: {marks(prompt)}"

    db = stores.fresh(backend, tmp_path)
    with applications(db, ToldModel(answer), ToldModel(answer)) as both:
        store = both[0][0].store
        store.add_user("ann").add([Document(id="1", text="markone and all that")])
        headers = {"Authorization": f"Bearer {store.create_key(user='ann')[1]}"}
        for _, client in both:
            asked = client.post("/v1/users/me/profile/refresh", headers=headers)
            assert asked.status_code == 202
        for _, client in both:
            settle(client)
        shown = [client.get("/v1/users/me/profile", headers=headers).json() for _, client in both]
        assert shown[0] == shown[1]
        assert "markone" in shown[0]["text"]
        kept = store.user("ann").profiles()
        assert [profile.version for profile in kept] == list(range(1, len(kept) + 1))
        assert len({profile.text for profile in kept}) == 1
