"""A run's folder: `run.json` with what it was made with, `rows.jsonl` with a line for each draft.

Lines are only ever added; of two for the same arm, task and example the later counts. A line that a kill cut
off is dropped when the folder is next opened, and nothing else is lost.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penname.errors import BadInputError, PennameError
from penname.evaluate.results import Arm, Results, Row, row_of
from penname.files import put

_RUN, _ROWS = "run.json", "rows.jsonl"
_KINDS = {"settings": dict, "arms": list, "seconds": dict, "remarks": list, "groups": dict}
_SETTINGS = ("data", "model", "seed", "judge")  # those that results show


class RunFolder:
    """The folder of one run, held by one process at a time. Made by `open_run`.

    Attributes:
        path: the folder.
        rows: those that were there, by key; of equal keys the last.
    """

    def __init__(self, path: Path, settings: dict[str, Any], seconds: dict[str, float]) -> None:
        self.path = path
        self.settings = settings
        self.seconds = seconds
        self.rows: dict[str, Row] = {}
        self.placed: set[tuple[str, str]] = set()  # (arm, key) of the lines that are there

    def append(self, rows: Sequence[Row]) -> None:
        """Add lines; once this returns they survive a kill."""
        with (self.path / _ROWS).open("a", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row.values(), ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for row in rows:
            self.rows[row.key] = row
            self.placed.add((row.arm, row.key))

    def write(
        self, arms: Sequence[Arm], remarks: Sequence[str], groups: Mapping[str, str] | None = None
    ) -> None:
        """Bring `run.json` up to date: the arms of this call after those of earlier ones."""
        there = (self.path / _RUN).exists()
        known = read_run(self.path) if there else {"arms": [], "remarks": [], "groups": {}}
        listed = {one["name"]: one for one in known["arms"]} | {arm.name: asdict(arm) for arm in arms}
        values = {
            "settings": self.settings,
            "arms": list(listed.values()),
            "seconds": self.seconds,
            "remarks": list(dict.fromkeys([*known["remarks"], *remarks])),
            "groups": known["groups"] | dict(groups or {}),
        }
        put(self.path / _RUN, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def open_run(path: Path, settings: Mapping[str, Any]) -> Iterator[RunFolder]:
    """The folder at `path`, made if it is not there.

    Args:
        settings: what all rows of a folder must have been made with, as JSON values.

    Raises:
        BadInputError: the folder was made with other settings, holds something else, is in use by another
            run, or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / _ROWS).open("a+b")
    except OSError as error:
        raise BadInputError(f"cannot write results into {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInputError(
                f"{path} is in use by another run: wait for it, or name another --out"
            ) from None
        if (path / _RUN).exists():
            known = read_run(path)
            _same(path, known["settings"], settings)
            settings = {**settings, "judge": settings["judge"] or known["settings"]["judge"]}
            seconds = known["seconds"]
        elif file.seek(0, os.SEEK_END):
            raise BadInputError(f"{path} holds {_ROWS} and no {_RUN}: name another folder")
        else:
            seconds = {}
        folder = RunFolder(path, dict(settings), seconds)
        _drop_half_line(file)
        for row in _rows(path):
            folder.rows[row.key] = row
            folder.placed.add((row.arm, row.key))
        yield folder


def load_results(path: Path) -> Results:
    """Everything in a run's folder.

    Raises:
        BadInputError: it is no such folder, is broken, or holds no rows yet.
    """
    known = read_run(path)
    last = {(row.arm, row.task, row.example): row for row in _rows(path, whole=False)}
    if not last:
        raise BadInputError(f"{path} holds no results yet: go on with the same `penname evaluate` command")
    settings = known["settings"]
    place = {one["name"]: number for number, one in enumerate(known["arms"])}
    return Results(
        rows=sorted(last.values(), key=lambda row: place.get(row.arm, 0)),
        arms=tuple(
            Arm(**one) for one in known["arms"] if any(row.arm == one["name"] for row in last.values())
        ),
        title=path.resolve().name,
        model=settings["model"],
        data=settings["data"],
        seed=settings["seed"],
        seconds=known["seconds"],
        judge=(settings["judge"] or {}).get("name", ""),
        remarks=tuple(known["remarks"]),
        groups=known["groups"],
    )


def read_run(path: Path) -> dict[str, Any]:
    """What `run.json` of a folder holds.

    Raises:
        BadInputError: the folder has none, or it is broken.
    """
    file = path / _RUN
    try:
        values = json.loads(file.read_text("utf-8"))
        for name, kind in _KINDS.items():
            if not isinstance(values[name], kind):
                raise ValueError(f"{name} is of another kind")
        for name in _SETTINGS:
            values["settings"][name]
        for arm in values["arms"]:
            Arm(**arm)
    except FileNotFoundError:
        raise BadInputError(f"{path} is no folder of an evaluation: it has no {_RUN}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{file} is broken: {error}") from None
    return dict(values)


def _same(path: Path, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    # A judge may come later, and a call without one leaves what it said as it is.
    free = {"judge"} if not known.get("judge") or not asked.get("judge") else set()
    differ = [name for name in sorted({*known, *asked} - free) if known.get(name) != asked.get(name)]
    if differ:
        told = "; ".join(f"{name} was {known.get(name)!r} and is {asked.get(name)!r}" for name in differ)
        raise BadInputError(
            f"{path} was made with other settings ({told}): "
            "repeat them to go on with it, or name another --out"
        )


def _drop_half_line(file: Any) -> None:
    """Cut the file after its last line end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65_536)
        file.seek(start)
        block = file.read(end - start)
        if (at := block.rfind(b"\n")) >= 0:
            file.truncate(start + at + 1)
            return
        end = start
    file.truncate(0)


def _rows(path: Path, *, whole: bool = True) -> Iterator[Row]:
    """The rows of a folder; without `whole`, a last line that is being written is passed over."""
    file = path / _ROWS
    try:
        lines = file.open("rb")  # a line that a kill cut off may end within a character
    except OSError as error:
        raise BadInputError(f"{file} cannot be read: {error.strerror}") from None
    with lines:
        for number, line in enumerate(lines, start=1):
            if not whole and not line.endswith(b"\n"):
                return
            try:
                yield row_of(json.loads(line))
            except (ValueError, PennameError) as error:
                raise BadInputError(
                    f"{file}:{number}: {error}; remove the line to go on without it"
                ) from None
