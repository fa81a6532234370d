"""How a model serves many requests at once.

OpenVINO batches the threads that share it by itself, and a remote server batches its clients. For a model
that transformers runs, a thread writes what all others ask for together: who comes joins at the next token
(`Batcher`). All threads have torch compute in one (`penname.serve.compute`), step by step in turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from penname.errors import ModelError
from penname.lm.base import Asked, Generation, LanguageModel, Owner, Prefix, Sampling, Score, Shape
from penname.lm.remote import RemoteLM
from penname.records import Prompt
from penname.serve.compute import compute

if TYPE_CHECKING:
    from penname.lm.prompt_cache import PromptCache

ROWS = 32  # texts written together at most
IDLE = 60.0  # seconds after which a thread that has nothing to do ends, and lets go of its model

T = TypeVar("T")


class Session(Protocol):
    """Texts that are written together; see `penname.lm.session.Session`."""

    def add(self, asked: Asked) -> None:
        """Let a text join; raises what is wrong with it."""
        ...

    def leave(self, asked: Asked) -> None:
        """Nobody waits for this text any more."""
        ...

    def step(self) -> list[tuple[Asked, str | Generation]]:
        """Go on with all texts. Returns the new pieces, and texts that have ended."""
        ...


class Together(LanguageModel, Protocol):
    """A model that writes several texts of any users together, as `TransformersLM` does."""

    prompts: PromptCache

    def session(self) -> Session:
        """As `TransformersLM.session`."""
        ...


def shared(model: LanguageModel, told: Callable[[int], None] = lambda _: None) -> LanguageModel:
    """The model as many threads may use it at once; `told` as in `Batcher`."""
    return Batcher(cast(Together, model), told=told) if hasattr(model, "session") else model


def owned(model: LanguageModel, users: Mapping[str, int]) -> LanguageModel:
    """The model as it writes for these users, by id and number in the store.

    See `Batcher.of` and `RemoteLM.of`. OpenVINO tells no users apart.
    """
    return model.of(users) if isinstance(model, Batcher | RemoteLM) else model


@dataclass(eq=False)
class _Text:
    """One text that somebody waits for. Pieces come, then the whole of it or what went wrong."""

    asked: Asked
    came: SimpleQueue[str | Generation | Exception] = field(default_factory=SimpleQueue)
    gone: bool = False  # nobody waits for it any more


class _Engine:
    """The thread that uses a model for all others; see `Batcher`."""

    def __init__(self, model: Together, rows: int, told: Callable[[int], None]) -> None:
        self._model = model
        self._rows = rows
        self._told = told
        self.changed = threading.Condition()
        self.waiting: deque[deque[_Text]] = deque()  # by call, none empty
        self._work: deque[Callable[[], None]] = deque()  # between two steps
        self._thread: threading.Thread | None = None
        self._closed = False

    def write(self, texts: Sequence[_Text]) -> None:
        """Let a call's texts be written."""
        with self.changed:
            if texts:
                self.waiting.append(deque(texts))
            self._wake()

    def do(self, work: Callable[[], T]) -> T:
        """What `work` gives, done between two steps."""
        done: Future[T] = Future()

        def tell() -> None:
            try:
                done.set_result(work())
            except Exception as error:  # noqa: BLE001 (it is raised where it is waited for)
                done.set_exception(error)

        with self.changed:
            self._work.append(tell)
            self._wake()
        return done.result()

    def close(self) -> None:
        """Do what waits, take nothing more, and end the thread."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _wake(self) -> None:
        if self._closed:
            raise ModelError("the server is stopping")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="penname-batches", daemon=True)
            self._thread.start()
        self.changed.notify_all()

    def _run(self) -> None:
        while self._wait():
            self._write()

    def _wait(self) -> bool:
        """Until there is something to do; False: the thread is to end."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self._work or self._closed, IDLE)
            if self.waiting or self._work:
                return True
            self._thread = None  # the next to come starts another
            return False

    def _write(self) -> None:
        """Go on until there is nothing left to write; each step takes in who waits.

        What goes wrong is told to all whose texts are being written.
        """
        texts: dict[Asked, _Text] = {}
        session: Session | None = None
        try:
            while True:
                self._between()
                new = self._turns(self._rows - len(texts))
                texts.update((text.asked, text) for text in new)
                if not texts:
                    return
                session = session or compute(self._model.session)
                self._hand_out(compute(partial(self._step, session, new, texts)), texts)
        except Exception as error:  # noqa: BLE001 (whoever waits must be told, and the thread go on)
            for text in texts.values():
                text.came.put(error)

    def _step(
        self, session: Session, new: Sequence[_Text], texts: dict[Asked, _Text]
    ) -> list[tuple[Asked, str | Generation]]:
        self._let_in(new, session, texts)
        for text in [text for text in texts.values() if text.gone]:
            session.leave(text.asked)
            del texts[text.asked]
        return session.step() if texts else []

    def _between(self) -> None:
        with self.changed:
            work = self._work.popleft() if self._work else None
        if work is not None:
            compute(work)

    def _turns(self, room: int) -> list[_Text]:
        """Up to `room` texts that wait, from each call in turn."""
        texts: list[_Text] = []
        with self.changed:
            while self.waiting and len(texts) < room:
                call = self.waiting.popleft()
                text = call.popleft()
                if not text.gone:
                    texts.append(text)
                if call:
                    self.waiting.append(call)
        return texts

    def _let_in(self, new: Sequence[_Text], session: Session, texts: dict[Asked, _Text]) -> None:
        """Let texts join. One that cannot be written is told so, and changes nothing for the others."""
        for text in new:
            try:
                session.add(text.asked)
            except Exception as error:  # noqa: BLE001 (as in `_write`)
                del texts[text.asked]
                text.came.put(error)
        if new:
            self._told(len(texts))

    def _hand_out(self, news: Sequence[tuple[Asked, str | Generation]], texts: dict[Asked, _Text]) -> None:
        for asked, came in news:
            texts[asked].came.put(came)
            if isinstance(came, Generation):
                del texts[asked]


class Batcher:
    """A model for many threads, written with by one of its own. Implements `LanguageModel`.

    A text joins those that are being written at the next token, while there is room. Each keeps its own
    prompt, soft prompt, settings and source of chance: its neighbours change nothing but the rounding of
    sums. Calls take turns, so that a large one does not hold up the small ones.

    Args:
        rows: texts written together at most.
        told: called when texts have joined, with the number of those that are together then.
    """

    def __init__(
        self, model: Together, rows: int = ROWS, told: Callable[[int], None] = lambda _: None
    ) -> None:
        self._model = model
        self._engine = _Engine(model, rows, told)
        self._owner: Owner = frozenset()

    def of(self, users: Mapping[str, int]) -> Batcher:
        """The same model for these users, by id and number in the store.

        What their prompts begin with is kept in memory, and a later one that begins alike is read faster; for
        them alone, and for several together only when they write together.
        """
        mine = copy(self)
        mine._owner = frozenset(users.items())
        return mine

    def forget(self, user: str, number: int) -> None:
        """Drop what is kept of an erased user; see `PromptCache.forget`."""
        self._model.prompts.forget(user, number)

    def sweep(self, there: Callable[[Collection[str]], Mapping[str, int]]) -> None:
        """Drop what is kept of users whom another process has erased; see `PromptCache.sweep`."""
        self._model.prompts.sweep(there)

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
            [_Text(Asked(prompt, sampling, prefix, number, self._owner)) for number in range(n)]
            for prompt, prefix in zip(prompts, soft, strict=True)
        ]
        all_texts = [text for some in texts for text in some]
        self._engine.write(all_texts)
        try:
            return [[_whole(text) for text in some] for some in texts]
        finally:
            for text in all_texts:  # where one failed, the others are of no use
                text.gone = True

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Generator[str, None, Generation]:
        """As `LanguageModel.stream`; returns the whole. A stream that is closed early leaves its batch."""
        text = _Text(Asked(prompt, sampling, prefix, owner=self._owner))
        self._engine.write([text])
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
        """As `LanguageModel.score`; what is being written waits meanwhile."""
        return self._engine.do(lambda: self._model.score(prompts, completions, prefixes))

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """As `LanguageModel.choose`; what is being written waits meanwhile."""
        return self._engine.do(lambda: self._model.choose(prompts, options))

    def close(self) -> None:
        """Write what waits, take nothing more, and end the thread."""
        self._engine.close()


class Alone:
    """Another object that computes with torch, for threads: of its methods one runs at a time."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = compute(lambda: getattr(self._inner, name))  # a property may do work
        return self._computed(found) if callable(found) else found

    def _computed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: compute(lambda: method(*args, **named))


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

    def pieces(self, gone: Callable[[], bool] = lambda: False) -> Generator[str]:
        """The text as it comes. Closing it stops the writing, and so does `gone` at the next piece."""
        stream = self._model.stream(self._prompt, self._sampling, self._prefix)
        try:
            while True:
                piece = next(stream)
                if gone():
                    return
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
