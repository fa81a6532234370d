"""How a model serves many requests at once.

OpenVINO batches the threads that share it by itself, and a remote server batches its clients. A model that
transformers runs writes one batch at a time: what waits for it meanwhile becomes the next one (`Batcher`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Container, Generator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol, cast

from penname.errors import ModelError
from penname.lm.base import Generation, LanguageModel, Prefix, Sampling, Score, Shape
from penname.records import Prompt

ROWS = 32  # texts written together at most


class Together(LanguageModel, Protocol):
    """A model that writes several texts of any users together, as `TransformersLM` does."""

    def stream_many(
        self,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        prefixes: Sequence[Prefix | None] | None = None,
        numbers: Sequence[int] | None = None,
        gone: Container[int] = (),
    ) -> Generator[list[tuple[int, str]], None, list[Generation]]:
        """As `TransformersLM.stream_many`."""
        ...


def shared(model: LanguageModel, told: Callable[[int], None] = lambda _: None) -> LanguageModel:
    """The model as many threads may use it at once; `told` as in `Batcher`."""
    return Batcher(cast(Together, model), told=told) if hasattr(model, "stream_many") else model


@dataclass(eq=False)
class _Text:
    """One text that somebody waits for. Pieces come, then the whole of it or what went wrong."""

    prompt: Prompt
    sampling: Sampling
    prefix: Prefix | None = None
    number: int = 0
    came: SimpleQueue[str | Generation | Exception] = field(default_factory=SimpleQueue)
    gone: bool = False  # nobody waits for it any more

    @property
    def way(self) -> tuple[float, float]:
        """What texts that are written together must have in common."""
        return self.sampling.temperature, self.sampling.top_p


class Batcher:
    """A model for many threads: what waits for it is written together. Implements `LanguageModel`.

    Each text keeps its own prompt, soft prompt, settings and source of chance: its neighbours change nothing
    but the rounding of sums. Calls take turns, so that a large one does not hold up the small ones.

    Args:
        rows: texts written together at most.
        told: called with the number of texts of each batch.
    """

    def __init__(
        self, model: Together, rows: int = ROWS, told: Callable[[int], None] = lambda _: None
    ) -> None:
        self._model = model
        self._rows = rows
        self._told = told
        self._held = threading.Lock()  # the model is in use
        self._changed = threading.Condition()
        self._waiting: deque[deque[_Text]] = deque()  # by call, none empty
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """As `LanguageModel.name`."""
        return self._model.name

    @property
    def fingerprint(self) -> str:
        """As `LanguageModel.fingerprint`."""
        return self._model.fingerprint

    @property
    def shape(self) -> Shape:
        """As `LanguageModel.shape`."""
        return self._model.shape

    @property
    def context(self) -> int:
        """As `LanguageModel.context`."""
        return self._model.context

    @property
    def config(self) -> object:
        """The model's own configuration, where it has one: what is opened beside it goes by that."""
        return getattr(self._model, "config", None)

    def count(self, prompt: Prompt) -> int:
        """As `LanguageModel.count`."""
        return self._model.count(prompt)

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        sampling: Sampling = Sampling(),
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[list[Generation]]:
        """As `LanguageModel.generate`, together with what other threads ask for."""
        soft = prefixes or [None] * len(prompts)
        texts = [
            [_Text(prompt, sampling, prefix, number) for number in range(n)]
            for prompt, prefix in zip(prompts, soft, strict=True)
        ]
        all_texts = [text for some in texts for text in some]
        self._add(all_texts)
        try:
            return [[_whole(text) for text in some] for some in texts]
        finally:
            for text in all_texts:  # where one failed, the others are of no use
                text.gone = True

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Generator[str, None, Generation]:
        """As `LanguageModel.stream`; returns the whole. A stream that is closed early leaves its batch."""
        text = _Text(prompt, sampling, prefix)
        self._add([text])
        try:
            while not isinstance(came := _next(text), Generation):
                yield came
            return came
        finally:
            text.gone = True

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        """As `LanguageModel.score`, when the batch that is being written has ended."""
        with self._held:
            return self._model.score(prompts, completions, prefixes)

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """As `LanguageModel.choose`, when the batch that is being written has ended."""
        with self._held:
            return self._model.choose(prompts, options)

    def close(self) -> None:
        """Write what waits, take nothing more, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _add(self, texts: Sequence[_Text]) -> None:
        with self._changed:
            if self._closed:
                raise ModelError("the server is stopping")
            if texts:
                self._waiting.append(deque(texts))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="penname-batches", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _work(self) -> None:
        while texts := self._next_batch():
            self._told(len(texts))
            with self._held:
                self._write(texts)

    def _next_batch(self) -> list[_Text]:
        """What is to be written next, at least one text; none when the thread is to end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                if texts := self._take():
                    return texts

    def _take(self) -> list[_Text]:
        """Texts that can be written together with the first one that waits, from each call in turn."""
        way = self._waiting[0][0].way
        calls = deque(call for call in self._waiting if call[0].way == way)
        others = deque(call for call in self._waiting if call[0].way != way)
        texts: list[_Text] = []
        while calls and len(texts) < self._rows:
            call = calls.popleft()
            text = call.popleft()
            if not text.gone:
                texts.append(text)
            if call:
                calls.append(call)
        self._waiting = others + calls  # of another way: their turn is next
        return texts

    def _write(self, texts: list[_Text]) -> None:
        """Write a batch. Where it cannot begin, each text is tried alone: one may have spoiled it for all."""
        begun = False
        gone: set[int] = set()
        try:
            stream = self._model.stream_many(
                [text.prompt for text in texts],
                [text.sampling for text in texts],
                [text.prefix for text in texts],
                [text.number for text in texts],
                gone,
            )
            while True:
                new = next(stream)
                begun = True
                for place, piece in new:
                    texts[place].came.put(piece)
                gone.update(place for place, text in enumerate(texts) if text.gone)
        except StopIteration as end:
            for text, generation in zip(texts, end.value, strict=True):
                text.came.put(generation)
        except Exception as error:  # noqa: BLE001 (whoever waits must be told, and the thread go on)
            if begun or len(texts) == 1:
                for text in texts:
                    text.came.put(error)
                return
            for text in texts:
                self._write([text])


class Alone:
    """Another object, of whose methods one runs at a time; for what threads must not share."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        with self._lock:  # a property may do work
            found = getattr(self._inner, name)
        return self._locked(found) if callable(found) else found

    def _locked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            with self._lock:
                return method(*args, **named)

        return call


class Heard:
    """The pieces of a text as a model writes it, and afterwards how many tokens it had and why it ended.

    A model's stream returns that; of one that does not, the tokens are counted.
    """

    def __init__(
        self, model: LanguageModel, prompt: Prompt, sampling: Sampling, prefix: Prefix | None
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._prefix = prefix
        self._sampling = sampling
        self._text = ""
        self._whole: Generation | None = None
        self._ended = False

    def pieces(self) -> Generator[str]:
        """The text as it comes. Closing it stops the writing."""
        stream = self._model.stream(self._prompt, self._sampling, self._prefix)
        try:
            while True:
                piece = next(stream)
                self._text += piece
                yield piece
        except StopIteration as end:
            self._whole = end.value
            self._ended = True
        finally:
            if isinstance(stream, Generator):
                stream.close()

    @property
    def generation(self) -> Generation:
        """What has been written, whole."""
        if self._whole is not None:
            return self._whole
        tokens = self._model.count(self._text) if self._text else 0
        cut = self._ended and tokens >= self._sampling.max_tokens
        rows = 0 if self._prefix is None else len(self._prefix.rows)
        prompt_tokens = self._model.count(self._prompt) + rows
        return Generation(self._text, prompt_tokens, tokens, "length" if cut else "stop")


def _next(text: _Text) -> str | Generation:
    came = text.came.get()
    if isinstance(came, Exception):
        raise came
    return came


def _whole(text: _Text) -> Generation:
    while not isinstance(came := _next(text), Generation):
        pass
    return came
