"""Trained runs: their cards, and what was measured while they were trained. For service keys."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field, JsonValue

from penname.errors import TrainedError
from penname.serve.common import HouseOf, ServiceCaller, errors, not_found, scrubbed
from penname.serve.house import House
from penname.train.folder import CARD, METRICS, workshop_of

_ASKED = "asked.json"  # of a training that has not ended: what it was asked for

router = APIRouter(prefix="/v1/runs", tags=["runs"])


class RunShown(BaseModel):
    """A run in short."""

    name: str
    method: str
    state: Literal["trained", "training"]


class Runs(BaseModel):
    """All runs, by name."""

    data: list[RunShown]


class Run(RunShown):
    """A run with its card and what was measured."""

    card: dict[str, JsonValue] = Field(description="Settings, counts of the data, and versions.")
    metrics: list[dict[str, JsonValue]] = Field(description="One row an evaluation or step, oldest first.")


@router.get("", summary="List trained runs", responses=errors(403))
def list_runs(caller: ServiceCaller, house: HouseOf) -> Runs:
    """Those that are served, and those that are being trained from the store."""
    del caller
    found = [_opened(name, folder) for name, folder in sorted(_folders(house).items())]
    return Runs(data=[RunShown.model_construct(**dict(run)) for run, _ in filter(None, found)])


@router.get("/{run}", summary="Read a trained run", responses=errors(403, 404))
def read_run(
    run: Annotated[str, PathParameter(max_length=256)],
    caller: ServiceCaller,
    house: HouseOf,
    rows: Annotated[int, Query(ge=0, le=100_000, description="The last so many rows of metrics.")] = 10_000,
) -> Run:
    """Its card, and its metrics; also while it is being trained."""
    del caller
    folder = _folders(house).get(run)
    opened = None if folder is None else _opened(run, folder)
    if opened is None:
        not_found("run", run)
    shown, place = opened
    name = CARD if shown.state == "trained" else _ASKED
    card = scrubbed(_read_json(place / name))
    return Run(**shown.model_dump(), card=card, metrics=list(_metrics(place / METRICS, rows)))


def _folders(house: House) -> dict[str, Path]:
    """Runs by name: served ones, and those of the store that are not finished."""
    unfinished = {one.path.name: one.path for one in house.store.trained() if workshop_of(one.path).is_dir()}
    return {**unfinished, **house.runs()}


def _opened(name: str, folder: Path) -> tuple[RunShown, Path] | None:
    """A run, and the folder where its card and metrics lie now; None where there is nothing to show."""
    trained = (folder / CARD).is_file()
    place = folder if trained else workshop_of(folder)
    try:
        card = _read_json(place / (CARD if trained else _ASKED))
    except TrainedError:
        return None
    state: Literal["trained", "training"] = "trained" if trained else "training"
    return RunShown(name=name, method=str(card.get("method", "")), state=state), place


def _read_json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TrainedError(f"{file} cannot be read") from None
    return read if isinstance(read, dict) else {}


def _metrics(file: Path, rows: int) -> Iterator[dict[str, JsonValue]]:
    """The last `rows` rows. A line that is being written is left out."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in deque(lines, maxlen=rows):
            try:
                read = json.loads(line)
            except ValueError:
                continue
            if isinstance(read, dict):
                yield read
