"""`merge`: a run's base and adapter as one model that any program loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cli_helpers import Cli
from penname.errors import BadInputError, TrainedError
from penname.lm import ModelConfig, load_model
from penname.lm.base import Sampling
from penname.methods.prlhf.method import open_personal
from penname.train.merge import merge
from trained_runs import ROWS, WIDTH, rows, save_run

GREEDY = Sampling(max_tokens=12, temperature=0)


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Path:
    return save_run(tmp_path / "run", tiny_model, "individual", {"alice": rows(11, ROWS, WIDTH)})


def test_the_merged_model_writes_what_the_run_writes(run: Path, tiny_model: Path) -> None:
    personal = open_personal(run, ModelConfig(str(tiny_model), dtype="float32", device="cpu"))
    merged = load_model(ModelConfig(str(merge(run, dtype="float32")), dtype="float32", device="cpu"))
    base = load_model(ModelConfig(str(tiny_model), dtype="float32", device="cpu"))
    prefixes = [personal.prefix("alice"), None]
    wanted = personal.model.generate(["the cat"] * 2, 1, GREEDY, prefixes)
    assert merged.generate(["the cat"] * 2, 1, GREEDY, prefixes) == wanted
    assert base.generate(["the cat"] * 2, 1, GREEDY, prefixes) != wanted
    assert merged.count("the cat") == base.count("the cat")


def test_it_lies_in_the_run_in_the_type_asked_for(run: Path) -> None:
    assert merge(run) == run / "merged"
    assert {one.dtype for one in load_file(run / "merged" / "model.safetensors").values()} == {torch.bfloat16}
    assert not list(run.glob("*.making"))
    with pytest.raises(BadInputError, match="is there already"):
        merge(run)


def test_an_interrupted_merge_is_made_anew(run: Path) -> None:
    (run / "merged.making").mkdir()
    (run / "merged.making" / "half").write_text("cut short")
    assert not (merge(run) / "half").exists()


def test_what_cannot_be_merged(run: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(TrainedError, match="nothing"):
        merge(tmp_path / "nothing")
    card = json.loads((run / "penname.json").read_text())
    (run / "penname.json").write_text(json.dumps({**card, "model_fingerprint": "other"}))
    with pytest.raises(TrainedError, match="a run writes with its own base model only"):
        merge(run)
    (run / "adapter").rename(run / "gone")
    with pytest.raises(BadInputError, match="no adapter to merge"):
        merge(run)
    assert not (run / "merged").exists()


def test_the_command(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cli = Cli(capsys, monkeypatch, tmp_path)
    outcome = cli("merge", str(run), "--dtype", "float32", "--json")
    assert (outcome.status, outcome.rows) == (0, [{"trained": str(run), "merged": str(run / "merged")}])
    outcome = cli("merge", str(run))
    assert outcome.status == 1
    assert "is there already" in outcome.err
