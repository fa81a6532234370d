"""New weights for a model in memory: what is still being trained writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penname.errors import ModelError
from penname.lm import ModelConfig, Sampling
from penname.lm.local import TransformersLM
from penname.train.model import load_trainable, save_merged
from penname.train.optimizer import Optimizer, OptimizerSettings

SAMPLING = Sampling(max_tokens=12, temperature=1.0, top_p=1.0, seed=3)


def load(folder: Path) -> TransformersLM:
    return TransformersLM(ModelConfig(str(folder), shape="completion", dtype="float32"))


def test_it_writes_and_scores_with_what_it_took(tiny_model: Path, tmp_path: Path) -> None:
    model = load_trainable(str(tiny_model), weights="full", dtype="float32")
    with torch.no_grad():
        for one in model.parameters.values():
            one.add_(0.1 * torch.randn_like(one))
    save_merged(model, Optimizer(model.parameters, {}, OptimizerSettings(), 1), tmp_path)
    other, ours = load(tmp_path / "model"), load(tiny_model)
    before, mark = ours.generate(["the cat"], 3, SAMPLING), ours.fingerprint

    ours.take(model.parameters)
    after = ours.generate(["the cat"], 3, SAMPLING)
    assert after == other.generate(["the cat"], 3, SAMPLING) != before
    assert ours.score(["the cat"], [" sat"]) == other.score(["the cat"], [" sat"])
    assert ours.fingerprint != mark


def test_weights_that_it_does_not_have_are_refused_and_none_is_taken(tiny_model: Path) -> None:
    model = load(tiny_model)
    before = model.score(["the cat"], [" sat"])
    good = {"model.norm.weight": torch.zeros(32)}
    with pytest.raises(ModelError, match=r"no weight model\.norm\.bias of shape \(32,\)"):
        model.take({**good, "model.norm.bias": torch.zeros(32)})
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight of shape \(2, 2\)"):
        model.take({**good, "model.embed_tokens.weight": torch.zeros(2, 2)})
    assert model.score(["the cat"], [" sat"]) == before
