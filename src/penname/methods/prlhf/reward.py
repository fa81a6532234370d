"""Rewards of trained runs: how much a user likes an answer (arXiv 2402.05133, section 4).

A run of P-RM says it with a scalar head, or with the low-rank form on fixed features; a run of P-DPO by its
implicit reward β (log π(y|x, e_u) − log π_ref(y|x)) (arXiv 2305.18290, equation 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penname.errors import BadInputError, TrainedError
from penname.lm import ModelConfig
from penname.lm.files import fingerprint
from penname.methods.prlhf.answers import Answers, Question
from penname.methods.prlhf.config import FEATURED, HEAD
from penname.methods.prlhf.soft import SoftTable
from penname.methods.prlhf.texts import TextReader
from penname.methods.prlhf.users import GENERIC
from penname.records import Prompt
from penname.train.base import load_run
from penname.train.checkpoint import load_tensors
from penname.train.folder import CARD, Trained, open_trained
from penname.train.model import Trainable

if TYPE_CHECKING:
    from penname.methods.prlhf.rerank import Reward


def open_reward(folder: Path | str, model: str | ModelConfig | None = None) -> Reward:
    """The reward of the run in `folder`, of P-RM or P-DPO. The base model alone never stands in for it.

    Args:
        model: the base model, where it is no longer where the run recorded it.

    Raises:
        TrainedError: no such run, or it is cut short, or its base model is not there or has other weights.
    """
    trained = open_trained(folder, "p-rm", "p-dpo")
    if trained.settings.get("users") in FEATURED:
        from penname.methods.prlhf.featured import open_featured

        return open_featured(trained, model)
    return ModelReward(trained, load_run(trained, model))


class ModelReward:
    """The reward of a run that trained a language model. Implements `rerank.Reward`."""

    def __init__(self, trained: Trained, model: Trainable) -> None:
        self._trained = trained
        self._model = model
        self._users = SoftTable.open(trained, model.reader.width)
        self._head = head_of(trained, model)
        self._texts = TextReader(model, trained.settings.get("task"))
        files = [file for file in trained.path.rglob("*") if _decides(file)]
        self.fingerprint = fingerprint(files)

    def key(self, user: str) -> str:
        """As `Reward.key`."""
        return self._users.key(user) if self._users else ""

    def knows(self, user: str) -> bool:
        """As `Reward.knows`."""
        return self._users is not None and self._users.knows(user)

    def rewards(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        users: Sequence[str | None],
        abouts: Sequence[str] | None = None,
    ) -> list[float]:
        """The reward of each text after its prompt, for its user; the generic user's where unknown.

        Args:
            prompts: as preferences have them; the run's own task puts them to the model.
            abouts: texts about the users, as in training.

        Raises:
            BadInputError: a prompt and its text do not fit into the context.
        """
        numbers = {user: number for number, user in enumerate(dict.fromkeys(users))}
        questions = [
            Question(numbers[user], self._texts.prompt(prompt, about), self._texts.answer(text))
            for prompt, text, user, about in zip(
                prompts, texts, users, abouts or [""] * len(prompts), strict=True
            )
        ]
        self._check_fit(questions)
        soft = None
        if self._users is not None:
            found = [torch.from_numpy(np.array(self._users.rows(user))) for user in numbers]
            table = torch.stack(found) if found else torch.zeros(0)

            def soft(asked: Sequence[int]) -> torch.Tensor:
                return table[list(asked)].to(self._model.reader.device)

        values = self._ask(Answers(self._model.reader, soft, self._head), questions)
        if self._head is not None:
            return values
        with reference(self._model):
            base = self._ask(Answers(self._model.reader), [one._replace(user=GENERIC) for one in questions])
        beta = float(self._trained.settings["beta"])
        return [beta * (ours - theirs) for ours, theirs in zip(values, base, strict=True)]

    def _ask(self, answers: Answers, questions: Sequence[Question]) -> list[float]:
        return answers.all(questions, int(self._trained.settings["portion"]))

    def _check_fit(self, questions: Sequence[Question]) -> None:
        rows = 0 if self._users is None else self._users.rows(None).shape[0]
        longest = max((one.tokens for one in questions), default=0) + rows
        if longest > self._model.context:
            raise BadInputError(
                f"a prompt with its answer has {longest:,} tokens; the model reads {self._model.context:,}"
            )


def reference(model: Trainable) -> Any:
    """A context in which the model is the frozen reference: its adapter is set aside.

    Raises:
        TrainedError: all weights were trained, so that the reference is not there any more.
    """
    network = model.reader.model
    if not hasattr(network, "disable_adapter"):
        raise TrainedError(
            "a run that trained all weights keeps no reference: it has no implicit reward, and no user can "
            "be fitted by it; train with LoRA, or use P-RM"
        )
    return network.disable_adapter()


def head_of(trained: Trained, model: Trainable) -> torch.Tensor | None:
    """The scalar head (width,) of a run of P-RM; None of P-DPO. Raises TrainedError for another width."""
    if trained.method != "p-rm":
        return None
    head = load_tensors(trained.path / HEAD)[0]["head"]
    if head.shape != (model.reader.width,):
        raise TrainedError(f"{trained.path / HEAD} was made for another model: its shape is {head.shape}")
    return head.to(model.reader.device)


def _decides(file: Path) -> bool:
    """Whether the file decides rewards, beside the users' table."""
    return file.name == CARD or (file.suffix == ".safetensors" and file.name != "users.safetensors")
