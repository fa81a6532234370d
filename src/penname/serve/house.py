"""What all requests of a server share: the store, the model, trained runs, retrievers and the latest drafts.

    house = House(ServeSettings(db="penname.db"))
    writer = house.writer("p-dpo:mine")

A client names a method as the command line does, but for runs: behind a colon stands the name of a run that
the server has, never a path.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from anyio import CapacityLimiter

from penname.errors import BadInputError, TrainedError, UnknownMethodError
from penname.lm import LanguageModel, load_embedder, load_model, over_gguf
from penname.lm.embedded import GGUFModel
from penname.methods.runs import Runs, open_runs
from penname.methods.stages import STAGES, TRAINED, stages
from penname.paths import trained_dir
from penname.records import Draft
from penname.retrieve import EMBEDDING, retriever
from penname.serve.compute import compute
from penname.serve.drafts import Drafts, Kept
from penname.serve.engine import Alone, Batcher, shared
from penname.serve.settings import ServeSettings
from penname.store import Store, UserStore
from penname.tasks import PromptTexts
from penname.train.folder import CARD, Trained, open_trained
from penname.writer import DEFAULT_METHOD, Writer

if TYPE_CHECKING:
    from penname.methods.pit.improve import Gaps
    from penname.methods.prlhf.rerank import Reward
    from penname.retrieve.base import Embedder, Retriever

MODEL = "penname"  # what a model's name begins with, in OpenAI's API
UNTRAINED = ("none", "retrieval", "step-back", "step-back+retrieval")
# What a run is used as, by the method that its card names.
_STAGE = {
    **dict.fromkeys(("sft", "sft-reasoning", "rest-em", "rest-pg"), "rest-pg"),
    "p-dpo": "p-dpo",
    "p-rm": "p-rm",
    "pit": "pit",
    "pit-rl": "pit",
}


class House:
    """What all requests share. Threads may use it at once.

    Args:
        model: the base model, where it is open already.
        batched: called with the number of texts of each batch that is written.

    Raises:
        StoreError, ModelError, BadInputError: store, model or prompt texts cannot be used.
        TrainedError: a folder of `settings.runs` holds no run.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        model: LanguageModel | None = None,
        batched: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.settings = settings
        self.batched = batched
        self.texts = PromptTexts.load(settings.prompts)
        for folder in settings.runs:
            open_trained(_usable(folder.expanduser().resolve()))
        model = model or load_model(settings.model)
        self.model = shared(model if settings.share_prompts else _isolated(model), self._batch)
        self.store = Store(settings.db)
        self.drafts = Drafts(numbers=self.store.numbers)
        self.started = datetime.now(UTC)
        self.threads = CapacityLimiter(settings.concurrent)  # those that write, apart from all others
        self._opened: dict[tuple[str, Path], tuple[int, Runs]] = {}  # with the time of the run's card
        self._retrievers: dict[str, Retriever] = {}
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    def runs(self) -> dict[str, Path]:
        """The trained runs that are there, whole, by name: the last part of the folder's path.

        Where several folders end alike, each name has a few digits of the path's hash behind it.
        """
        return {name: run.path for name, run in self._trained().items()}

    def models(self) -> list[str]:
        """The names of models that `/v1/models` lists."""
        found = [(_STAGE.get(run.method), name) for name, run in self._trained().items()]
        trained = [f"{stage}:{name}" for stage, name in found if stage is not None]
        return [f"{MODEL}/{method}" for method in (*UNTRAINED, *trained)]

    def method(self, name: str) -> str:
        """The method that a client's name means: stages joined by `+`, each run by its name.

        "penname/METHOD", METHOD, or "penname" for the default one. A run's name alone is the run's own stage;
        a trained stage alone is the run that is called so, or else the only one that there is.

        Raises:
            UnknownMethodError: a stage or run that is not there.
            BadInputError: stages that do not go together.
        """
        return "+".join(f"{stage}:{named}" if named else stage for stage, named, _ in self._parts(name))

    def writer(
        self,
        method: str = MODEL,
        *,
        temperature: float = 0.7,
        max_tokens: int | None = None,
        seed: int = 0,
        k: int | None = None,
    ) -> Writer:
        """A writer with a client's method, over what all requests share: it costs next to nothing.

        Args:
            method: as `method` takes it, or gives it.

        Raises:
            UnknownMethodError, BadInputError: as `method`, and as `Writer`.
            TrainedError: a run cannot be used.
        """
        parts = self._parts(method)
        runs = self._open({stage: run for stage, _, run in parts if run is not None})
        named = _joined(parts)
        search = stages(named).get("retrieval")
        return Writer(
            self.store,
            self.model,
            named,
            search=None if search is None else self._retriever(search or "lexical"),
            k=k,
            texts=self.texts,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            reasoning=runs.reasoning,
            personal=runs.personal,
            reward=runs.reward,
            improver=runs.improver,
        )

    def keep(
        self,
        id: str,  # noqa: A002
        method: str,
        drafts: list[Draft],
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        """Keep a request's drafts, so that they can be explained; none of a user who is erased meanwhile.

        Args:
            method: by its client's name: a draft's own holds the paths of runs, which are the server's.
            numbers: the users' (`Store.numbers`) when the drafts were begun; those of now where None.
        """
        users = drafts[0].request.users
        if numbers is None:
            numbers = self.store.numbers(users)
        if any(user not in numbers for user in users):
            return
        shown = tuple(
            draft.model_copy(update={"method": method, "model": re.split(r"[/\\#]", draft.model)[-1]})
            for draft in drafts
        )
        self.drafts.keep(Kept(id, datetime.now(UTC), shown, numbers))
        self.drafts.get(id, users)  # drops it again, where a user was erased just now

    def forget(self, user: UserStore) -> int:
        """Drop what is in memory of an erased user: documents, prompts and drafts.

        Returns:
            The number of drafts.
        """
        with self._lock:
            retrievers = list(self._retrievers.values())
        for one in retrievers:
            one.forget(user)
        for model in self._batchers():
            model.forget(user.id, user.number)
        return self.drafts.forget(user.id)

    def sweep(self) -> None:
        """Drop what is in memory of users whom another process has erased."""
        with self._lock:
            retrievers = list(self._retrievers.values())
        for one in retrievers:
            one.sweep(self.store.numbers)
        for model in self._batchers():
            model.sweep(self.store.numbers)
        self.drafts.sweep()

    def close(self) -> None:
        """Close the store, and end what writes in batches when that is done."""
        for model in self._batchers():
            model.close()
        self.store.close()

    def _batchers(self) -> list[Batcher]:
        """The models that write in batches of ours: the base, and those of runs that are open."""
        with self._opening:
            opened = [runs for _, runs in self._opened.values()]
        models = [self.model, *(model for runs in opened for model in _models(runs))]
        return [model for model in models if isinstance(model, Batcher)]

    def _parts(self, name: str) -> list[tuple[str, str, Path | None]]:
        """Each stage of a client's method with what stands behind its colon, and the run's folder."""
        method = DEFAULT_METHOD if name == MODEL else name.removeprefix(f"{MODEL}/")
        trained = self._trained()
        found = [_part(part, trained) for part in method.split("+")]
        stages(_joined(found))  # refuses what does not go together
        return found

    def _trained(self) -> dict[str, Trained]:
        """The runs that are there, whole, by name."""
        noted = [run.path for run in self.store.trained()]
        folders = dict.fromkeys([*(folder.expanduser().resolve() for folder in self.settings.runs), *noted])
        there = list(_whole(folders))
        return dict(zip(by_name([run.path for run in there]), there, strict=True))

    def _open(self, wanted: dict[str, Path]) -> Runs:
        """The runs of a method, each opened once and shared."""
        found: dict[str, Any] = {}
        for stage in ("rest-pg", "p-dpo", "p-rm", "pit"):
            if stage in wanted:
                runs = self._opened_run(stage, wanted[stage])
                found[_FIELD[stage]] = getattr(runs, _FIELD[stage])
        return Runs(**found)

    def _opened_run(self, stage: str, folder: Path) -> Runs:
        """One run, opened anew where it was trained anew."""
        try:
            made = (folder / CARD).stat().st_mtime_ns
        except OSError:
            raise TrainedError(f"{folder} is gone") from None
        with self._opening:
            known = self._opened.get((stage, folder))
            if known is None or known[0] != made:
                named = {stage: str(folder)}
                runs = compute(lambda: _shared(open_runs(named, self.model, Runs()), self._batch))
                known = self._opened[stage, folder] = made, runs
            return known[1]

    def _batch(self, texts: int) -> None:
        self.batched(texts)

    def _retriever(self, name: str) -> Retriever:
        with self._lock:
            if name not in self._retrievers:
                embedder = cast("Embedder", Alone(load_embedder())) if name in EMBEDDING else None
                self._retrievers[name] = retriever(name, embedder=embedder)
            return self._retrievers[name]


_FIELD = {"rest-pg": "reasoning", "p-dpo": "personal", "p-rm": "reward", "pit": "improver"}  # in `Runs`


def _isolated(model: LanguageModel) -> LanguageModel:
    """The model, run so that what prompts begin with is kept for each user alone: OpenVINO has no way to."""
    return over_gguf(model.config) if isinstance(model, GGUFModel) else model


def by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders, in order, by the last part of each; where several end alike, with digits behind it."""
    count = Counter(folder.name for folder in folders)
    return {
        folder.name if count[folder.name] == 1 else f"{folder.name}-{_digits(folder)}": folder
        for folder in folders
    }


def _part(part: str, trained: Mapping[str, Trained]) -> tuple[str, str, Path | None]:
    """A part of a client's method: the stage, what stands behind its colon, and the run's folder.

    Raises:
        UnknownMethodError: no such stage, or no such run of it.
    """
    stage, colon, named = part.partition(":")
    if not colon and stage not in STAGES and stage in trained:
        stage, colon, named = _STAGE.get(trained[stage].method, ""), ":", stage
    if stage not in TRAINED:
        if stage not in STAGES:
            raise UnknownMethodError(part, [*STAGES, *trained])
        return stage, part.partition(":")[2], None
    usable = {name: run for name, run in trained.items() if _serves(stage, run)}
    if not colon:
        own = [name for name, run in usable.items() if run.path == trained_dir(stage).resolve()]
        found = own or [name for name in usable if name == stage] or list(usable)
        if len(found) != 1:
            raise UnknownMethodError(part, [f"{stage}:{name}" for name in usable])
        [named] = found
    if named not in usable:
        raise UnknownMethodError(part, [f"{stage}:{name}" for name in usable])
    return stage, named, usable[named].path


def _joined(parts: Iterable[tuple[str, str, Path | None]]) -> str:
    """The method as `Writer` takes it: runs by their folders."""
    named = ((stage, str(run) if run is not None else name) for stage, name, run in parts)
    return "+".join(f"{stage}:{name}" if name else stage for stage, name in named)


def _serves(stage: str, run: Trained) -> bool:
    """Whether the run can be used at that stage. A run of P-DPO has an implicit reward besides."""
    return _STAGE.get(run.method) == stage or (stage == "p-rm" and run.method == "p-dpo")


def _whole(folders: Iterable[Path]) -> Iterator[Trained]:
    """The results of training in those folders that hold one which is whole, and can be named."""
    for folder in folders:
        try:
            yield open_trained(_usable(folder))
        except (BadInputError, TrainedError):  # gone, being made, or of a newer penname
            continue


def _usable(folder: Path) -> Path:
    """The folder, whose path can stand in a method's name.

    Raises:
        BadInputError: it cannot.
    """
    if "+" in str(folder):
        raise BadInputError(f"{folder} cannot be served: its path holds a +, which joins stages; rename it")
    return folder


def _digits(folder: Path) -> str:
    return sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:6]


def _shared(runs: Runs, told: Callable[[int], None]) -> Runs:
    """The runs as many threads may use them at once."""
    if runs.personal is not None:
        runs.personal.model = shared(runs.personal.model, told)
    reasoning = runs.reasoning
    if reasoning is not None:
        reasoning = replace(reasoning, model=shared(reasoning.model, told))
    improver = runs.improver
    if improver is not None:
        improver.model = shared(improver.model, told)
        improver.gap = cast("Gaps", Alone(improver.gap))
    reward = None if runs.reward is None else cast("Reward", Alone(runs.reward))
    return Runs(reasoning, runs.personal, reward, improver)


def _models(runs: Runs) -> list[LanguageModel]:
    """The models that write with the runs."""
    return [run.model for run in (runs.reasoning, runs.personal, runs.improver) if run is not None]
