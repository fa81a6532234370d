"""Results of training as tests need them: small, made in a moment, over the tiny model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penname.lm import ModelConfig
from penname.methods.prlhf.table import UserTable
from penname.train.base import base_fingerprint

WIDTH = 32  # of the tiny model
ROWS = 3  # of a soft prompt
CLUSTERS = 2


def rows(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.6, shape).astype(np.float32)


def save_card(
    folder: Path, users: str, *, method: str = "p-dpo", model: str = "told", weights: str = ""
) -> Path:
    """Only the card: what is read of a run before it is used."""
    folder.mkdir(parents=True, exist_ok=True)
    card = {"method": method, "model": model, "model_fingerprint": weights, "settings": {"users": users}}
    card |= {"data": {}, "version": "1"}
    (folder / "penname.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


def save_adapter(base: Path, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(str(folder))


def save_run(
    folder: Path, base: Path, users: str, vectors: Mapping[str, np.ndarray], *, width: int = WIDTH
) -> Path:
    """A whole run of P-DPO over the model in `base`."""
    weights = base_fingerprint(ModelConfig(str(base)))
    save_card(folder, users, model=str(base), weights=weights)
    save_adapter(base, folder / "adapter")
    shared: dict[str, Any] = {"generic": rows(0, ROWS, width)}
    shape: tuple[int, ...] = (ROWS, width)
    if users == "cluster":
        shared = {"clusters": rows(1, CLUSTERS, ROWS, width), "generic": rows(2, CLUSTERS)}
        shape = (CLUSTERS,)
    if users != "none":
        UserTable.create(folder, shared, [(user, row, 3) for user, row in vectors.items()], shape).close()
    return folder
