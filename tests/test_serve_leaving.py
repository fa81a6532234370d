"""Clients that go away before their answer, over a real socket: nothing more is written for them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import stores
from models import ToldModel
from penname.lm.base import Asked, Generation, Prefix, Sampling
from penname.lm.prompt_cache import PromptCache
from penname.records import Document, Prompt
from penname.serve.app import create_app
from penname.serve.house import House
from penname.serve.settings import ServeSettings
from serve_models import PLENTY, listening

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Thank the choir."}]})
TEXT = ("/v1/completions", {"prompt": ["Thank the choir.", "Thank it again."], "n": 2})


class Endless(ToldModel):
    """Writes the same piece until nobody waits; it tells when it has begun and when it has stopped."""

    def __init__(self, piece: str = "word ") -> None:
        super().__init__()
        self.piece = piece
        self.begun, self.stopped = threading.Event(), threading.Event()
        self.enough = threading.Event()  # for the test's own end, where it did not stop
        self.running = 0
        self._counting = threading.Lock()

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Iterator[str]:
        self._count(1)
        try:
            while not self.enough.is_set():
                self.begun.set()
                yield self.piece
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self.running += change
            if not self.running:
                self.stopped.set()


class EndlessTogether(Endless):
    """The same for a batch: it is its own session."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = PromptCache()
        self.texts: list[Asked] = []

    def session(self) -> EndlessTogether:
        return self

    def add(self, asked: Asked) -> None:
        self._count(1)
        self.texts.append(asked)

    def leave(self, asked: Asked) -> None:
        self._count(-1)
        self.texts.remove(asked)

    def step(self) -> list[tuple[Asked, str | Generation]]:
        self.begun.set()
        if self.enough.is_set():
            return [(asked, Generation("", 1, 1, "length")) for asked in self.texts]
        return [(asked, self.piece) for asked in self.texts]


@pytest.mark.parametrize(
    ("model", "path", "body"),
    [
        (Endless(), *CHAT),
        (Endless(), *TEXT),
        (EndlessTogether(), *CHAT),
        (Endless("<think>"), *CHAT),  # of which no piece is ever shown
        (Endless("<think>"), CHAT[0], {**CHAT[1], "stream": True}),
    ],
    ids=["chat", "several", "batch", "reasoning", "reasoning, streamed"],
)
def test_nothing_more_is_written_for_a_client_that_left(
    tmp_path: Path, model: Endless, path: str, body: dict[str, Any]
) -> None:
    settings = ServeSettings(db=stores.fresh("sqlite", tmp_path), page=False)
    house = House(settings, model=model)
    house.store.add_user("ann").add([Document(id="first", text="Dear all, thank you!")])
    key = house.store.create_key(user="ann")[1]
    app = create_app(settings, house)
    try:
        with listening(app) as url:
            content = json.dumps({"model": "penname/none", **body}).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            )
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as client:
                client.sendall(head.encode() + content)
                assert model.begun.wait(PLENTY)
            assert model.stopped.wait(PLENTY)
        # The server has ended by now, so that all is said.
        assert house.drafts.latest(["ann"]) == []
        assert b'status="499"' in app.state.metrics.text(0)
    finally:
        model.enough.set()
        house.close()
