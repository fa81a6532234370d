"""A scripted OpenAI-compatible server on loopback, for the tests of models behind one."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from penname.lm.config import ModelConfig
from penname.lm.remote import RemoteLM


@dataclass
class Reply:
    """What the scripted server answers. `cut`: close the connection before the promised length is sent."""

    body: object = ""  # JSON, or text as it is
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


Answering = Callable[[str, dict[str, Any]], Reply]  # path and body of a request


@dataclass
class Scripted:
    """A server that asks `answer` for each reply, and remembers what it was asked."""

    answer: Answering
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def model(self, name: str = "tiny", **settings: Any) -> RemoteLM:
        settings = {"retries": 0} | settings
        return RemoteLM(ModelConfig(model=f"http://127.0.0.1:{self.port}/v1#{name}", **settings))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: Scripted

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: dict[str, Any]) -> None:
        path = self.path.removeprefix("/v1")
        self.scripted.paths.append(path)
        self.scripted.bodies.append(body)
        self.scripted.keys.append(self.headers["Authorization"])
        reply = self.scripted.answer(path, body)
        text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
        data = text.encode()
        headers = {"Content-Type": "application/json"} | reply.headers
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) + (100 if reply.cut else 0)))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = reply.cut

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def servers() -> Iterator[Callable[[Answering], Scripted]]:
    """Gives a function that starts a scripted server; all are closed at the end."""
    started: list[ThreadingHTTPServer] = []

    def start(answer: Answering) -> Scripted:
        scripted = Scripted(answer)
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"scripted": scripted}))
        server.daemon_threads = True
        server.block_on_close = False
        server.handle_error = lambda *_: None  # a client that has gone is no news
        scripted.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        started.append(server)
        return scripted

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def shortcuts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between retries go into the list and are not slept through; keys and proxies are not seen."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    for name in ("PENNAME_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    # Nothing here is encrypted, and reading the certificates for each client takes a tenth of a second.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    monkeypatch.setattr("ssl.create_default_context", lambda *args, **settings: context)
    return slept


def chat(*texts: str | None, finish: str = "stop", tokens: int | None = 3) -> Reply:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for i, text in enumerate(texts)
    ]
    usage = None if tokens is None else {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 0}
    return Reply({"id": "x", "object": "chat.completion", "choices": choices, "usage": usage})


def events(*chunks: dict[str, Any] | str, done: bool = True, cut: bool = False) -> Reply:
    """A stream as it goes over the wire: server-sent events."""
    lines = [f"data: {c if isinstance(c, str) else json.dumps(c)}\n\n" for c in chunks]
    end = ["data: [DONE]\n\n"] if done else []
    return Reply("".join(lines + end), headers={"Content-Type": "text/event-stream"}, cut=cut)


def piece(text: str | None, finish: str | None = None, **delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta | {"content": text}, "finish_reason": finish}]}


def error(status: int, message: str, **fields: str) -> Reply:
    return Reply({"error": {"message": message, **fields}}, status)
