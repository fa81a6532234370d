"""A server in a process of its own, as the benchmarks of `penname serve` start it."""

# ruff: noqa: ARG002 (a parrot listens to nothing but the prompt)

from __future__ import annotations

import multiprocessing
import re
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import httpx

from penname.lm.base import Generation, Prefix, Sampling, Score, Shape
from penname.records import Prompt
from penname.serve.app import create_app
from penname.serve.house import House
from penname.serve.settings import ServeSettings

MARKER = re.compile(r"owl[0-9a-z]+end")
"""What a benchmark puts into a user's texts to see whose they are."""


class Parrot:
    """A `LanguageModel` that writes the markers of its prompt and some words, in no time."""

    name = fingerprint = "parrot"
    shape: Shape = "completion"
    context = 100_000

    def count(self, prompt: Prompt) -> int:
        return len(_flat(prompt).split())

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        sampling: Sampling = Sampling(),
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[list[Generation]]:
        return [[self._written(prompt, _words(prompt))] * n for prompt in prompts]

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Generator[str, None, Generation]:
        words = _words(prompt)
        for word in words:
            time.sleep(0.0005)  # so that there is a middle in which a client can hang up
            yield word
        return self._written(prompt, words)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        return [Score(-1.0, 1, ()) for _ in completions]

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[1 / len(mine) for _ in mine] for mine in options]

    def _written(self, prompt: Prompt, words: Sequence[str]) -> Generation:
        return Generation("".join(words), self.count(prompt), len(words), "stop")


def _flat(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)


def _words(prompt: Prompt) -> list[str]:
    found = dict.fromkeys(MARKER.findall(_flat(prompt)))
    return [f"{word} " for word in (*found, *("writes as always do".split() * 6))]


@contextmanager
def started(settings: ServeSettings, *, fake: bool = False) -> Iterator[tuple[BaseProcess, str]]:
    """The process of a server on loopback, with `Parrot` for its model where it is `fake`, and its address.

    It is stopped at the end, unless it was killed before.
    """
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()  # from here on clients wait for it
        address = f"http://127.0.0.1:{own.getsockname()[1]}"
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(own, settings, fake), daemon=True
        )
        process.start()
        try:
            _wait_until_up(process, address)
            yield process, address
        finally:
            process.terminate()
            process.join()


def _wait_until_up(process: BaseProcess, address: str) -> None:
    while True:
        try:
            httpx.get(f"{address}/health", timeout=1)
            return
        except httpx.TimeoutException:
            if not process.is_alive():
                raise RuntimeError(f"the server ended with {process.exitcode}") from None


def _serve(own: socket.socket, settings: ServeSettings, fake: bool) -> None:
    """The server's process."""
    import uvicorn

    house = House(settings, model=Parrot()) if fake else None
    config = uvicorn.Config(create_app(settings, house), log_config=None, ws="none")
    uvicorn.Server(config).run([own])
    if house is not None:
        house.close()
