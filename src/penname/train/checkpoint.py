"""Checkpoints: all that a training needs to go on as if it had not stopped, in one safetensors file each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from penname.errors import TrainedError

BEST = "best.safetensors"
_KEPT = 2  # the newest, and one to go back to


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> None:
    """Keep the state after `step` steps; older checkpoints but one are removed."""
    save_tensors(folder / f"checkpoint-{step:08d}.safetensors", tensors, state)
    for old in _checkpoints(folder)[:-_KEPT]:
        old.unlink()


def newest_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint; None where there is none.

    Raises:
        TrainedError: it is cut short.
    """
    files = _checkpoints(folder)
    return load_tensors(files[-1]) if files else None


def save_tensors(file: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors with a state of JSON values beside them: whole or not at all."""
    from safetensors.torch import save_file

    beside = file.with_name(f".{file.name}.new")
    save_file({name: one.contiguous() for name, one in tensors.items()}, beside, {"state": json.dumps(state)})
    with beside.open("rb") as stream:
        os.fsync(stream.fileno())
    beside.replace(file)


def load_tensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_tensors` wrote.

    Raises:
        TrainedError: the file is cut short or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            state = json.loads((opened.metadata() or {})["state"])
            return {name: opened.get_tensor(name) for name in opened.keys()}, state  # noqa: SIM118 - no dict
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrainedError(
            f"{file} is cut short or damaged ({error}): remove it, and training goes on from the one before"
        ) from None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))
