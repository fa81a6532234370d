"""The one path from a request to a draft: retrieve, profile, put it to the model, write.

    writer = Writer(store, model)
    draft = writer.write(Request(task="email", input="Moving the deadline", users=("alice",)))

A method is a stack of stages joined by `+`: `none`, `retrieval`, `step-back`, `step-back+retrieval`; a
retriever may be named, as in `retrieval:dense`. All requests of a call go through each stage together, so the
model sees full batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penname.errors import BadInputError, EmptyHistoryError, UnknownMethodError, UnknownRetrieverError
from penname.lm.base import Generation, LanguageModel, Sampling
from penname.methods.stepback import History, profile_histories
from penname.records import Draft, Hit, Profile, Request
from penname.retrieve import RETRIEVERS, retriever
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


def stages(method: str) -> dict[str, str]:
    """The stages of a method's name, each with what stands behind its colon, or "".

    Raises:
        UnknownMethodError: a part of the name is no stage; the message offers the nearest.
        UnknownRetrieverError: `retrieval:` names no retriever.
        BadInputError: a stage stands twice, `none` beside another, or a colon after another stage.
    """
    parts = [part.partition(":") for part in method.split("+")]
    for stage, colon, named in parts:
        if stage not in STAGES:
            raise UnknownMethodError(stage, STAGES)
        if colon and stage != "retrieval":
            raise BadInputError(f"method {method!r}: only 'retrieval' takes a name after a colon")
        if colon and named not in RETRIEVERS:
            raise UnknownRetrieverError(named, RETRIEVERS)
    found = {stage: named for stage, _, named in parts}
    if len(found) != len(parts) or ("none" in found and len(parts) > 1):
        raise BadInputError(f"method {method!r}: each stage once, and 'none' alone")
    found.pop("none", None)
    return found


@dataclass(frozen=True)
class Material:
    """What stands in for an author's own material: evaluations compare with it, nothing else uses it.

    `profiles_of` are the users whose profiles stand in for the authors' own, in their order; `examples` are
    shown whatever the method, the best first.
    """

    profiles_of: tuple[str, ...] | None = None
    examples: tuple[Hit, ...] = ()


@dataclass
class _Item:
    """A request on its way to a draft: what was found for it, and the prompt that came of it."""

    request: Request
    task: Task
    material: Material
    authors: list[str]  # those whose history may be used, in author order
    notes: list[str]
    hits: list[list[Hit]] = field(default_factory=list)  # by author
    profiles: list[Profile] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class Writer:
    """Writes for the users of one store, with one model and one method.

    Args:
        method: stages joined by `+`.
        search: what the stage `retrieval` asks; where None the retriever that the method names, or else the
            lexical one.
        k: documents of each author that `retrieval` gives.
        texts: the prompt texts; penname's own, or those of PENNAME_PROMPTS, where None.
        temperature: 0 is greedy.
        max_tokens: of a draft; the task's own limit where None.
        note: called with a sentence where something is worth saying.

    Raises:
        UnknownMethodError, UnknownRetrieverError: the method names what is not there.
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
        self.search = search or retriever(self.stages.get("retrieval") or "lexical", seed)
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
            by_sampling.setdefault(self.sampling(find_task(draft.request.task)), []).append(number)
        for sampling, numbers in by_sampling.items():
            started = time.perf_counter()
            answers = self.model.generate([drafts[number].prompt for number in numbers], 1, sampling)
            took = time.perf_counter() - started
            for number, [answer] in zip(numbers, answers, strict=True):
                seconds = {**drafts[number].seconds, "write": took}
                drafts[number] = finished(drafts[number], answer).model_copy(update={"seconds": seconds})
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
        yield from _cleaned(self.model.stream(draft.prompt, self.sampling(task)), task.one_line)

    def prompts(
        self, requests: Sequence[Request], materials: Sequence[Material] | None = None
    ) -> list[Draft]:
        """The drafts as they stand before the model writes: all but the text. Raises as `write_many` does.

        Their prompts are what a real text is scored after.

        Args:
            materials: for each request what stands in for its authors' own material (see `Material`).
        """
        items = self._open(requests, materials or [Material()] * len(requests))
        if "retrieval" in self.stages:
            self._timed("retrieve", items, self._retrieve)
        if "step-back" in self.stages:
            self._timed("profile", items, self._profile)
        return [self._built(item) for item in items]

    def _open(self, requests: Sequence[Request], materials: Sequence[Material]) -> list[_Item]:
        """Each request with its task and those of its authors that have a history, where one is needed."""
        known: dict[History, bool] = {}
        items = []
        for request, material in zip(requests, materials, strict=True):
            item = _Item(request, find_task(request.task), material, [], [])
            item.hits = [[hit] for hit in material.examples]
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
            item.hits += [self._examples(item, user) for user in item.authors]

    def _examples(self, item: _Item, user: str) -> list[Hit]:
        """The k best documents of `user` that show the task done; the others could not be shown."""
        request = item.request
        wanted = self.k
        while True:
            hits = self.search.top(
                self.store.user(user),
                item.task.query(request.input),
                wanted,
                before=request.before,
                exclude=request.exclude,
            )
            shown = [hit for hit in hits if item.task.example(hit.document)]
            if len(shown) >= self.k or len(hits) < wanted:
                break
            wanted *= 4
        if not shown:
            item.notes.append(f"{user!r} has no document that shows the task {item.task.name!r} done")
        return shown[: self.k]

    def _profile(self, items: Sequence[_Item]) -> None:
        wanted = [_histories(item.request, item.material.profiles_of or item.authors) for item in items]
        unique = list(dict.fromkeys(history for histories in wanted for history in histories))
        profiles = profile_histories(self.store, self.model, unique, texts=self.texts, note=self.note)
        found = dict(zip(unique, profiles, strict=True))
        for item, histories in zip(items, wanted, strict=True):
            # Under the author's name, whoever's it is: it stands in the author's place of the prompt.
            item.profiles = [
                found[history].model_copy(update={"user": author})
                for author, history in zip(item.authors, histories, strict=True)
            ]

    def _timed(self, stage: str, items: Sequence[_Item], run: Callable[[Sequence[_Item]], None]) -> None:
        started = time.perf_counter()
        run(items)
        for item in items:
            item.seconds[stage] = time.perf_counter() - started

    def _built(self, item: _Item) -> Draft:
        sampling = self.sampling(item.task)
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

    def sampling(self, task: Task) -> Sampling:
        """How the model draws a text of this task."""
        return Sampling(
            max_tokens=self.max_tokens or task.max_tokens,
            temperature=self.temperature,
            stop=task.stop() if self.model.shape == "completion" else (),
            seed=self.seed,
        )


def finished(draft: Draft, answer: Generation) -> Draft:
    """`draft` with what the model wrote."""
    update = {
        "text": "".join(_cleaned([answer.text], find_task(draft.request.task).one_line)),
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.tokens,
    }
    return draft.model_copy(update=update)


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
