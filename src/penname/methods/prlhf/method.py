"""How P-DPO writes (arXiv 2402.05133, section 4): with the run's model, after the user's soft prompt.

Who is unknown to the run gets the generic user's. A run without users (vanilla) has no soft prompts.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penname.errors import ModelNotFoundError, TrainedError
from penname.lm import ModelConfig, load_model, parse
from penname.lm.base import LanguageModel, Prefix
from penname.methods.prlhf.soft import SoftTable
from penname.train.base import checked_base
from penname.train.folder import Trained, open_trained

if TYPE_CHECKING:
    from penname.lm.local import TransformersLM

METHOD = "p-dpo"


class Personal:
    """A trained run that writes for its users; made by `open_personal`. Nothing of the model is loaded yet.

    A row is read from the table each time it is asked for: what `adapt` or `erase` changes counts at once.

    Args:
        path: the run's folder.
        model: the base with the run's adapter, here or on a server.
        table: the users' soft prompts; None where the run has no users.
    """

    def __init__(self, path: Path, model: LanguageModel, table: SoftTable | None) -> None:
        self.path = path
        self.model = model
        self._table = table

    @property
    def fingerprint(self) -> str:
        """Changes with the weights, base or adapter; a user's own part is in the key of the prefix."""
        return self.model.fingerprint

    def knows(self, user: str) -> bool:
        """Whether the run has a vector of the user's own."""
        return self._table is not None and self._table.knows(user)

    @property
    def has_users(self) -> bool:
        """Whether it has users at all."""
        return self._table is not None

    def prefix(self, *users: str) -> Prefix | None:
        """The soft prompt of a user, or the mean of several authors'; None where the run has no users.

        The generic user's stands for whoever is unknown.
        """
        if self._table is None:
            return None
        rows = np.stack([self._table.rows(user) for user in users]).mean(axis=0, dtype=np.float32)
        return Prefix(hashlib.sha256(rows.tobytes()).hexdigest(), rows)


def open_personal(folder: Path | str, base: str | ModelConfig | None = None) -> Personal:
    """The trained run in `folder`, ready to write.

    Args:
        base: the base model, where it is no longer what the run recorded: its folder has moved, or it is to
            run on another device. A run with all weights of its own needs none. A server: it is taken to
            serve the run's own weights (base and adapter, or merged); what they are cannot be seen. The base
            must still be here, as recorded or where `embeddings` says; only its embeddings are loaded.

    Raises:
        TrainedError: no such run; it is cut short, or of another method; its base model is not there, or has
            other weights; or its table does not fit the model. The base model alone never stands in for it.
    """
    trained = open_trained(folder, METHOD)
    config = parse(base) if isinstance(base, str) else base
    if config is not None and config.remote:
        return _served(trained, config)
    model = _model(trained, config)
    return Personal(trained.path, model, SoftTable.open(trained, model.width))


def _served(trained: Trained, server: ModelConfig) -> Personal:
    """The run with its weights on a server. Of those here, only the embeddings are ever loaded."""
    try:
        local = _model(trained, None if server.embeddings is None else parse(server.embeddings))
    except TrainedError as error:
        if trained.adapter is None:
            raise
        raise TrainedError(
            f"{error}. A server is sent embeddings, which are read from the base's own files here: "
            "`embeddings` in a model's TOML file says where they are"
        ) from None
    config = replace(server, embeddings=local.config.model, shape=server.shape or local.shape)
    return Personal(trained.path, load_model(config), SoftTable.open(trained, local.width))


def _model(trained: Trained, base: ModelConfig | None) -> TransformersLM:
    """The run's model: all its own weights, where all were trained, else its adapter over the base."""
    from penname.lm.local import TransformersLM

    shape, dtype = trained.settings.get("shape"), trained.settings.get("dtype")
    whole = trained.path / "model"
    if trained.adapter is not None:
        config = checked_base(trained, base)
        shape, dtype = config.shape or shape, config.dtype or dtype
        config = replace(config, adapter=str(trained.adapter), shape=shape, dtype=dtype)
    elif whole.is_dir():
        config = ModelConfig(str(whole), shape=shape, dtype=dtype)
    else:
        raise TrainedError(f"{trained.path} is cut short: neither adapter/ nor model/ is there")
    try:
        model = load_model(config)
    except ModelNotFoundError as error:
        raise TrainedError(f"{trained.path} is cut short: {error}") from None
    if not isinstance(model, TransformersLM):
        raise TrainedError(f"{trained.path}: {config.model!r} cannot take an adapter")
    return model


def has_users(folder: Path | str) -> bool:
    """Whether the run in `folder` has users at all: a vanilla run writes alike for everybody.

    Raises:
        TrainedError: no such run, or its card cannot be read.
    """
    return open_trained(folder, METHOD).settings.get("users") != "none"
