"""`penname evaluate` and `penname report`, with stand-in models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli
from evaluate_helpers import CountingModel, Judge, Letters, club, request
from models import ToldModel
from penname.store import Store

SHORT = (
    "--method",
    "none",
    "--method",
    "retrieval",
    "--limit",
    "2",
    "--max-tokens",
    "16",
    "--metric",
    "rouge1",
)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> CountingModel:
    told = CountingModel()
    judge = Judge()
    monkeypatch.setattr("penname.lm.load_model", lambda spec=None: judge if spec == "judge" else told)
    monkeypatch.setattr("penname.lm.load_embedder", Letters)
    return told


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: ToldModel
) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENNAME_DATA", raising=False)
    return Cli(capsys, monkeypatch, tmp_path)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]


def lamp(folder: Path, task: int, outputs: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    entry = {"id": "p", "title": "Old roads", "text": "We map.", "abstract": "We map."}
    asked = [{"id": one, "input": f"Question {one}?", "profile": [entry]} for one in outputs]
    golds = [{"id": one, "output": text} for one, text in outputs.items()]
    (folder / "dev_questions.json").write_text(json.dumps(asked))
    (folder / "dev_outputs.json").write_text(json.dumps({"task": f"LaMP_{task}", "golds": golds}))
    return folder


def test_the_sample_from_end_to_end(cli: Cli, model: CountingModel, tmp_path: Path) -> None:
    outcome = cli("evaluate", "sample", "--limit", "3", "--control", "swap-user", "--judge", "judge")
    assert outcome.status == 0, outcome.err
    out = tmp_path / "penname-run"
    assert {file.name for file in out.iterdir()} >= {
        "run.json",
        "rows.jsonl",
        "histories.db",
        "predictions",
        "report.html",
        "summary.md",
        "summary.csv",
    }
    found = rows(out)
    assert {row["arm"] for row in found} >= {
        "none",
        "retrieval",
        "retrieval · swap-user",
        "step-back",
        "step-back+retrieval",
    }
    assert all("win" in row["scores"] for row in found)
    assert "sample " in outcome.err
    assert "7 ways of writing; results in penname-run" in outcome.err
    assert "The report: penname-run" in outcome.out
    with Store(cli.db) as store:
        assert list(store.users()) == [], "one's own store is not filled with the benchmark's users"
    asked = model.calls
    again = cli("evaluate", "sample", "--limit", "3", "--control", "swap-user", "--judge", "judge")
    assert (again.status, model.calls) == (0, asked)
    assert rows(out) == found


def test_a_report_of_one_folder_and_of_two(cli: Cli, model: CountingModel, tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("b", "1")):
        assert cli("evaluate", "sample", *SHORT, "--out", name, "--seed", seed).status == 0
    asked = model.calls
    (tmp_path / "a" / "report.html").unlink()
    one = cli("report", "a")
    assert one.status == 0, one.err
    assert (tmp_path / "a" / "report.html").exists()
    both = cli("report", "a", "b", "--out", "both")
    assert both.status == 0, both.err
    page = (tmp_path / "both" / "report.html").read_text("utf-8")
    assert "retrieval" in page
    assert model.calls == asked, "a report asks no model"


def test_one_s_own_store(cli: Cli, tmp_path: Path) -> None:
    with Store(cli.db) as store:
        club(store)
        for one in (request("e1", "ann"), request("e2", "ben", "ann"), request("e3", "dot", "cas")):
            store.user(one.users[0]).add_request(one)
    outcome = cli("evaluate", "store", *SHORT, "--users", "one", "--users", "all", "--out", "mine")
    assert outcome.status == 0, outcome.err
    assert {row["arm"] for row in rows(tmp_path / "mine")} == {"none", "retrieval · one", "retrieval"}
    assert not (tmp_path / "mine" / "histories.db").exists()


def test_predictions_have_the_ids_of_the_official_files(
    cli: Cli, model: CountingModel, tmp_path: Path
) -> None:
    lamp(tmp_path / "data" / "LaMP-4", 4, {"41": "Rain", "42": "Snow"})
    lamp(tmp_path / "data" / "LaMP-2", 2, {"21": "comedy"})
    model.answer = lambda prompt: " The tag is comedy" if prompt.endswith("Tag:") else " A headline"
    args = ("--data", "data", "--method", "none", "--method", "retrieval:recency", "--users", "one")
    outcome = cli("evaluate", "lamp", *args)
    assert outcome.status == 0, outcome.err
    places = tmp_path / "penname-run" / "predictions"
    assert {place.name for place in places.iterdir()} == {"none", "retrieval_recency.one"}
    assert json.loads((places / "none" / "LaMP_4.json").read_text()) == {
        "task": "LaMP_4",
        "golds": [{"id": "41", "output": "A headline"}, {"id": "42", "output": "A headline"}],
    }
    tags = json.loads((places / "retrieval_recency.one" / "LaMP_2.json").read_text())
    assert tags["golds"] == [{"id": "21", "output": "comedy"}], "the label that was read"


def test_what_needs_no_draft_has_no_predictions(cli: Cli, model: CountingModel, tmp_path: Path) -> None:
    args = ("--method", "none", "--limit", "1", "--metric", "bits_per_byte")
    outcome = cli("evaluate", "sample", *args)
    assert outcome.status == 0, outcome.err
    assert not model.asked
    assert not (tmp_path / "penname-run" / "predictions").exists()


def test_ctrl_c_leaves_a_folder_that_goes_on(
    cli: Cli, model: CountingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penname.evaluate.run.WINDOW", 2)
    model.breaks_after = 5
    stopped = cli("evaluate", "sample", *SHORT)
    assert stopped.status == 130
    assert "Traceback" not in stopped.err
    kept = rows(tmp_path / "penname-run")
    assert 0 < len(kept) <= 5
    assert cli("report", "penname-run").status == 0
    model.breaks_after = None
    model.asked.clear()
    assert cli("evaluate", "sample", *SHORT).status == 0
    found = rows(tmp_path / "penname-run")
    assert found[: len(kept)] == kept
    assert len(found) == len(kept) + len(model.asked)


# --- the judge


def trained(folder: Path, rewards: object) -> Path:
    folder.mkdir()
    (folder / "penname.json").write_text(json.dumps({"rewards": rewards}))
    return folder


def test_a_judge_that_gave_the_reward_is_refused_unless_forced(cli: Cli, tmp_path: Path) -> None:
    own = trained(tmp_path / "own", ["judge-1"])
    args = ("evaluate", "sample", "--method", "none", "--limit", "1", "--model", str(own), "--judge", "judge")
    refused = cli(*args)
    assert refused.status == 1
    assert "also gave the reward in training" in refused.err
    assert not (tmp_path / "penname-run" / "rows.jsonl").exists()
    forced = cli(*args, "--force-judge")
    assert forced.status == 0, forced.err
    marked = "the judge also gave the reward in training (forced)"
    out = tmp_path / "penname-run"
    assert any(marked in one for one in json.loads((out / "run.json").read_text())["remarks"])
    for name in ("report.html", "summary.md"):
        assert marked in (out / name).read_text("utf-8"), name
    assert cli(*args[:-2]).status == 0  # without the judge, whose scores are there: still marked
    assert marked in (out / "report.html").read_text("utf-8")


def test_a_judge_that_gave_no_reward_is_not_marked(cli: Cli, tmp_path: Path) -> None:
    own = trained(tmp_path / "own", ["another"])
    args = ("evaluate", "sample", "--method", "none", "--limit", "1", "--model", str(own), "--judge", "judge")
    assert cli(*args).status == 0
    assert "forced" not in (tmp_path / "penname-run" / "run.json").read_text()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"rewards": 3}', '{"rewards": "judge-1"}', '{"rewards": [1]}']
)
def test_rewards_that_cannot_be_read_are_told(cli: Cli, tmp_path: Path, content: str) -> None:
    own = trained(tmp_path / "own", [])
    (own / "penname.json").write_text(content)
    args = ("evaluate", "sample", "--method", "none", "--limit", "1", "--model", str(own), "--judge", "judge")
    outcome = cli(*args)
    assert outcome.status == 1
    assert "whether a judge gave a reward is unknown" in outcome.err


# --- bad input


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("smaple",), 1, "unknown benchmark 'smaple' (did you mean 'sample'?)"),
        (("sample", "--task", "emial"), 1, "unknown task 'emial' (did you mean 'email'?)"),
        (("sample", "--method", "stepback"), 1, "unknown method 'stepback' (did you mean 'step-back'?)"),
        (("sample", "--method", "retrieval:lexcal"), 1, "did you mean 'lexical'"),
        (("sample", "--control", "swap"), 1, "unknown control 'swap'"),
        (("sample", "--method", "none", "--control", "swap-user"), 1, "changes nothing here"),
        (("sample", "--users", "two"), 1, "give one or all"),
        (("sample", "--metric", "rogue1"), 1, "did you mean 'rouge1'"),
        (("sample", "--metric", "win"), 1, "name a model with --judge"),
        (("sample", "--split", "test"), 1, "has no splits"),
        (("sample", "--data", "x"), 1, "reads no files"),
        (("proposals",), 1, "needs its files"),
        (("proposals", "--data", "absent"), 1, "nothing at absent"),
        (("store",), 1, "holds no example with a real text"),
        (("sample", "--limit", "0"), 2, "--limit"),
        (("sample", "--k", "0"), 2, "--k"),
        ((), 2, "BENCHMARK"),
    ],
)
def test_errors(cli: Cli, model: CountingModel, args: tuple[str, ...], status: int, told: str) -> None:
    outcome = cli("evaluate", *args)
    assert (outcome.status, outcome.out) == (status, "")
    assert told in outcome.err
    assert "unexpected" not in outcome.err
    assert model.calls == 0


def test_a_folder_is_of_one_benchmark_and_one_set_of_settings(cli: Cli, tmp_path: Path) -> None:
    assert cli("evaluate", "sample", *SHORT).status == 0
    lamp(tmp_path / "data", 4, {"1": "Rain"})
    other = cli("evaluate", "lamp", "--task", "LaMP-4", "--data", "data", *SHORT)
    assert other.status == 1
    assert "penname-run holds results of sample" in other.err
    with Store(tmp_path / "penname-run" / "histories.db") as store:
        assert not any(user.id.startswith("LaMP") for user in store.users())
    changed = cli("evaluate", "sample", *SHORT, "--seed", "3")
    assert changed.status == 1
    assert "seed was 0 and is 3" in changed.err


def test_a_place_that_cannot_hold_results_is_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    outcome = cli("evaluate", "sample", "--out", "file")
    assert outcome.status == 1
    assert "cannot write results into file" in outcome.err


def test_a_report_of_no_run_is_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        outcome = cli("report", name)
        assert (outcome.status, outcome.out) == (1, "")
        assert f"{name} is no folder of an evaluation" in outcome.err
    assert cli("report").status == 2
