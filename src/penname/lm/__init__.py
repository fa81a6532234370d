"""Language models behind one interface: write, score, choose. What runs them is loaded when first used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from penname.lm.base import Generation, LanguageModel, Sampling, Score, Shape
from penname.lm.config import EMBEDDED, ModelConfig, parse

if TYPE_CHECKING:
    from penname.lm.embedder import Embedder

__all__ = [
    "EMBEDDED",
    "Embedder",
    "Generation",
    "LanguageModel",
    "ModelConfig",
    "Sampling",
    "Score",
    "Shape",
    "load_embedder",
    "load_model",
    "parse",
]


def load_model(spec: str | ModelConfig | None = None) -> LanguageModel:
    """The model of one setting; its weights are loaded when they are first needed.

    Args:
        spec: "smollm2-135m", a folder, FILE.gguf, http(s)://host[:port]/v1#model-name, FILE.toml with the
            fields of `ModelConfig`, or a `ModelConfig`. None: `PENNAME_MODEL`, or else "smollm2-135m".

    Raises:
        ModelNotFoundError: no such model; the message says what is missing.
        MissingPackageError: the embedded model's package is not installed.
        BadInputError: a setting has a value that it cannot have.
    """
    config = (
        spec if isinstance(spec, ModelConfig) else parse(spec or os.environ.get("PENNAME_MODEL") or EMBEDDED)
    )
    if config.remote:
        from penname.lm.remote import RemoteLM

        return RemoteLM(config)
    if config.model != EMBEDDED and Path(config.model).suffix.lower() != ".gguf":
        from penname.lm.local import TransformersLM

        return TransformersLM(config)
    if config.adapter is None and config.device in (None, "cpu"):
        from penname.lm.embedded import GGUFModel

        return GGUFModel(config)
    return over_gguf(config)


def load_embedder(device: str | None = None) -> Embedder:
    """The sentence embedder, on `device` (None: a GPU if there is one).

    Raises:
        MissingPackageError: its package is not installed.
    """
    from penname.lm.embedder import Embedder

    return Embedder(device)


def over_gguf(config: ModelConfig) -> LanguageModel:
    """A GGUF file that transformers runs, on its dequantised weights: with an adapter, on a GPU, or as it is.

    Raises as `load_model` does.
    """
    from dataclasses import replace

    from penname.lm import gguf
    from penname.lm.local import TransformersLM

    file = gguf.find(config.model)
    if config.shape is None and gguf.is_embedded(file):
        config = replace(config, shape="completion")
    return TransformersLM(config, gguf.weights_folder(file))
