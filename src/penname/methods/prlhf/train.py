"""Training by preferences: P-DPO and its kin, and P-RM (arXiv 2402.05133); without users both are vanilla.

prepared = prepare(read_preferences("preferences.jsonl"))
trained = train_preferences("p-dpo", prepared, Path("out"), config=PDPOConfig())
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from penname.errors import BadInputError
from penname.methods.prlhf.answers import Answers, Question
from penname.methods.prlhf.card import model_card
from penname.methods.prlhf.config import HEAD, PDPOConfig
from penname.methods.prlhf.jobs import (
    Example,
    Judge,
    PreferenceJob,
    judge_pairs,
    judge_ratings,
    judge_sparse,
    with_reference,
)
from penname.methods.prlhf.leaning import leanings
from penname.methods.prlhf.table import UserTable
from penname.methods.prlhf.texts import TextReader
from penname.methods.prlhf.users import GENERIC, SoftUsers
from penname.train.checkpoint import save_tensors
from penname.train.folder import Trained, check_free, finish, workshop
from penname.train.index import create_index
from penname.train.kept import Asked, Kept
from penname.train.loop import Progress, steps_of, train
from penname.train.model import Trainable, load_trainable, save_weights
from penname.train.optimizer import Optimizer
from penname.train.preferences.data import Prepared, fit, split

Method = Literal["p-dpo", "p-rm"]


def train_preferences(
    method: Method,
    prepared: Prepared,
    out: Path,
    *,
    model: str | None = None,
    config: PDPOConfig = PDPOConfig(),
    task: str | None = None,
    reference: Path | None = None,
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train a model and its users' soft prompts on preferences, or go on where that was stopped.

    Args:
        prepared: pairs, or rated texts for the loss "kto".
        out: the result's folder; must not be there yet.
        model: the base, as `penname.lm.load_model` takes it.
        task: how prompts are put to the model; None: as they stand.
        reference: a file of the reference's log-probabilities that several trainings share; None: one of
            this training's own, removed at its end.
        progress: called with steps done, steps in all, and the newest figures.
        note: told what a person should know.

    Raises:
        BadInputError: nothing fits into the context, the kind of data does not fit the loss, `out` is there.
        TrainedError: a checkpoint is cut short.
        ModelError: the model cannot be loaded, or not trained here.
    """
    if (config.loss == "kto") != bool(prepared.rated) or (config.loss == "kto" and method == "p-rm"):
        raise BadInputError(
            f"{method} with the loss {config.loss!r} cannot train on this kind of preferences"
        )
    if method == "p-rm" and (config.anchor or config.sparse):
        raise BadInputError("anchor, sparse: a reward has no tokens that could lose; leave them out")
    check_free(out.expanduser())
    trainable = load_trainable(
        model, weights=config.weights, lora=config.lora, dtype=config.dtype, seed=config.loop.seed
    )
    reader = TextReader(trainable, task)
    soft = config.user_tokens if config.users != "none" else 0
    fitting = fit(prepared, reader.lengths, min(config.max_tokens, trainable.context) - soft)
    kept, held = split(fitting, config.held_out, config.loop.seed)
    asked = {
        "method": method,
        "model_fingerprint": trainable.fingerprint,
        "settings": {
            **asdict(config),
            "task": task,
            "shape": trainable.shape,
            "about": any(item.about for item in prepared.items),
        },
        "data": {
            "fingerprint": fitting.fingerprint,
            "pairs": len(kept),
            "held_out": len(held),
            "users": len(fitting.users),
            "left_out": fitting.left_out,
        },
    }
    with workshop(out, asked) as folder:
        numbers = {user: number for number, user in enumerate(kept.users)} if soft else {}
        sides = [reader.examples(side.items, numbers) for side in (kept, held)]
        by_token = config.sparse > 0
        if method == "p-dpo":
            note(f"the reference's log-probabilities of {len(fitting):,} preferences, once")
            model_name = f"{trainable.fingerprint} {trainable.dtype}{' by token' if by_token else ''}"
            numbers_kept = Kept(reference or folder / "reference.sqlite", model_name)
            sides = [
                _with_reference(side, trainable, numbers_kept, config.portion, by_token=by_token)
                for side in sides
            ]
        parts = _Parts.new(method, trainable, config, sides[0], len(numbers))
        steps = steps_of(len(sides[0]), config.loop)
        mixtures = frozenset[str]() if parts.users is None else parts.users.mixtures
        optimizer = Optimizer(trainable.parameters, parts.own, config.optimizer, steps, mixtures)
        job = PreferenceJob(
            Answers(trainable.reader, parts.users, parts.head, by_token=by_token),
            _judge(method, config),
            *sides,
            alpha=config.alpha,
            portion=config.portion,
        )
        found = train(job, optimizer, config.loop, folder, progress=progress)
        card = {
            **asked,
            "model": trainable.spec,
            "held_out": found,
            "rewards": [],
            "version": version("penname"),
        }

        def fill(result: Path) -> None:
            save_weights(trainable, optimizer, result)
            parts.save(result, kept, fitting.users, numbers)
            (result / "README.md").write_text(model_card(card), encoding="utf-8")

        return finish(folder, out, card, fill)


def _judge(method: Method, config: PDPOConfig) -> Judge:
    if config.loss == "kto":
        return judge_ratings(config.beta)
    if method == "p-rm":
        return judge_pairs(1.0, "sigmoid")
    if config.sparse:
        return judge_sparse(config.beta, config.loss, config.sparse, config.anchor)
    return judge_pairs(config.beta, config.loss, config.anchor)


@dataclass(frozen=True)
class _Parts:
    """What is trained beside the language model: the users' soft prompts, and the head of a reward."""

    users: SoftUsers | None
    head: torch.nn.Parameter | None

    @classmethod
    def new(
        cls, method: Method, model: Trainable, config: PDPOConfig, examples: Sequence[Example], n_users: int
    ) -> _Parts:
        users, head = None, None
        if config.users != "none":
            embeddings = model.reader.embeddings.weight
            users = SoftUsers(
                config.users, n_users, embeddings, config.user_tokens, config.clusters, config.loop.seed
            )
            if config.lean:
                users.lean(config.lean * leanings(examples, n_users, embeddings))
        if method == "p-rm":
            head = torch.nn.Parameter(torch.zeros(model.reader.width, device=model.reader.device))
        return cls(users, head)

    @property
    def own(self) -> dict[str, torch.nn.Parameter]:
        """The parameters, by name."""
        found = dict(self.users.trained()) if self.users is not None else {}
        return found if self.head is None else {**found, "head": self.head}

    def save(self, result: Path, kept: Prepared, seen: Sequence[str], numbers: Mapping[str, int]) -> None:
        """Write the users' table, or who was seen where there is none, and the head."""
        if self.users is None:
            create_index(result, seen)
        else:
            counts = Counter(item.user for item in kept.items)
            rows = [(user, self.users.row(number), counts[user]) for user, number in numbers.items()]
            shape = self.users.row(0).shape
            UserTable.create(result, self.users.shared_arrays(), rows, shape).close()
        if self.head is not None:
            save_tensors(result / HEAD, {"head": self.head.detach()}, {})


def _with_reference(
    examples: Sequence[Example], model: Trainable, kept: Kept, portion: int, *, by_token: bool
) -> list[Example]:
    """The examples with what the reference, the model as it is before training, says; kept on disk."""
    answers = Answers(model.reader, by_token=by_token)

    def compute(asked: Sequence[Asked]) -> Iterator[Mapping[int, float | bytes]]:
        questions = [Question(GENERIC, prompt, answer) for prompt, answer in asked]
        if not by_token:
            yield from answers.each(questions, portion)
            return
        for some in answers.each_by_token(questions, portion):
            yield {place: np.array(tokens, np.float32).tobytes() for place, tokens in some.items()}

    return with_reference(examples, lambda asked: kept.ask(asked, compute))
