"""The one path from a request to a draft: retrieve, profile, put it to the model, write.

    writer = Writer(store, model)
    draft = writer.write(Request(task="email", input="Moving the deadline", users=("alice",)))

A method is a stack of stages joined by `+`: `none`, `retrieval`, `step-back`, `step-back+retrieval`; a
retriever may be named, as in `retrieval:dense`. `rest-pg` writes with the model of a trained run, which
reasons about the writer first, from what it learnt to be shown. `p-dpo` writes with the model of a trained
run, after the user's soft prompt, and `p-rm` keeps the best of several drafts; `pit`, the last, improves the
draft in rounds. A colon names the run, as in `step-back+p-dpo:DIR`. All requests of a call go through each
stage together, so the model sees full batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from penname.errors import BadInputError, EmptyHistoryError
from penname.lm.base import LanguageModel, Sampling
from penname.methods.pen import Pen, cleaned, written
from penname.methods.runs import Runs, open_runs
from penname.methods.stages import STAGES, reads_history, stages
from penname.methods.stepback import History, profile_histories
from penname.records import Draft, Hit, Profile, Request
from penname.retrieve import retriever
from penname.store import Store
from penname.tasks import PromptTexts, Task, build_prompt
from penname.tasks import task as find_task

if TYPE_CHECKING:
    from penname.methods.pit.improve import ImproveConfig, Improver, Improving
    from penname.methods.prlhf.method import Personal
    from penname.methods.prlhf.rerank import Reward
    from penname.methods.restpg.format import Format
    from penname.methods.restpg.method import Reasoning
    from penname.retrieve.base import Retriever

__all__ = ["STAGES", "Material", "Writer", "stages"]

DEFAULT_METHOD = "step-back+retrieval"
DEFAULT_K = 5  # documents of each author (arXiv 2406.14275, section 3.3)
DEFAULT_CANDIDATES = 4  # drafts that `p-rm` chooses from


@dataclass(frozen=True)
class Material:
    """What stands in for an author's own material: evaluations compare with it, nothing else uses it.

    `profiles_of` are the users whose profiles stand in for the authors' own, in their order, and `vectors_of`
    those whose trained vectors do; `examples` are shown whatever the method, the best first.
    """

    profiles_of: tuple[str, ...] | None = None
    examples: tuple[Hit, ...] = ()
    vectors_of: tuple[str, ...] | None = None


@dataclass
class _Item:
    """A request on its way to a draft: what was found for it, and the prompt that came of it."""

    request: Request
    task: Task
    material: Material
    authors: list[str]  # those whose history may be used, in author order
    left_out: list[str]
    pen: Pen
    hits: list[list[Hit]] = field(default_factory=list)  # by author
    profiles: list[Profile] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class Writer:
    """Writes for the users of one store, with one model and one method.

    Args:
        method: stages joined by `+`.
        search: what the stage `retrieval` asks; where None the retriever that the method names, or else the
            lexical one.
        k: documents of each author that `retrieval` gives; where None, as many as the run of `rest-pg` learnt
            with, or else 5.
        texts: the prompt texts; penname's own, or those of PENNAME_PROMPTS, where None.
        temperature: 0 is greedy.
        max_tokens: of a draft; the task's own limit where None.
        candidates: drafts that `p-rm` chooses from.
        reasoning, personal, reward, improver: the runs of `rest-pg`, `p-dpo`, `p-rm` and `pit`, where they
            are open already.
        improve: how `pit` improves; a `max_tokens` of the writer's holds for its texts too.
        note: called with a sentence where something is worth saying.

    Raises:
        UnknownMethodError, UnknownRetrieverError: the method names what is not there.
        BadInputError: `k` or `max_tokens` below 1, a negative temperature, or candidates that would be alike.
        TrainedError: the run that the method names cannot be used.
    """

    def __init__(
        self,
        store: Store,
        model: LanguageModel,
        method: str = DEFAULT_METHOD,
        *,
        search: Retriever | None = None,
        k: int | None = None,
        texts: PromptTexts | None = None,
        temperature: float = 0.7,
        max_tokens: int | None = None,
        seed: int = 0,
        candidates: int = DEFAULT_CANDIDATES,
        reasoning: Reasoning | None = None,
        personal: Personal | None = None,
        reward: Reward | None = None,
        improver: Improver | None = None,
        improve: ImproveConfig | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        if (k is not None and k < 1) or (max_tokens is not None and max_tokens < 1) or temperature < 0:
            raise BadInputError(
                f"k ({k}) and max_tokens ({max_tokens}) must be 1 or more, "
                f"and the temperature ({temperature}) 0 or more"
            )
        self.store = store
        self.model = model
        self.method = method
        self.stages = stages(method)
        self.search = search or retriever(self.stages.get("retrieval") or "lexical", seed)
        self.texts = texts or PromptTexts.load()
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.seed = seed
        self.note = note
        self.reads_history = reads_history(method)
        self.improve = improve
        runs = open_runs(self.stages, model, Runs(reasoning, personal, reward, improver))
        self.reasoning, self.personal = runs.reasoning, runs.personal
        self.reward, self.improver = runs.reward, runs.improver
        self.k = k or (self.reasoning and self.reasoning.k) or DEFAULT_K
        self.candidates = candidates if "p-rm" in self.stages else 1
        if self.candidates < 1 or (self.candidates > 1 and temperature == 0):
            raise BadInputError(
                f"method {method!r}: {candidates} candidates at the temperature {temperature}; p-rm needs 1 "
                "or more, and a temperature above 0, or else they would be all the same"
            )

    def knows(self, user: str) -> bool:
        """Whether the method's trained runs have a part of this user's own."""
        personal = self.personal is None or not self.personal.has_users or self.personal.knows(user)
        return personal and (self.reward is None or self.reward.knows(user))

    @property
    def writes(self) -> LanguageModel:
        """The model that writes the drafts: a trained run's, where there is one; `model` makes profiles."""
        if self.personal is not None:
            return self.personal.model
        return self.model if self.reasoning is None else self.reasoning.model

    @property
    def format(self) -> Format | None:
        """How what is reasoned first is told apart from the text; None where nothing is."""
        return None if self.reasoning is None else self.reasoning.format

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
        pens = [self.pen(request) for request in requests]
        by_sampling: dict[Sampling, list[int]] = {}
        for number, draft in enumerate(drafts):
            by_sampling.setdefault(self.sampling(find_task(draft.request.task)), []).append(number)
        for sampling, numbers in by_sampling.items():
            started = time.perf_counter()
            done = written([drafts[i] for i in numbers], [pens[i] for i in numbers], sampling)
            took = time.perf_counter() - started
            for number, draft in zip(numbers, done, strict=True):
                seconds = {**draft.seconds, "write": took}
                drafts[number] = draft.model_copy(update={"seconds": seconds})
        return drafts

    def stream(self, request: Request) -> Iterator[str]:
        """The text of one draft as it is written, piece by piece; what did not fit is told to `note`.

        Where the method reasons first, it begins with the text. With `p-rm` or `pit` it comes at once when it
        is chosen or improved. Raises as `write_many` does.
        """
        [draft] = self.prompts([request])
        self._tell((*draft.notes, *(f"left out: {left_out}" for left_out in draft.dropped)))
        task, pen = find_task(request.task), self.pen(request)
        sampling = self.sampling(task)
        if pen.reward is not None or pen.improving is not None:
            told = len(draft.notes)
            [draft] = written([draft], [pen], sampling)
            self._tell(draft.notes[told:])
            yield from [draft.text] if draft.text else []
            return
        pieces = pen.model.stream(draft.prompt, sampling, pen.prefix)
        if pen.format is not None:
            pieces = pen.format.answer(pieces)
        yield from cleaned(pieces, task.one_line)

    def _tell(self, remarks: Sequence[str]) -> None:
        for said in remarks:
            if self.note:
                self.note(said)

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

    def pen(self, request: Request, material: Material = Material()) -> Pen:
        """What writes the draft for a request."""
        users = material.vectors_of or request.users
        prefix = None if self.personal is None else self.personal.prefix(*users)
        improving = self._improving(request, material)
        if self.reward is None:
            return Pen(self.writes, prefix, format=self.format, improving=improving)
        return Pen(self.writes, prefix, self.reward, self.candidates, users, self.format, improving)

    def _improving(self, request: Request, material: Material) -> Improving | None:
        """What is done to the draft then; None where the method has no `pit`."""
        if self.improver is None:
            return None
        from penname.methods.pit.about import joined
        from penname.methods.pit.improve import ImproveConfig, Improving

        config = self.improve or ImproveConfig()
        config = replace(
            config,
            max_tokens=config.max_tokens or self.max_tokens,
            one_line=config.one_line or find_task(request.task).one_line,
        )
        return Improving(self.improver, config, joined(self._described(request, material)))

    def _described(self, request: Request, material: Material) -> list[Profile]:
        """Profiles to improve by: those that the store has. With `step-back` the draft brings its own."""
        if "step-back" in self.stages:
            return []
        from penname.methods.pit.about import newest_profiles

        users = material.profiles_of or request.users
        return newest_profiles(self.store, users, request.before, request.exclude)

    def _open(self, requests: Sequence[Request], materials: Sequence[Material]) -> list[_Item]:
        """Each request with its task and those of its authors that have a history, where one is needed."""
        known: dict[History, bool] = {}
        items = []
        for request, material in zip(requests, materials, strict=True):
            item = _Item(request, find_task(request.task), material, [], [], self.pen(request, material))
            item.hits = [[hit] for hit in material.examples]
            for history in _histories(request, request.users):
                if history not in known:
                    user = self.store.user(history.user)  # unknown users are an error for every method
                    known[history] = not self.reads_history or user.has_documents(
                        history.before, history.exclude
                    )
                if known[history]:
                    item.authors.append(history.user)
                else:
                    item.left_out.append(f"{history.user!r} has no documents that may be used")
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
            item.left_out.append(f"{user!r} has no document that shows the task {item.task.name!r} done")
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
        taken = 0 if item.pen.prefix is None else len(item.pen.prefix.rows)
        taken += 0 if sampling.thinking is None else sampling.thinking.budget
        built = build_prompt(
            item.task,
            item.request,
            shape=self.writes.shape,
            texts=self.texts,
            profiles=item.profiles,
            hits=item.hits,
            count=self.writes.count,
            room=self.writes.context - sampling.max_tokens - taken,
        )
        return Draft(
            text="",
            request=item.request,
            method=self.method,
            model=self.writes.name,
            finish="stop",
            profiles=built.profiles,
            documents=built.hits,
            prompt=built.prompt,
            dropped=(*item.left_out, *built.dropped),
            notes=(*self._notes(item), *self._undescribed(item)),
            seconds=item.seconds,
            seed=self.seed,
        )

    def _notes(self, item: _Item) -> Iterator[str]:
        """What the trained stages could not do as their names say."""
        learnt = item.task.name if self.reasoning is None else self.reasoning.task
        if learnt != item.task.name:
            yield f"rest-pg: the run learnt the task {learnt!r}, and this is {item.task.name!r}"
        users = item.material.vectors_of or item.request.users
        if item.pen.prefix is not None and len(users) > 1:
            yield f"p-dpo: the soft prompt is the mean of the {len(users)} authors'"
        knowing: dict[str, Callable[[str], bool]] = {}
        if self.personal is not None and item.pen.prefix is not None:
            knowing["p-dpo"] = self.personal.knows
        if self.reward is not None:
            knowing["p-rm"] = self.reward.knows
        for stage, knows in knowing.items():
            for user in users:
                if not knows(user):
                    yield f"{stage}: the run does not know {user!r}; the generic user stands in"

    def _undescribed(self, item: _Item) -> list[str]:
        """For whom a draft is improved without a profile."""
        if self.improver is None or "step-back" in self.stages:
            return []
        described = {profile.user for profile in self._described(item.request, item.material)}
        users = item.material.profiles_of or item.request.users
        return [f"pit: there is no profile of {user!r} to go by" for user in users if user not in described]

    def sampling(self, task: Task) -> Sampling:
        """How the model draws a text of this task."""
        return Sampling(
            max_tokens=self.max_tokens or task.max_tokens,
            temperature=self.temperature,
            stop=task.stop() if self.writes.shape == "completion" else (),
            seed=self.seed,
            thinking=None if self.format is None else self.format.thinking(self.writes.shape),
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
