"""A run's own base model: found again, and refused where it has other weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penname.errors import BadInputError, ModelError, TrainedError
from penname.lm import ModelConfig, load_model, parse
from penname.train.folder import Trained

if TYPE_CHECKING:
    from penname.lm.config import DType
    from penname.train.model import Trainable


def base_fingerprint(config: ModelConfig) -> str:
    """The fingerprint of a base model, the same wherever it runs and whatever is laid over it.

    Raises as `load_model` does.
    """
    return load_model(replace(config, adapter=None, device=None)).fingerprint


def checked_base(trained: Trained, base: str | ModelConfig | None) -> ModelConfig:
    """The base model's configuration, when it is the one that the run was trained over.

    Args:
        base: where it is now; None: where the run recorded it.

    Raises:
        TrainedError: it is not there, has other weights, is a server, or has an adapter over it.
    """
    try:
        config = base if isinstance(base, ModelConfig) else parse(base or trained.model)
        found = base_fingerprint(config)
    except (ModelError, BadInputError) as error:
        raise TrainedError(
            f"{trained.path} was trained over {trained.model!r}, and its base model cannot be opened "
            f"({error}): put it back, or name it with --model"
        ) from error
    if config.remote or config.adapter is not None:
        raise TrainedError(
            f"{trained.path} cannot be laid over {config.model!r}: its base model is one that runs here, "
            "without an adapter"
        )
    if found != trained.model_fingerprint:
        raise TrainedError(
            f"{trained.path} was trained over {trained.model!r} with the weights "
            f"{trained.model_fingerprint[:12]}, and {config.model!r} has the weights {found[:12]}: "
            "a run writes with its own base model only"
        )
    return config


def load_run(
    trained: Trained, model: str | ModelConfig | None = None, dtype: DType | None = None
) -> Trainable:
    """The run's model, frozen, as it was trained: base, adapter and type.

    Args:
        model: the base, where it is no longer where the run recorded it; a run of all weights needs none.
        dtype: another type than that.

    Raises:
        TrainedError: the adapter is missing, or the base model has other weights.
    """
    from penname.train.model import load_trainable

    dtype = dtype or trained.settings.get("dtype")
    whole = trained.path / "model"
    if trained.adapter is None and whole.is_dir():
        shape = trained.settings.get("shape")
        return load_trainable(ModelConfig(str(whole), shape=shape), weights=None, dtype=dtype)
    base = checked_base(trained, model)
    if trained.adapter is None:
        raise TrainedError(f"{trained.path} is cut short: neither adapter/ nor model/ is there")
    return load_trainable(base, weights=None, dtype=dtype, adapter=trained.adapter)
