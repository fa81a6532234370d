"""Reports of evaluations: what `penname evaluate` found, as tables. For service keys.

The folders are those that the server was told of; a client names one by its last part. What is shown are
means, differences and their intervals: no text, and no user's id.
"""

from __future__ import annotations

import math
import re
import shlex
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field, JsonValue

from penname.errors import BadInputError
from penname.evaluate.folder import load_results, read_run
from penname.evaluate.metrics import METRICS
from penname.evaluate.results import Arm, Results
from penname.evaluate.statistics import Comparison
from penname.evaluate.tables import Table, summary
from penname.serve.common import ServiceCaller, errors, not_found, scrubbed
from penname.serve.house import by_name

_FILES = ("run.json", "rows.jsonl")
_FLAGS = {
    "task": "--task",
    "k": "--k",
    "temperature": "--temperature",
    "max_tokens": "--max-tokens",
    "seed": "--seed",
    "model": "--model",
}  # settings that are options of the command

router = APIRouter(prefix="/v1/reports", tags=["runs"])


class ReportShown(BaseModel):
    """A report in short."""

    name: str
    data: str = Field(description="The data set, its version and the split.")
    model: str
    arms: int = Field(description="Ways of writing that are compared.")


class ReportList(BaseModel):
    """All reports, by name."""

    data: list[ReportShown]


class ArmShown(BaseModel):
    """One way of writing."""

    name: str
    method: str
    users: Literal["one", "all"] = Field(description="Written for the first author, or for all.")
    control: str = Field(description='"" where it is none.')
    of: str = Field(description="The arm that it is the control of.")


class MetricShown(BaseModel):
    """A score, and how it is read."""

    name: str
    label: str
    about: str
    better: Literal["higher", "lower", "neither"]
    digits: int = Field(description="Decimals that are worth printing.")


class CellShown(BaseModel):
    """An arm's score over all its examples."""

    arm: str
    metric: str
    mean: float
    examples: int
    users: int
    worst_tenth: float | None = Field(description="The mean over the worst tenth of users.")


class ComparisonShown(BaseModel):
    """How two arms differ on the examples that both have. Null: with one user nothing can be said."""

    kind: Literal["baseline", "users", "control"]
    arm: str
    other: str
    metric: str
    difference: float = Field(description="Of `arm` over `other`.")
    low: float | None = Field(description="Of the 95 % interval, by bootstrap over users.")
    high: float | None
    p: float | None = Field(description="Of a paired permutation test over users.")
    p_holm: float | None = Field(description="After Holm's correction over all comparisons of the task.")
    effect: float | None = Field(description="The users' mean difference in standard deviations of it.")
    clear: bool = Field(description="The interval leaves out 0, and rests on enough users.")
    examples: int
    users: int


class VerdictShown(BaseModel):
    """What an arm's difference to the baseline comes to."""

    arm: str
    metric: str
    words: str


class TableShown(BaseModel):
    """All that is said of one task."""

    task: str
    examples: int
    users: int
    baseline: str
    arms: list[str]
    metrics: list[MetricShown]
    main: list[str] = Field(description="The metrics that verdicts are given on.")
    cells: list[CellShown]
    comparisons: list[ComparisonShown]
    verdicts: list[VerdictShown]


class ReportTables(ReportShown):
    """A report with its tables."""

    settings: dict[str, JsonValue]
    command: str = Field(
        description="Asks for the same, as far as the folder says; name files with --data and --history."
    )
    judge: str
    remarks: list[str]
    seconds: dict[str, float] = Field(description="What each stage took.")
    listed: list[ArmShown]
    tables: list[TableShown] = Field(description="One a task; none while nothing is written yet.")


class Reports:
    """The folders of evaluations that a server shows. Threads may use it at once.

    Tables are made when they are first asked for, and anew where the evaluation has gone on.

    Raises:
        BadInputError: a folder is none of an evaluation's.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        found = list(dict.fromkeys(folder.expanduser().resolve() for folder in folders))
        for folder in found:
            read_run(folder)
        self._folders = by_name(found)
        self._made: dict[str, tuple[object, ReportTables]] = {}
        self._lock = threading.Lock()

    def list(self) -> list[ReportShown]:
        """In short, by name. A folder that is gone, or broken, is left out."""
        found = []
        for name in sorted(self._folders):
            try:
                found.append(_short(name, read_run(self._folders[name])))
            except BadInputError:
                continue
        return found

    def read(self, name: str) -> ReportTables | None:
        """With tables; None where there is none of this name.

        Raises:
            BadInputError: the folder is gone, or broken.
        """
        folder = self._folders.get(name)
        if folder is None:
            return None
        with self._lock:
            now = [(one.st_mtime_ns, one.st_size) for one in map(Path.stat, _present(folder))]
            made = self._made.get(name)
            if made is None or made[0] != now:
                made = self._made[name] = now, _report(name, folder)
            return made[1]


def _reports(request: Request) -> Reports:
    reports: Reports = request.app.state.reports
    return reports


ReportsOf = Annotated[Reports, Depends(_reports)]


@router.get("", summary="List reports of evaluations", responses=errors(403))
def list_reports(caller: ServiceCaller, reports: ReportsOf) -> ReportList:
    """Those that the server was told of."""
    del caller
    return ReportList(data=reports.list())


@router.get("/{report}", summary="Read a report of an evaluation", responses=errors(403, 404))
def read_report(
    report: Annotated[str, PathParameter(max_length=256)], caller: ServiceCaller, reports: ReportsOf
) -> ReportTables:
    """Its settings, and a table a task with differences and intervals; also while it goes on."""
    del caller
    try:
        found = reports.read(report)
    except BadInputError:  # it says where the folder is
        found = None
    if found is None:
        not_found("report", report)
    return found


def _present(folder: Path) -> list[Path]:
    return [folder / name for name in _FILES if (folder / name).is_file()]


def _short(name: str, known: dict[str, Any]) -> ReportShown:
    settings = known["settings"]
    return ReportShown(
        name=name,
        data=scrubbed(str(settings["data"])),
        model=scrubbed(str(settings["model"])),
        arms=len(known["arms"]),
    )


def _report(name: str, folder: Path) -> ReportTables:
    known = read_run(folder)
    arms = tuple(Arm(**one) for one in known["arms"])
    shown = _names(arms)
    try:
        results: Results | None = load_results(folder)
    except BadInputError:
        if any((folder / "rows.jsonl").read_bytes().splitlines()):
            raise
        results = None  # nothing is written yet
    tables = [] if results is None else summary(results)
    return ReportTables(
        **_short(name, known).model_dump(),
        settings=scrubbed(known["settings"]),
        command=_command(known["settings"], arms, tables),
        judge=scrubbed(str((known["settings"]["judge"] or {}).get("name", ""))),
        remarks=scrubbed(known["remarks"]),
        seconds=known["seconds"],
        listed=[
            ArmShown(
                name=shown[arm.name],
                method=scrubbed(arm.method),
                users="all" if arm.users == "all" else "one",
                control=arm.control,
                of=shown.get(arm.of, ""),
            )
            for arm in arms
        ],
        tables=[_table(table, shown) for table in tables],
    )


def _table(table: Table, shown: dict[str, str]) -> TableShown:
    return TableShown(
        task=table.task,
        examples=table.examples,
        users=table.users,
        baseline=shown[table.baseline],
        arms=[shown[arm.name] for arm in table.arms],
        metrics=[_metric(name) for name in table.metrics],
        main=table.main,
        cells=[
            CellShown(
                arm=shown[cell.arm],
                metric=cell.metric,
                mean=cell.mean,
                examples=cell.n,
                users=cell.users,
                worst_tenth=cell.worst,
            )
            for cell in table.cells.values()
        ],
        comparisons=[
            ComparisonShown(
                kind=pair.kind,
                arm=shown[pair.arm],
                other=shown[pair.other],
                metric=pair.metric,
                **_compared(pair.found, pair.p),
            )
            for pair in table.pairs
        ],
        verdicts=[
            VerdictShown(arm=shown[one.arm], metric=one.metric, words=one.words) for one in table.verdicts
        ],
    )


def _metric(name: str) -> MetricShown:
    one = METRICS[name]
    return MetricShown(name=name, label=one.label, about=one.about, better=one.better, digits=one.digits)


def _compared(found: Comparison, p_holm: float) -> dict[str, Any]:
    """The numbers of a comparison; what is undefined is None."""
    bounds = {"low": found.low, "high": found.high, "p": found.p, "p_holm": p_holm, "effect": found.effect}
    defined = {
        name: value if found.defined and math.isfinite(value) else None for name, value in bounds.items()
    }
    counts = {"clear": found.clear, "examples": found.n, "users": found.groups}
    return {"difference": found.mean, **defined, **counts}


def _names(arms: Sequence[Arm]) -> dict[str, str]:
    """Arms' names without folders of the server's machine; where two are alike then, they are numbered."""
    count: Counter[str] = Counter()
    found = {}
    for arm in arms:
        name = scrubbed(arm.name)
        count[name] += 1
        found[arm.name] = name if count[name] == 1 else f"{name} ({count[name]})"
    return found


def _command(settings: dict[str, Any], arms: Sequence[Arm], tables: Sequence[Table]) -> str:
    """The call of `penname evaluate` that asks for the same."""
    benchmark = str(settings["data"]).split(" ", 1)[0]
    split = re.search(r", (\S+) split$", str(settings["data"]))
    words = ["penname", "evaluate", benchmark]
    if "task" not in settings:
        words += [word for table in tables for word in ("--task", table.task)]
    for flag, values in (
        ("--method", [arm.method for arm in arms]),
        ("--control", [arm.control for arm in arms if arm.control]),
        ("--users", [arm.users for arm in arms if benchmark != "preferences" and arm.method != "none"]),
    ):
        words += [word for value in dict.fromkeys(values) for word in (flag, value)]
    for name, flag in _FLAGS.items():
        if settings.get(name) is not None:
            words += [flag, str(settings[name])]
    words += ["--split", split[1]] if split else []
    judge = (settings["judge"] or {}).get("name")
    words += ["--judge", judge] if judge else []
    return shlex.join(scrubbed(words))
