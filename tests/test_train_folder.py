"""The result folder of a training: whole or not there, one process at a time, and what it says of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from penname.errors import BadInputError, TrainedError
from penname.train.folder import finish, open_trained, workshop, workshop_of

ASKED: dict[str, Any] = {
    "method": "p-dpo",
    "settings": {"alpha": 0.5, "loop": {"seed": 0, "batch": 4}, "sizes": (1, 2)},
    "data": {"fingerprint": "abc", "pairs": 3},
}
CARD = {**ASKED, "model": "tiny", "model_fingerprint": "f00", "version": "1"}


def fill(folder: Path) -> None:
    (folder / "README.md").write_text("made")


def make(out: Path, card: dict[str, Any] = CARD) -> None:
    with workshop(out, ASKED) as folder:
        (folder / "metrics.jsonl").write_text("{}\n")
        finish(folder, out, card, fill)


def test_a_finished_result_says_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    make(out)
    trained = open_trained(out, "p-rm", "p-dpo")
    assert (trained.path, trained.method, trained.model) == (out, "p-dpo", "tiny")
    assert (trained.model_fingerprint, trained.version) == ("f00", "1")
    assert trained.settings["loop"] == {"seed": 0, "batch": 4}
    assert trained.data["pairs"] == 3
    assert trained.adapter is None
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "metrics.jsonl", "penname.json"]
    assert [file.name for file in out.parent.iterdir()] == ["run"], "the workshop is gone"
    (out / "adapter").mkdir()
    assert open_trained(str(out)).adapter == out / "adapter"


def test_the_home_folder_may_be_named_as_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(Path("~/run"))
    assert open_trained("~/run").path == tmp_path / "run"


def test_what_is_no_result_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TrainedError, match=r"no result of training at .*/mistyped"):
        open_trained(tmp_path / "mistyped")
    (tmp_path / "other").mkdir()
    with pytest.raises(TrainedError, match=r"other is no result of training: penname\.json is missing"):
        open_trained(tmp_path / "other")
    with workshop(tmp_path / "begun", ASKED):
        pass
    with pytest.raises(TrainedError, match="begun is not finished: the same `penname train` command goes on"):
        open_trained(tmp_path / "begun")
    make(tmp_path / "run")
    with pytest.raises(TrainedError, match="holds a result of p-dpo, not of p-rm"):
        open_trained(tmp_path / "run", "p-rm")


@pytest.mark.parametrize("damage", ["", '{"method": "p-dpo"', '{"method": "p-dpo"}', "[1]", "\xff"])
def test_a_card_that_is_damaged_is_named(tmp_path: Path, damage: str) -> None:
    make(tmp_path / "run")
    (tmp_path / "run" / "penname.json").write_bytes(damage.encode("latin-1"))
    with pytest.raises(TrainedError, match=r"penname\.json cannot be read .* train again"):
        open_trained(tmp_path / "run")


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    make(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "run", tmp_path / "file"):
        with (
            pytest.raises(BadInputError, match=f"{out.name} is there already: name another --out"),
            workshop(out, ASKED),
        ):
            pass
        assert not workshop_of(out).exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unfinished_training_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with workshop(out, ASKED) as folder:
        (folder / "kept").write_text("a day's work")
    for changed, said in (
        ({"settings": {**ASKED["settings"], "alpha": 0.7}}, r"settings\.alpha 0\.5 then, 0\.7 now"),
        (
            {"settings": {**ASKED["settings"], "loop": {"seed": 1, "batch": 4}}},
            r"settings\.loop\.seed 0 then, 1 now",
        ),
        ({"data": {"fingerprint": "abd", "pairs": 3}}, r"data\.fingerprint 'abc' then, 'abd' now"),
        ({"method": "p-rm", "data": {"pairs": 3}}, r"method 'p-dpo' then, 'p-rm' now, data\.fingerprint"),
        ({"new": 1}, r"new None then, 1 now"),
    ):
        with pytest.raises(BadInputError, match=said), workshop(out, {**ASKED, **changed}):
            pass
    with workshop(out, ASKED) as folder:
        assert (folder / "kept").read_text() == "a day's work"


def test_a_request_that_was_cut_short_is_named(tmp_path: Path) -> None:
    with workshop(tmp_path / "run", ASKED) as folder:
        pass
    (folder / "asked.json").write_text('{"met')
    with (
        pytest.raises(TrainedError, match=r"asked\.json is cut short: remove .*run\.training"),
        workshop(tmp_path / "run", ASKED),
    ):
        pass


def test_two_cannot_train_in_one_place(tmp_path: Path) -> None:
    with workshop(tmp_path / "run", ASKED):
        with (
            pytest.raises(BadInputError, match="another process trains there now"),
            workshop(tmp_path / "run", ASKED),
        ):
            pass
        with workshop(tmp_path / "beside", ASKED):
            pass


def test_a_kill_while_it_is_put_together_leaves_no_result(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def half(folder: Path) -> None:
        (folder / "half").write_text("a table")
        raise KeyboardInterrupt

    with workshop(out, ASKED) as folder:
        (folder / "metrics.jsonl").write_text("{}\n")
        with pytest.raises(KeyboardInterrupt):
            finish(folder, out, CARD, half)
    assert not out.exists()
    with pytest.raises(TrainedError, match="not finished"):
        open_trained(out)
    make(out)
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "metrics.jsonl", "penname.json"]


def test_a_copied_result_is_as_good(tmp_path: Path) -> None:
    make(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert open_trained(tmp_path / "copy").data == open_trained(tmp_path / "run").data
    assert json.loads((tmp_path / "copy" / "penname.json").read_text())["method"] == "p-dpo"
