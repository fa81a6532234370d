"""A run's weights as one model: its adapter laid into its base, as a server may want them."""

from __future__ import annotations

import shutil
from pathlib import Path

from penname.errors import BadInputError
from penname.lm import ModelConfig
from penname.lm.config import DType
from penname.train.base import load_run
from penname.train.folder import open_trained

FOLDER = "merged"
"""Where it lies in the run: who removes the run removes it, too."""


def merge(run: Path | str, base: str | ModelConfig | None = None, dtype: DType | None = None) -> Path:
    """Write the run's weights as one model into its folder, and return where.

    The users' own part, soft prompts or a reward's head, is not in it: it stays with the run.

    Args:
        run: a result folder.
        base: the base model, where it is no longer where the run recorded it.
        dtype: of the weights; None: as the run was trained, or bfloat16.

    Raises:
        BadInputError: the run has no adapter, or is merged already.
        TrainedError: no such run; its base model is not there, or has other weights.
    """
    trained = open_trained(run)
    out = trained.path / FOLDER
    if trained.adapter is None:
        raise BadInputError(f"{trained.path} has no adapter to merge; where it has model/, that is whole")
    if out.exists():
        raise BadInputError(f"{out} is there already: remove it to have it made anew")
    import torch

    from penname.train.model import save_whole

    model = load_run(trained, base, "float32")  # the sum is rounded once, not each part of it
    making = out.with_name(f"{FOLDER}.making")
    shutil.rmtree(making, ignore_errors=True)
    save_whole(model, making, getattr(torch, dtype or trained.settings.get("dtype") or "bfloat16"))
    making.rename(out)
    return out
