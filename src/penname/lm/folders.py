"""What a model's folder must hold, and what its configuration says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penname.errors import ModelError, ModelNotFoundError


def read_json(file: Path) -> dict[str, Any]:
    """The settings in a JSON file. Raises ModelNotFoundError where it cannot be read."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{file} cannot be read: {error}") from error
    return settings if isinstance(settings, dict) else {}


def end_tokens(folder: Path) -> set[int]:
    """The ids that the model's configuration says end a text: none, one or several."""
    ends: set[int] = set()
    for file in (folder / "config.json", folder / "generation_config.json"):
        found = read_json(file).get("eos_token_id") if file.is_file() else None
        ends.update(found if isinstance(found, list) else [] if found is None else [found])
    return ends


def check_model(folder: Path) -> None:
    """Raise ModelNotFoundError where the folder holds no model; the message says what is missing."""
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"no model {str(folder)!r}: it is none of smollm2-135m, a folder, a GGUF file and a server's URL"
        )
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} holds no model: config.json is missing")
    if not any(folder.glob("*.safetensors")):
        raise ModelNotFoundError(
            f"{folder} holds no weights: *.safetensors is missing (pickled weights are not read)"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelNotFoundError(f"{folder} holds no tokenizer: tokenizer.json is missing")


def check_adapter(folder: Path) -> None:
    """Raise ModelNotFoundError where the folder holds no adapter of peft."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelNotFoundError(f"{folder} holds no adapter: {name} is missing")


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Say which folder it was that a library could not load."""
    try:
        yield
    except Exception as error:  # the libraries raise of every kind
        raise ModelError(f"cannot load {folder}: {type(error).__name__}: {error}") from error
