"""A run's folder: what is written survives, what is broken is told, one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError
from penname.evaluate.folder import load_results, open_run, read_run
from penname.evaluate.results import Arm, Row, row_of
from penname.files import put

SETTINGS: dict[str, Any] = {"data": "club 1, test split", "model": "told", "seed": 0, "judge": None}
NONE, OWN = Arm("none", "none"), Arm("retrieval", "retrieval")


def row(number: int, arm: Arm = NONE, **more: Any) -> Row:
    values = {
        "key": f"{arm.method}{number}",
        "arm": arm.name,
        "task": "title",
        "example": f"e{number}",
        "users": ("ann",),
        "input": "A text.",
        "gold": "Ein schöner Titel",
        "text": "Größe 鶏\u2028 x",
        "answer": None,
        "finish": "stop",
        "scores": {"rouge1": 0.5},
        "documents": ("a", "b"),
    }
    return Row(**{**values, **more})


def make(folder: Path, *rows: Row, settings: dict[str, Any] = SETTINGS) -> None:
    with open_run(folder, settings) as opened:
        opened.write([NONE, OWN], ["full moon"])
        opened.append(rows)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [row(1), row(2, answer="x"), row(1, OWN)]
    make(tmp_path / "deep" / "run", *rows)
    with open_run(tmp_path / "deep" / "run", SETTINGS) as opened:
        assert opened.rows == {one.key: one for one in rows}
        assert opened.placed == {(one.arm, one.key) for one in rows}
    found = load_results(tmp_path / "deep" / "run")
    assert found.rows == rows
    assert found.arms == (NONE, OWN)
    assert (found.title, found.model, found.data, found.seed) == ("run", "told", "club 1, test split", 0)
    assert found.remarks == ("full moon",)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(text=_TEXT, gold=_TEXT.filter(str.strip), cut=st.integers(0, 400))
def test_a_row_is_one_line_whatever_its_texts(text: str, gold: str, cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [row(1, text=text, gold=gold), row(2, input=text, gold=gold)]
        make(folder, *rows)
        content = (folder / "rows.jsonl").read_bytes()
        assert content.count(b"\n") == 2
        # A kill in the middle of a third.
        (folder / "rows.jsonl").write_bytes(content + content[: min(cut, content.index(b"\n"))])
        assert load_results(folder).rows == rows
        with open_run(folder, SETTINGS) as opened:
            assert list(opened.rows.values()) == rows
            opened.append([row(3)])
        assert load_results(folder).rows == [*rows, row(3)]


def test_of_two_lines_for_one_place_the_later_counts(tmp_path: Path) -> None:
    better = replace(row(1), scores={"rouge1": 0.5, "chrf": 9.0})
    make(tmp_path, row(1), row(2), better)
    assert load_results(tmp_path).rows == [better, row(2)]
    with open_run(tmp_path, SETTINGS) as opened:
        assert opened.rows["none1"] == better


def test_only_half_a_line_is_no_line(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(b'{"key": "k1", "text": "' + b"x" * 200_000)
    with pytest.raises(BadInputError, match="holds no results yet"):
        load_results(tmp_path)
    with open_run(tmp_path, SETTINGS) as opened:
        assert opened.rows == {}
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[1]",
        b"{}",
        b"\xff\xfe",
        b"",
        json.dumps({**row(1).values(), "gold": ""}).encode(),
        json.dumps({**row(1).values(), "scores": {"rogue1": 1}}).encode(),
        json.dumps({**row(1).values(), "scores": [1]}).encode(),
        json.dumps({**row(1).values(), "scores": {"rouge1": "high"}}).encode(),
        json.dumps({**row(1).values(), "more": 1}).encode(),
        json.dumps({**row(1).values(), "users": 7}).encode(),
    ],
)
def test_a_broken_line_is_told_with_its_place(tmp_path: Path, line: bytes) -> None:
    make(tmp_path, row(1), row(2))
    good = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(good + line + b"\n" + good)
    with pytest.raises(BadInputError, match=r"rows\.jsonl:3: .*remove the line"):
        load_results(tmp_path)
    with pytest.raises(BadInputError, match=r"rows\.jsonl:3: "), open_run(tmp_path, SETTINGS):
        pass
    assert (tmp_path / "rows.jsonl").read_bytes() == good + line + b"\n" + good


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"settings": {}}',
        '{"settings": {}, "arms": [], "seconds": {}, "remarks": [], "groups": {}}',
        json.dumps({"settings": SETTINGS, "arms": [{}], "seconds": {}, "remarks": [], "groups": {}}),
        json.dumps({"settings": SETTINGS, "arms": {}, "seconds": {}, "remarks": [], "groups": {}}),
    ],
)
def test_a_broken_run_file_is_told(tmp_path: Path, content: str) -> None:
    make(tmp_path, row(1))
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(BadInputError, match=r"run\.json is broken"):
        load_results(tmp_path)
    with pytest.raises(BadInputError, match=r"run\.json is broken"), open_run(tmp_path, SETTINGS):
        pass


def test_what_is_no_folder_of_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no folder of an evaluation"):
        load_results(tmp_path)
    with pytest.raises(BadInputError, match="no folder of an evaluation"):
        load_results(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(BadInputError, match="cannot write results into"),
        open_run(tmp_path / "file", SETTINGS),
    ):
        pass
    (tmp_path / "rows.jsonl").write_text("somebody's own\n")
    with pytest.raises(BadInputError, match="name another folder"), open_run(tmp_path, SETTINGS):
        pass
    assert (tmp_path / "rows.jsonl").read_text() == "somebody's own\n"


def test_other_settings_are_refused_and_change_nothing(tmp_path: Path) -> None:
    make(tmp_path, row(1))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = {**SETTINGS, "seed": 1, "model": "other"}
    with pytest.raises(BadInputError) as told, open_run(tmp_path, other):
        pass
    assert "(model was 'told' and is 'other'; seed was 0 and is 1)" in str(told.value)
    with pytest.raises(BadInputError, match="k was None and is 3"), open_run(tmp_path, {**SETTINGS, "k": 3}):
        pass
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_judge_may_come_later_and_stays(tmp_path: Path) -> None:
    make(tmp_path, row(1))
    judge = {"name": "judge", "weights": "1", "baseline": "none"}
    make(tmp_path, settings={**SETTINGS, "judge": judge})
    assert load_results(tmp_path).judge == "judge"
    make(tmp_path)
    assert load_results(tmp_path).judge == "judge"
    other = {**judge, "weights": "2"}
    with pytest.raises(BadInputError, match="judge was"), open_run(tmp_path, {**SETTINGS, "judge": other}):
        pass


def test_arms_remarks_and_groups_of_all_calls_are_kept(tmp_path: Path) -> None:
    with open_run(tmp_path, SETTINGS) as opened:
        opened.write([NONE], ["full moon"], {"ann": "like most"})
    with open_run(tmp_path, SETTINGS) as opened:
        opened.write([OWN, NONE], ["full moon", "rain"], {"ben": "unlike most"})
        opened.append([row(1, OWN)])
    found = load_results(tmp_path)
    assert found.arms == (OWN,), "arms without a row are not there yet"
    assert [one["name"] for one in read_run(tmp_path)["arms"]] == ["none", "retrieval"]
    assert found.remarks == ("full moon", "rain")
    assert found.groups == {"ann": "like most", "ben": "unlike most"}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    make(tmp_path, row(1))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from penname.evaluate.folder import open_run\n"
        f"with open_run(Path({str(tmp_path)!r}), {SETTINGS!r}):\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(BadInputError, match="in use by another run"), open_run(tmp_path, SETTINGS):
            pass
        assert load_results(tmp_path).rows == [row(1)], "reading is no disturbance"
        other.stdin.close()
        assert other.wait() == 0
    with open_run(tmp_path, SETTINGS) as opened:
        assert len(opened.rows) == 1


def test_a_file_is_put_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.json", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penname.files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        put(path, "new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_what_is_no_row_is_refused() -> None:
    assert row_of(json.loads(json.dumps(row(1).values()))) == row(1)
    with pytest.raises(BadInputError, match="no row"):
        row_of({})
