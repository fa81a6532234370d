"""Predictions in the files that the benchmarks' own evaluation reads.

LaMP's is one JSON object for each task, in the form of its golds, with an underscore in the task's name:

    {"task": "LaMP_4", "golds": [{"id": "410", "output": "Rain ahead of the weekend"}, …]}

It refuses a file whose ids are not exactly those of the golds. LongLaMP says that its files have the same
form, but not the names of its tasks in them: there stands ours. All other tasks get JSON Lines of id and
output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from penname.errors import BadInputError
from penname.files import put
from penname.tasks import task as find_task


def write_predictions(folder: str | Path, task: str, answers: Mapping[str, str]) -> Path:
    """Write the answers of one task into `folder` (made where it is not there); the file's path.

    The file is LaMP_4.json, LongLaMP-abstract.json or P-1.jsonl. It is written beside its place and renamed
    into it, so that it is whole or not there; one from before is replaced.

    Args:
        task: its name in `penname.tasks`.
        answers: by the id that the question has in the official files.

    Raises:
        UnknownTaskError: there is no such task.
        BadInputError: there are no answers, or the folder cannot be written.
    """
    name = find_task(task).name  # also what keeps a path out of the file's name
    if not answers:
        raise BadInputError(f"there are no answers of {name} to write")
    rows = [{"id": one, "output": text} for one, text in answers.items()]
    # ASCII, as the official evaluation reads the file in whatever encoding its machine has.
    if name.startswith(("LaMP-", "LongLaMP-")):
        official = name.replace("-", "_") if name.startswith("LaMP-") else name
        return _put(Path(folder) / f"{official}.json", json.dumps({"task": official, "golds": rows}) + "\n")
    return _put(Path(folder) / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _put(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return put(path, text)
    except OSError as error:
        raise BadInputError(f"predictions cannot be written to {path}: {error.strerror or error}") from None
