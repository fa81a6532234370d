"""The whole service for tests: over a store of the test's own and a model that is told its answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from models import ToldModel
from penname.records import Document
from penname.serve.app import create_app
from penname.serve.background import Background
from penname.serve.house import House
from penname.serve.settings import ServeSettings
from penname.store import Store
from stores import fresh

HISTORY = {"ann": "Dear all, thank you so much!", "bob": "ok thx", "eve": "Whatever."}


@dataclass
class Service:
    """A running service with users ann and bob, whom a service key acts for, and eve, who is nobody's."""

    app: FastAPI
    client: TestClient
    house: House
    model: ToldModel
    keys: dict[
        str, str
    ]  # secrets: of ann, bob and eve, of "service", and of "other", a service without users

    @property
    def store(self) -> Store:
        return self.house.store

    def __call__(self, key: str | None, method: str, path: str, json: Any = None, **more: Any) -> Response:
        """`service("ann", "GET", "/v1/users/me")`."""
        headers = {} if key is None else {"Authorization": f"Bearer {self.keys.get(key, key)}"}
        return self.client.request(method, path, json=json, headers=headers, **more)

    def settle(self) -> None:
        """Wait for what goes on in the background."""
        cast(Background, self.app.state.background).finish()


@contextmanager
def serving(
    folder: Path, model: ToldModel | None = None, *, before: Any = lambda store: None, **settings: Any
) -> Iterator[Service]:
    """The service; `before` is given the store before the application starts."""
    told = model or ToldModel(lambda prompt: "Topics: thanks")
    db = fresh("sqlite", folder)
    chosen = ServeSettings(**{"db": db, "page": False, "per_minute": 100_000, **settings})
    house = House(chosen, model=told)
    keys = {}
    for user, text in HISTORY.items():
        house.store.add_user(user).add([Document(id="first", text=text)])
        keys[user] = house.store.create_key(user=user, service=False)[1]
    keys["service"] = house.store.create_key(service=True, users=["ann", "bob"])[1]
    keys["other"] = house.store.create_key(service=True)[1]
    before(house.store)
    app = create_app(chosen, house)
    try:
        with TestClient(app, raise_server_exceptions=False) as client:
            yield Service(app, client, house, told, keys)
    finally:
        house.close()


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of an application that is running already, on loopback."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listener:  # connections wait until it is ready
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
