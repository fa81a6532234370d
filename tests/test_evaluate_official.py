"""Predictions, in the files that the benchmarks' own evaluation reads."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError, UnknownTaskError
from penname.evaluate.official import write_predictions
from penname.records import Request
from penname.sources import read
from penname.tasks import TASKS

ANSWERS = st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=20), min_size=1, max_size=4)


@given(number=st.integers(1, 7), answers=ANSWERS)
def test_lamp_files_have_the_form_of_the_golds(number: int, answers: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_predictions(folder, f"LaMP-{number}", answers)
        content = json.loads(path.read_bytes().decode("ascii"))
        assert os.listdir(folder) == [f"LaMP_{number}.json"]
    assert list(content) == ["task", "golds"]
    assert content["task"] == f"LaMP_{number}"
    assert [list(row) for row in content["golds"]] == [["id", "output"]] * len(answers)
    assert {row["id"]: row["output"] for row in content["golds"]} == answers


def test_our_own_reader_takes_them_for_outputs(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, "LaMP-4", {"1": "Rain", "2": "Snow – „later“"})
    path.rename(tmp_path / "dev_outputs.json")
    questions = [{"id": one, "input": "Which?", "profile": []} for one in ("1", "2")]
    (tmp_path / "dev_questions.json").write_text(json.dumps(questions))
    items = list(read("lamp", tmp_path))
    assert [item.gold for item in items if isinstance(item, Request)] == ["Rain", "Snow – „later“"]


@given(answers=ANSWERS)
def test_other_tasks_get_json_lines(answers: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_predictions(folder, "P-1", answers)
        assert path.name == "P-1.jsonl"
        rows = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    assert rows == [{"id": one, "output": text} for one, text in answers.items()]


def test_longlamp_files_have_lamps_form(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "new" / "folder", "LongLaMP-topic", {"u": "So today"})
    assert json.loads(path.read_text()) == {
        "task": "LongLaMP-topic",
        "golds": [{"id": "u", "output": "So today"}],
    }


def test_every_task_has_a_file_of_its_own(tmp_path: Path) -> None:
    paths = {write_predictions(tmp_path, name, {"1": "x"}) for name in TASKS}
    assert len(paths) == len(TASKS) == len(list(tmp_path.iterdir()))


def test_a_file_from_before_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_predictions(tmp_path, "LaMP-1", {"1": "[1]"})
    path = write_predictions(tmp_path, "LaMP-1", {"1": "[2]"})
    assert json.loads(path.read_text())["golds"] == [{"id": "1", "output": "[2]"}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_predictions(tmp_path, "LaMP-1", {"1": "[1]"})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInputError, match="No space left"):
        write_predictions(tmp_path, "LaMP-1", {"1": "[2]"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownTaskError, match="LaMP-8"):
        write_predictions(tmp_path, "../LaMP-8", {"1": "x"})
    with pytest.raises(BadInputError, match="no answers of LaMP-1"):
        write_predictions(tmp_path, "LaMP-1", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="file"):
        write_predictions(tmp_path / "file", "LaMP-1", {"1": "x"})
