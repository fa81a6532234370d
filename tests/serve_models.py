"""A model that writes several texts together, for tests of batching, and a real server on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from models import ToldModel, flat
from penname.lm.base import Asked, Generation
from penname.lm.prompt_cache import PromptCache
from penname.serve.engine import Batcher

PLENTY = 60.0  # seconds that no test takes unless it hangs


class TogetherModel(ToldModel):
    """As `ToldModel`, a word a step; it remembers who joined together. Nobody joins until `go` is set."""

    name = "together"

    def __init__(self, answer: Callable[[str], str] = lambda prompt: "an answer", **more: Any) -> None:
        super().__init__(answer, **more)
        self.prompts = PromptCache()
        self.batches: list[list[tuple[str, str | None]]] = []  # prompts and prefixes of those who joined
        self.seeds: list[list[int]] = []
        self.sessions: list[TogetherSession] = []
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def session(self) -> TogetherSession:
        self.sessions.append(TogetherSession(self))
        return self.sessions[-1]

    def join(self, texts: Sequence[Asked]) -> list[Generation]:
        """Remember who joined, and what each will have written."""
        self.batches.append([(flat(one.prompt), one.prefix and one.prefix.key) for one in texts])
        self.seeds.append([one.sampling.seed for one in texts])
        self._see([one.prefix for one in texts])
        self.asked.extend(flat(one.prompt) for one in texts)
        self.samplings.extend(one.sampling for one in texts)
        self.begun.set()
        assert self.go.wait(PLENTY)
        return [self._write(one.prompt) for one in texts]


class TogetherSession:
    """A session of `TogetherModel`."""

    def __init__(self, model: TogetherModel) -> None:
        self._model = model
        self._new: list[Asked] = []
        self.left: list[Asked] = []
        self.texts: dict[Asked, tuple[list[str], Generation]] = {}  # what is to come, and the whole

    def add(self, asked: Asked) -> None:
        self._new.append(asked)

    def leave(self, asked: Asked) -> None:
        self.left.append(asked)
        self._new = [new for new in self._new if new is not asked]
        self.texts.pop(asked, None)

    def step(self) -> list[tuple[Asked, str | Generation]]:
        if new := self._new:
            self._new = []
            for asked, whole in zip(new, self._model.join(new), strict=True):
                first, *others = whole.text.split(" ")
                self.texts[asked] = [first, *(f" {word}" for word in others)], whole
        came: list[tuple[Asked, str | Generation]] = []
        for asked, (pieces, whole) in list(self.texts.items()):
            came.append((asked, pieces.pop(0)))
            if not pieces:
                came.append((asked, whole))
                del self.texts[asked]
        return came


def until_waiting(batcher: Batcher, calls: int) -> None:
    """Wait until so many calls wait for the model."""
    engine = batcher._engine
    with engine.changed:
        assert engine.changed.wait_for(lambda: len(engine.waiting) >= calls, PLENTY)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of a real server of `app`, in a thread."""
    import uvicorn

    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()  # from here on clients wait for it
        config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [own]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{own.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
