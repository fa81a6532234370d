"""Trackers get the summary's numbers and settings, and no text; each is needed only where it is asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from penname.errors import BadInputError, MissingPackageError
from penname.evaluate.results import Arm, Results, Row
from penname.evaluate.tables import summary
from penname.evaluate.trackers import log, metrics_of, params_of

ARMS = (Arm("none", "none"), Arm("step-back · one", "step-back"))
SECRET = "what alice wrote"


def results(arms: tuple[Arm, ...] = ARMS, users: int = 7) -> Results:
    rows = [
        Row("k", arm.name, "P-1", str(i), (f"alice{i}",), SECRET, SECRET, SECRET, SECRET, "stop",
            {"rouge1": 0.1 * i + 0.2 * number, "words": 12.0})
        for number, arm in enumerate(arms)
        for i in range(users)
    ]  # fmt: skip
    return Results(rows, arms, "A trial", "tiny", "notes 1, test split", 3, {"write": 2.5})


def test_numbers_are_those_of_the_summary_under_names_that_every_tracker_takes() -> None:
    found = metrics_of(results())
    (table,) = summary(results())
    pair = table.against("step-back · one", "rouge1")
    assert pair is not None
    assert found["P-1/rouge1/none"] == table.cells["none", "rouge1"].mean
    name = "P-1/rouge1/step-back - one"
    assert [found[name + end] for end in ("/difference", "/low", "/high")] == [
        pair.found.mean, pair.found.low, pair.found.high,
    ]  # fmt: skip
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzP0123456789-/ ") for name in found)


def test_what_is_undefined_is_left_out() -> None:
    found = metrics_of(results(users=1))
    assert "P-1/rouge1/step-back - one/difference" in found
    assert "P-1/rouge1/step-back - one/low" not in found


def test_no_text_and_no_user_is_logged() -> None:
    logged = json.dumps([metrics_of(results()), params_of(results())])
    assert "alice" not in logged
    assert params_of(results())["model"] == "tiny"


def test_arms_whose_names_become_alike_are_refused() -> None:
    with pytest.raises(BadInputError, match="two numbers would be logged as 'P-1/rouge1/a-b'"):
        metrics_of(results((Arm("a·b", "m"), Arm("a−b", "m"))))


@pytest.mark.parametrize("tracker", ["mlflow", "tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_with_the_pip_line(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    to = {"mlflow": str(tmp_path), "tensorboard": tmp_path, "trackio": "project"}[tracker]
    with pytest.raises(MissingPackageError, match=rf"pip install 'penname\[{tracker}\]'"):
        log(results(), **{tracker: to})  # type: ignore[arg-type]


def test_nothing_is_imported_where_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "tensorboard", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    log(results())


@pytest.mark.filterwarnings("ignore")  # of the tracker's own making
@pytest.mark.parametrize("form", ["{}", "sqlite:///{}/mlflow.db"])
def test_mlflow_holds_the_numbers(tmp_path: Path, form: str) -> None:
    client = pytest.importorskip(
        "mlflow", reason="MLflow is an extra: pip install 'penname[mlflow]'"
    ).MlflowClient
    for _ in range(2):
        log(results(), mlflow=form.format(tmp_path))
    tracked = client(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    runs = tracked.search_runs([tracked.get_experiment_by_name("penname").experiment_id])
    assert [run.data.metrics for run in runs] == [metrics_of(results())] * 2
    assert runs[0].data.params == params_of(results())
    assert runs[0].info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore")
def test_mlflow_that_refuses_is_a_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="MLflow is an extra: pip install 'penname[mlflow]'")
    with pytest.raises(BadInputError, match="MLflow did not take the results at 'what://ever'"):
        log(results(), mlflow="what://ever")


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_holds_the_numbers(tmp_path: Path) -> None:
    reason = "TensorBoard is an extra: pip install 'penname[tensorboard]'"
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    arrays = pytest.importorskip("tensorboard.util.tensor_util", reason=reason)
    log(results(), tensorboard=tmp_path / "runs")
    found = events.EventAccumulator(str(tmp_path / "runs"), size_guidance={"tensors": 0}).Reload()
    values = {
        tag: float(arrays.make_ndarray(found.Tensors(tag)[0].tensor_proto)) for tag in found.Tags()["tensors"]
    }
    assert values == pytest.approx(metrics_of(results()))


@pytest.mark.filterwarnings("ignore")
def test_trackio_holds_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when trackio is first imported
    trackio = pytest.importorskip("trackio", reason="trackio is an extra: pip install 'penname[trackio]'")
    log(results(), trackio="penname-test")
    (run,) = trackio.Api().runs("penname-test")
    assert run.config["model"] == "tiny"
