"""A model that writes several texts together, for tests of batching, and a real server on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from models import ToldModel, flat
from penname.lm.base import Generation, Prefix, Sampling
from penname.records import Prompt
from penname.serve.engine import Batcher

PLENTY = 60.0  # seconds that no test takes unless it hangs


class TogetherModel(ToldModel):
    """As `ToldModel`; it remembers its batches, and the first one waits until `go` is set."""

    name = "together"

    def __init__(self, answer: Callable[[str], str] = lambda prompt: "an answer", **more: Any) -> None:
        super().__init__(answer, **more)
        self.batches: list[list[tuple[str, str | None]]] = []  # the prompt and prefix of each text
        self.seeds: list[list[int]] = []
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def stream_many(
        self,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        prefixes: Sequence[Prefix | None] | None = None,
        numbers: Sequence[int] | None = None,
        gone: Container[int] = (),
    ) -> Generator[list[tuple[int, str]], None, list[Generation]]:
        soft = prefixes or [None] * len(prompts)
        self.batches.append(
            [(flat(p), None if one is None else one.key) for p, one in zip(prompts, soft, strict=True)]
        )
        self.seeds.append([sampling.seed for sampling in samplings])
        self._see(soft)
        self.asked.extend(flat(prompt) for prompt in prompts)
        self.samplings.extend(samplings)
        self.begun.set()
        assert self.go.wait(PLENTY)
        whole = [self._write(prompt) for prompt in prompts]
        words = [one.text.split(" ") for one in whole]
        for step in range(max(map(len, words))):
            yield [
                (place, (" " if step else "") + text[step])
                for place, text in enumerate(words)
                if step < len(text) and place not in gone
            ]
        return whole


def until_waiting(batcher: Batcher, calls: int) -> None:
    """Wait until so many calls wait for the model."""
    with batcher._changed:
        assert batcher._changed.wait_for(lambda: len(batcher._waiting) >= calls, PLENTY)


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
