"""The one path from a request to a draft: retrieve, profile, put it to the model, write.

    writer = Writer(store, model)
    draft = writer.write(Request(task="email", input="Moving the deadline", users=("alice",)))

A method is a stack of stages joined by `+`: `none`, `retrieval`, `step-back`, `step-back+retrieval`. All
requests of a call go through each stage together, so the model sees full batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penname.errors import BadInputError, EmptyHistoryError, UnknownMethodError
from penname.lm.base import LanguageModel, Sampling
from penname.methods.stepback import History, profile_histories
from penname.records import Draft, Hit, Profile, Request
from penname.retrieve import retriever
from penname.store import Store
from penname.tasks import PromptTexts, Task, build_prompt
from penname.tasks import task as find_task

if TYPE_CHECKING:
    from penname.retrieve.base import Retriever

_THINKS, _THOUGHT = "<think>", "</think>"

STAGES = {
    "none": "the request alone",
    "retrieval": "with the documents of the history that matter most now, as examples",
    "step-back": "with the profile distilled from the history",
}
DEFAULT_METHOD = "step-back+retrieval"
DEFAULT_K = 5  # documents of each author (arXiv 2406.14275, section 3.3)


def stages(method: str) -> frozenset[str]:
    """The stages of a method's name.

    Raises:
        UnknownMethodError: a part of the name is no stage; the message offers the nearest.
        BadInputError: a stage stands twice, or `none` beside another.
    """
    parts = method.split("+")
    for part in parts:
        if part not in STAGES:
            raise UnknownMethodError(part, STAGES)
    if len(set(parts)) != len(parts) or ("none" in parts and len(parts) > 1):
        raise BadInputError(f"method {method!r}: each stage once, and 'none' alone")
    return frozenset(parts) - {"none"}


@dataclass
class _Item:
    """A request on its way to a draft: what was found for it, and the prompt that came of it."""

    request: Request
    task: Task
    authors: list[str]  # those whose history may be used, in author order
    notes: list[str]
    hits: list[list[Hit]] = field(default_factory=list)  # by author
    profiles: list[Profile] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class Writer:
    """Writes for the users of one store, with one model and one method.

    Args:
        method: stages joined by `+`.
        search: what the stage `retrieval` asks; the lexical retriever where None.
        k: documents of each author that `retrieval` gives.
        texts: the prompt texts; penname's own, or those of PENNAME_PROMPTS, where None.
        temperature: 0 is greedy.
        max_tokens: of a draft; the task's own limit where None.
        note: called with a sentence where something is worth saying.

    Raises:
        UnknownMethodError: the method names a stage that is not there.
        BadInputError: `k` or `max_tokens` below 1, or a negative temperature.
    """

    def __init__(
        self,
        store: Store,
        model: LanguageModel,
        method: str = DEFAULT_METHOD,
        *,
        search: Retriever | None = None,
        k: int = DEFAULT_K,
        texts: PromptTexts | None = None,
        temperature: float = 0.7,
        max_tokens: int | None = None,
        seed: int = 0,
        note: Callable[[str], None] | None = None,
    ) -> None:
        if k < 1 or (max_tokens is not None and max_tokens < 1) or temperature < 0:
            raise BadInputError(
                f"k ({k}) and max_tokens ({max_tokens}) must be 1 or more, "
                f"and the temperature ({temperature}) 0 or more"
            )
        self.store = store
        self.model = model
        self.method = method
        self.stages = stages(method)
        self.search = search or retriever("lexical")
        self.k = k
        self.texts = texts or PromptTexts.load()
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.seed = seed
        self.note = note

    def write(self, request: Request) -> Draft:
        """The draft for one request. Raises as `write_many` does."""
        return self.write_many([request])[0]

    def write_many(self, requests: Sequence[Request]) -> list[Draft]:
        """A draft for each request, in order.

        Raises:
            UnknownUserError, UnknownTaskError: a request names what is not there.
            EmptyHistoryError: the method needs documents and none of a request's authors has any.
            PromptTooLongError: a request alone exceeds the model's context.
        """
        drafts = self.prompts(requests)
        by_sampling: dict[Sampling, list[int]] = {}
        for number, draft in enumerate(drafts):
            by_sampling.setdefault(self._sampling(find_task(draft.request.task)), []).append(number)
        for sampling, numbers in by_sampling.items():
            started = time.perf_counter()
            answers = self.model.generate([drafts[number].prompt for number in numbers], 1, sampling)
            took = time.perf_counter() - started
            for number, [answer] in zip(numbers, answers, strict=True):
                draft = drafts[number]
                update = {
                    "text": "".join(_cleaned([answer.text], find_task(draft.request.task).one_line)),
                    "finish": answer.finish,
                    "prompt_tokens": answer.prompt_tokens,
                    "completion_tokens": answer.tokens,
                    "seconds": {**draft.seconds, "write": took},
                }
                drafts[number] = draft.model_copy(update=update)
        return drafts

    def stream(self, request: Request) -> Iterator[str]:
        """The text of one draft as it is written, piece by piece; what did not fit is told to `note`.

        Raises as `write_many` does.
        """
        [draft] = self.prompts([request])
        if self.note:
            for left_out in draft.dropped:
                self.note(f"left out: {left_out}")
        task = find_task(request.task)
        yield from _cleaned(self.model.stream(draft.prompt, self._sampling(task)), task.one_line)

    def prompts(self, requests: Sequence[Request]) -> list[Draft]:
        """The drafts as they stand before the model writes: all but the text. Raises as `write_many` does.

        Their prompts are what a real text is scored after.
        """
        items = self._open(requests)
        if "retrieval" in self.stages:
            self._timed("retrieve", items, self._retrieve)
        if "step-back" in self.stages:
            self._timed("profile", items, self._profile)
        return [self._built(item) for item in items]

    def _open(self, requests: Sequence[Request]) -> list[_Item]:
        """Each request with its task and those of its authors that have a history, where one is needed."""
        known: dict[History, bool] = {}
        items = []
        for request in requests:
            item = _Item(request, find_task(request.task), [], [])
            for history in _histories(request, request.users):
                if history not in known:
                    user = self.store.user(history.user)  # unknown users are an error for every method
                    known[history] = not self.stages or user.has_documents(history.before, history.exclude)
                if known[history]:
                    item.authors.append(history.user)
                else:
                    item.notes.append(f"{history.user!r} has no documents that may be used")
            if not item.authors:
                raise EmptyHistoryError(_no_history(request))
            items.append(item)
        return items

    def _retrieve(self, items: Sequence[_Item]) -> None:
        for item in items:
            request = item.request
            item.hits = [
                self.search.top(
                    self.store.user(user),
                    request.input,
                    self.k,
                    before=request.before,
                    exclude=request.exclude,
                )
                for user in item.authors
            ]

    def _profile(self, items: Sequence[_Item]) -> None:
        wanted = [history for item in items for history in _histories(item.request, item.authors)]
        unique = list(dict.fromkeys(wanted))
        profiles = profile_histories(self.store, self.model, unique, texts=self.texts, note=self.note)
        found = dict(zip(unique, profiles, strict=True))
        for item in items:
            item.profiles = [found[history] for history in _histories(item.request, item.authors)]

    def _timed(self, stage: str, items: Sequence[_Item], run: Callable[[Sequence[_Item]], None]) -> None:
        started = time.perf_counter()
        run(items)
        for item in items:
            item.seconds[stage] = time.perf_counter() - started

    def _built(self, item: _Item) -> Draft:
        sampling = self._sampling(item.task)
        built = build_prompt(
            item.task,
            item.request,
            shape=self.model.shape,
            texts=self.texts,
            profiles=item.profiles,
            hits=item.hits,
            count=self.model.count,
            room=self.model.context - sampling.max_tokens,
        )
        return Draft(
            text="",
            request=item.request,
            method=self.method,
            model=self.model.name,
            finish="stop",
            profiles=built.profiles,
            documents=built.hits,
            prompt=built.prompt,
            dropped=(*item.notes, *built.dropped),
            seconds=item.seconds,
            seed=self.seed,
        )

    def _sampling(self, task: Task) -> Sampling:
        return Sampling(
            max_tokens=self.max_tokens or task.max_tokens,
            temperature=self.temperature,
            stop=task.stop() if self.model.shape == "completion" else (),
            seed=self.seed,
        )


def _histories(request: Request, users: Sequence[str]) -> list[History]:
    return [History(user, request.before, request.exclude) for user in users]


def _no_history(request: Request) -> str:
    who = " and ".join(repr(user) for user in request.users)
    when = f" before {request.before.isoformat()}" if request.before else ""
    return (
        f"no documents of {who}{when} may be used: import some with `penname import`, "
        "or write without a history (--method none)"
    )


def _cleaned(pieces: Iterable[str], one_line: bool) -> Iterator[str]:
    """The answer alone, piece by piece: no blanks around it, nothing of a reasoning model's thinking aloud
    before it, and its first line where the task wants one."""
    held = ""  # what cannot be shown yet, or never
    shown = False
    for piece in pieces:
        held += piece
        while not shown:
            held = held.lstrip()
            if not held.startswith(_THINKS) or _THOUGHT not in held:
                break
            held = held.partition(_THOUGHT)[2]
        if not shown and (_THINKS.startswith(held) or held.startswith(_THINKS)):
            continue
        first, line_end, _ = held.partition("\n")
        if one_line and line_end:
            yield first.rstrip()
            return
        if ready := held.rstrip():
            yield ready
            shown = True
            held = held[len(ready) :]
    if not shown and held and not held.startswith(_THINKS):
        yield held.rstrip()
