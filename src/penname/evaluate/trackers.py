"""The summary's numbers in an experiment tracker: MLflow, TensorBoard or trackio.

None of them is needed by penname: each is imported when it is asked for. Only numbers and settings go there,
no text of a user or a model and no user id. Each call makes a new run and touches no other.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from penname.errors import BadInputError, MissingPackageError
from penname.evaluate.results import Results
from penname.evaluate.tables import Table, summary

if TYPE_CHECKING:
    from collections.abc import Mapping

EXPERIMENT = "penname"  # in MLflow
_METRICS_AT_ONCE = 1000  # MLflow takes no more in one request,
_PARAM = 6000  # letters of a parameter's value at most,
_NAME = 250  # letters of a name at most,
_FOREIGN = re.compile(r"[^\w\-. /]+", re.ASCII)  # and none of these in a name


def log(
    results: Results,
    *,
    mlflow: str | None = None,
    tensorboard: Path | None = None,
    trackio: str | None = None,
) -> None:
    """Log means, differences to the baseline and their bounds as metrics, and the settings as parameters.

    Names are task/metric/arm and task/metric/arm/difference, …/low, …/high, with other characters than
    letters, digits and "_-. /" replaced by "-": "P-1/rouge1/step-back - all/low".

    Args:
        mlflow: a tracking URI ("sqlite:///runs.db", a server's address) or a folder, which gets a
            `mlflow.db`; the run is added to the experiment "penname".
        tensorboard: a folder, which gets an event file.
        trackio: a project's name; trackio keeps it where it is set up to.

    Raises:
        MissingPackageError: a tracker that was asked for is not installed.
        BadInputError: a tracker refused the place or the numbers.
    """
    asked = {
        name for name, to in (("mlflow", mlflow), ("tensorboard", tensorboard), ("trackio", trackio)) if to
    }
    if not asked:
        return
    metrics, params = metrics_of(results), params_of(results)
    if mlflow:
        _to_mlflow(mlflow, results.title, metrics, params)
    if tensorboard:
        _to_tensorboard(tensorboard, metrics, params)
    if trackio:
        _to_trackio(trackio, metrics, params)


def metrics_of(results: Results) -> dict[str, float]:
    """The numbers to log, by name; what is undefined is left out.

    Raises:
        BadInputError: two arms have the same name once it is written as trackers take it.
    """
    found: dict[str, float] = {}
    for table in summary(results):
        for name, value in _numbers(table):
            if name in found:
                raise BadInputError(
                    f"two numbers would be logged as {name!r}: give the arms names that differ"
                )
            if math.isfinite(value):
                found[name] = value
    return found


def params_of(results: Results) -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "title": results.title,
        "model": results.model,
        "data": results.data,
        "seed": str(results.seed),
        "judge": results.judge or "none",
        "arms": ", ".join(arm.name for arm in results.arms),
        "baseline": results.arms[0].name,
        "tasks": ", ".join(results.tasks),
        "rows": str(len(results.rows)),
        "remarks": "; ".join(results.remarks) or "none",
        **{f"seconds {stage}": f"{seconds:.1f}" for stage, seconds in results.seconds.items()},
    }


def _numbers(table: Table) -> Iterator[tuple[str, float]]:
    for (arm, metric), cell in table.cells.items():
        start = "/".join(_name(part) for part in (table.task, metric, arm))
        yield start, cell.mean
        if pair := table.against(arm, metric):
            yield f"{start}/difference", pair.found.mean
            yield f"{start}/low", pair.found.low
            yield f"{start}/high", pair.found.high


def _name(words: str) -> str:
    """`words` with the characters that all trackers take; a slash would make another level."""
    return _FOREIGN.sub("-", words.replace("/", "-")).strip()[: _NAME // 4] or "-"


def _to_mlflow(to: str, title: str, metrics: Mapping[str, float], params: Mapping[str, str]) -> None:
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise _missing("mlflow-skinny", "MLflow", "mlflow") from None
    now = int(time.time() * 1000)
    numbers = [Metric(name, value, now, 0) for name, value in metrics.items()]
    settings = [Param(_name(name), value[:_PARAM]) for name, value in params.items()]
    try:
        client = MlflowClient(tracking_uri=_uri(to))
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
        run = client.create_run(experiment, run_name=title[:_NAME]).info.run_id
        client.log_batch(run, params=settings)
        for start in range(0, len(numbers), _METRICS_AT_ONCE):
            client.log_batch(run, metrics=numbers[start : start + _METRICS_AT_ONCE])
        client.set_terminated(run)
    except (MlflowException, OSError) as error:
        raise BadInputError(f"MLflow did not take the results at {to!r}: {error}") from error


def _uri(to: str) -> str:
    """A tracking URI; for a folder, one of the database in it (MLflow keeps plain folders no longer)."""
    if "://" in to or to.startswith("databricks"):
        return to
    folder = Path(to).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _to_tensorboard(folder: Path, metrics: Mapping[str, float], params: Mapping[str, str]) -> None:
    try:
        from tensorboard.summary import Writer
    except ImportError:
        raise _missing("tensorboard", "TensorBoard", "tensorboard") from None
    described = "; ".join(f"{name}: {value}" for name, value in params.items())
    try:
        writer = Writer(str(folder))
        for name, value in metrics.items():
            writer.add_scalar(name, value, 0, description=described)
        writer.close()
    except OSError as error:
        raise BadInputError(
            f"cannot write TensorBoard's events into {folder}: {error.strerror}; name a folder that can be "
            "written"
        ) from error


def _to_trackio(project: str, metrics: Mapping[str, float], params: Mapping[str, str]) -> None:
    try:
        import trackio
    except ImportError:
        raise _missing("trackio", "trackio", "trackio") from None
    run = trackio.init(project=project, config=dict(params), auto_log_gpu=False, auto_log_cpu=False)
    run.log(dict(metrics))
    run.finish()


def _missing(package: str, needed_for: str, extra: str) -> MissingPackageError:
    return MissingPackageError(package, f"logging to {needed_for}", f"pip install 'penname[{extra}]'")
