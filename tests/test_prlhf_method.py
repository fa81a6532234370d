"""How a trained run of P-DPO is opened, and what it puts before a user's prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from penname.errors import TrainedError
from penname.lm import ModelConfig, load_model
from penname.lm.base import Sampling
from penname.methods.prlhf.method import Personal, has_users, open_personal
from penname.methods.prlhf.table import UserTable
from penname.train.base import base_fingerprint, checked_base
from penname.train.folder import open_trained
from tiny import save_tiny_model
from trained_runs import CLUSTERS, ROWS, WIDTH, rows, save_run

GREEDY = Sampling(max_tokens=8, temperature=0)
ALICE, BOB = rows(11, ROWS, WIDTH), rows(12, ROWS, WIDTH)


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Path:
    return save_run(tmp_path / "run", tiny_model, "individual", {"alice": ALICE, "bob": BOB})


def vector(run: Personal, *users: str) -> np.ndarray:
    prefix = run.prefix(*users)
    assert prefix is not None
    assert prefix.rows.shape == (ROWS, WIDTH)
    assert prefix.rows.dtype == np.float32
    return prefix.rows


def test_an_individual_user_is_the_generic_one_and_an_offset(run: Path) -> None:
    personal = open_personal(run)
    generic = rows(0, ROWS, WIDTH)
    assert vector(personal, "alice") == pytest.approx(generic + ALICE)
    assert vector(personal, "stranger") == pytest.approx(generic)
    assert vector(personal, "alice", "bob") == pytest.approx(generic + (ALICE + BOB) / 2, abs=1e-6)
    assert vector(personal, "alice", "stranger") == pytest.approx(generic + ALICE / 2, abs=1e-6)
    assert [personal.knows(user) for user in ("alice", "bob", "stranger")] == [True, True, False]
    assert has_users(run)


def test_a_user_of_clusters_is_their_mixture(tmp_path: Path, tiny_model: Path) -> None:
    logits = np.array([2.0, -1.0], np.float32)
    personal = open_personal(save_run(tmp_path / "run", tiny_model, "cluster", {"alice": logits}))
    clusters, generic = rows(1, CLUSTERS, ROWS, WIDTH), rows(2, CLUSTERS)

    def mixture(weights: np.ndarray) -> np.ndarray:
        shares = [np.exp(w) / sum(np.exp(v) for v in weights) for w in weights]
        return sum((share * rows_ for share, rows_ in zip(shares, clusters, strict=True)), np.zeros(()))

    assert vector(personal, "alice") == pytest.approx(mixture(logits), abs=1e-6)
    assert vector(personal, "stranger") == pytest.approx(mixture(generic), abs=1e-6)


def test_a_run_without_users_writes_alike_for_all(tmp_path: Path, tiny_model: Path) -> None:
    run = save_run(tmp_path / "run", tiny_model, "none", {})
    personal = open_personal(run)
    assert personal.prefix("alice") is None
    assert not personal.knows("alice")
    assert not has_users(run)


def test_equal_vectors_have_one_key_and_others_another(run: Path) -> None:
    personal = open_personal(run)
    keys = [prefix.key for user in ("alice", "bob", "x", "y") if (prefix := personal.prefix(user))]
    assert keys[2] == keys[3]
    assert len(set(keys)) == 3


def test_what_changes_in_the_table_counts_at_once(run: Path) -> None:
    personal = open_personal(run)
    before = vector(personal, "alice")
    with UserTable.open(run) as table:
        table.put("alice", BOB, 9)
        table.erase("bob")
    assert vector(personal, "alice") == pytest.approx(rows(0, ROWS, WIDTH) + BOB)
    assert vector(personal, "alice") != pytest.approx(before)
    assert not personal.knows("bob")


def test_the_run_writes_with_its_adapter_after_the_users_prefix(run: Path, tiny_model: Path) -> None:
    personal = open_personal(run, ModelConfig(str(tiny_model), dtype="float32"))
    users = [personal.prefix("alice"), personal.prefix("bob"), None]
    texts = [one.text for [one] in personal.model.generate(["the cat"] * 3, 1, GREEDY, users)]
    base = load_model(ModelConfig(str(tiny_model), dtype="float32"))
    assert len({*texts, base.generate(["the cat"], 1, GREEDY)[0][0].text}) == 4
    assert personal.fingerprint != base.fingerprint


def test_a_run_with_all_weights_of_its_own_needs_no_base(run: Path, tiny_model: Path) -> None:
    shutil.rmtree(run / "adapter")
    shutil.copytree(tiny_model, run / "model")
    card = json.loads((run / "penname.json").read_text())
    settings = card["settings"] | {"shape": "completion", "dtype": "float32"}
    (run / "penname.json").write_text(json.dumps(card | {"model": "gone", "settings": settings}))
    personal = open_personal(run)
    assert personal.knows("alice")
    assert personal.model.shape == "completion"
    base = load_model(ModelConfig(str(tiny_model), dtype="float32"))
    assert personal.model.generate(["the cat"], 1, GREEDY) == base.generate(["the cat"], 1, GREEDY)


def test_a_base_that_moved_can_be_named(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model, moved)
    card = json.loads((run / "penname.json").read_text())
    (run / "penname.json").write_text(json.dumps(card | {"model": str(tmp_path / "gone")}))
    with pytest.raises(TrainedError, match=r"gone., and its base model cannot be opened"):
        open_personal(run)
    assert open_personal(run, str(moved)).knows("alice")


def test_another_base_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", template=False)
    with pytest.raises(TrainedError) as refused:
        open_personal(run, str(other))
    for said in (str(other), base_fingerprint(ModelConfig(str(other)))[:12], "tiny"):
        assert said in str(refused.value)
    with pytest.raises(TrainedError, match="one that runs here"):
        checked_base(open_trained(run), "http://127.0.0.1:9/v1#told")


def test_a_run_that_is_not_whole_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainedError, match="no result of training"):
        open_personal(tmp_path / "nowhere")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(TrainedError, match=r"adapter_model\.safetensors is missing"):
        open_personal(run)
    shutil.rmtree(run / "adapter")
    with pytest.raises(TrainedError, match="neither adapter/ nor model/ is there"):
        open_personal(run)


def test_a_table_of_another_model_or_form_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    wide = save_run(tmp_path / "wide", tiny_model, "individual", {}, width=WIDTH + 1)
    with pytest.raises(TrainedError, match=r"made for another model: .* 33 numbers .* 32"):
        open_personal(wide)
    for form, claimed in (("individual", "cluster"), ("cluster", "individual"), ("individual", "groups")):
        run = save_run(tmp_path / f"{form}-{claimed}", tiny_model, form, {})
        card = json.loads((run / "penname.json").read_text())
        (run / "penname.json").write_text(json.dumps(card | {"settings": {"users": claimed}}))
        with pytest.raises(TrainedError, match=r"no table of|no user model"):
            open_personal(run)
    lost = save_run(tmp_path / "lost", tiny_model, "individual", {})
    (lost / "users.safetensors").unlink()
    with pytest.raises(TrainedError):
        open_personal(lost)
