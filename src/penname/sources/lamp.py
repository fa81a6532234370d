"""LaMP's official files (arXiv 2304.11406), read as they are: users' profiles, requests and golds.

`{split}_questions.json` is one array of {id, input, profile: [{id, …}]}; `{split}_outputs.json`, beside it
and absent for the test split, is {task, golds: [{id, output}]}. The task is taken from there ("LaMP_4") or
from the option `task`. Each question is one user: `user_id` where the files have it (the split by time),
the question's id otherwise. Ids are unique within one task only: to keep two tasks in one store, give each a
`prefix`. Each profile entry becomes a document whose text is what the user wrote, with the entry's further
fields (tag, score, …) in `fields`; each question becomes a request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import BadRow, Item, Request, check_user_id
from penname.sources._arrays import objects
from penname.sources._files import blocks, check_file
from penname.sources._profiles import Shape, documents, moment
from penname.sources._rows import bad, id_of, text_of
from penname.tasks.lamp import MOVIE_TAGS

_SHAPES = {
    "LaMP-1": Shape(text=("abstract",)),
    "LaMP-2": Shape(text=("description", "text")),  # movies with tags; in the first release, news articles
    "LaMP-3": Shape(text=("text",)),
    "LaMP-4": Shape(text=("text",)),
    "LaMP-5": Shape(text=("abstract",)),
    "LaMP-6": Shape(text=("text",)),
    "LaMP-7": Shape(text=("text",)),
}
_TASK = re.compile(r"LaMP[-_ ]?([1-7])(?:[-_ ]?[MN])?", re.IGNORECASE)
_QUESTIONS = "_questions.json"


def read(
    path: Path, *, task: str | None = None, split: str | None = None, prefix: str = ""
) -> Iterator[Item]:
    """For each question the Authored of its profile, then its Request, with the gold where there is one.

    A question without a gold (where there are golds), a gold without a question, and a second question with
    the same id are reported as bad rows; only the last is not imported.

    Args:
        path: a questions file, or the folder that holds the files of one task.
        task: "LaMP-1" to "LaMP-7"; needed where no outputs file says it.
        split: "train", "dev" or "test", of a folder; all by default.
        prefix: put before every user's id.

    Raises:
        BadInputError: no such file or split, no known task, or a file as a whole is broken, or LaMP-2's
            labels are those of the news of its first release.
    """
    for questions in _question_files(path, split):
        outputs = questions.with_name(questions.name.replace("_questions", "_outputs"))
        if outputs != questions and outputs.exists():
            said, golds, wrong = _golds(outputs)
            yield from wrong
        else:
            said, golds = None, None
        name = _task(questions, task, said)
        if name == "LaMP-2":
            _check_tags(outputs, golds or {})
        yield from _questions(questions, name, golds, prefix, outputs)


def _check_tags(outputs: Path, golds: dict[str, str]) -> None:
    """Refuse the news of LaMP-2's first release (LaMP-2N), whose labels are others than the movies'."""
    other = next((gold for gold in golds.values() if gold not in MOVIE_TAGS), None)
    if other is not None:
        raise BadInputError(
            f"{outputs}: the label {other[:40]!r} is no movie tag: penname reads the movies of LaMP-2 "
            "(LaMP-2M), not the news of its first release (LaMP-2N)"
        )


def _question_files(path: Path, split: str | None) -> list[Path]:
    if not path.is_dir():
        if split is not None:
            raise BadInputError(f"{path} is no folder, so there is no split {split!r} to choose in it")
        check_file(path)
        return [path]
    files = sorted(file for file in path.iterdir() if _QUESTIONS in file.name)
    chosen = [file for file in files if split is None or file.name.split(_QUESTIONS)[0] == split]
    if not chosen:
        has = ", ".join(file.name for file in files) or "none"
        raise BadInputError(f"{path} has no {split or '*'}{_QUESTIONS} (question files there: {has})")
    return chosen


def _task(questions: Path, asked: str | None, said: str | None) -> str:
    """The task's name as "LaMP-4"."""
    names = [_task_name(name) for name in (asked, said) if name is not None]
    if not names:
        raise BadInputError(f"{questions} does not say its task: give it, such as task LaMP-4")
    if len(set(names)) > 1:
        raise BadInputError(
            f"{questions}: the task {names[0]} was given, but its outputs file says {names[1]}"
        )
    return names[0]


def _task_name(name: str) -> str:
    found = _TASK.fullmatch(name)
    if found is None:
        raise BadInputError(f"unknown task {name[:40]!r}; there are {', '.join(_SHAPES)}")
    return f"LaMP-{found[1]}"


def _golds(path: Path) -> tuple[str | None, dict[str, str], list[BadRow]]:
    """(task, outputs by id, what was wrong): the outputs are small beside the profiles, and are held."""
    try:
        content = json.loads(b"".join(blocks(path)).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path} is broken: {error}") from None
    rows = content.get("golds") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise BadInputError(f"{path} is no outputs file: it has no list of golds")
    golds: dict[str, str] = {}
    wrong = []
    for number, row in enumerate(rows, 1):
        try:
            name, gold = _gold(row)
            if name in golds:
                raise BadInputError(f"a second gold with the id {name[:60]!r}")
            golds[name] = gold
        except BadInputError as error:
            wrong.append(bad(path, 0, f"gold {number}: {error}"))
    task = content.get("task")
    return (task if isinstance(task, str) else None), golds, wrong


def _gold(row: object) -> tuple[str, str]:
    if not isinstance(row, dict):
        raise BadInputError("not an object")
    name, gold = id_of(row.get("id"), "id"), id_of(row.get("output"), "output")
    if not name or not gold:
        raise BadInputError("a gold needs the fields 'id' and 'output'")
    return name, gold


def _questions(
    path: Path, task: str, golds: dict[str, str] | None, prefix: str, outputs: Path
) -> Iterator[Item]:
    met: set[str] = set()
    for found in objects(path):
        if isinstance(found, BadRow):
            yield found
            continue
        line, row = found
        try:
            name = id_of(row.get("id"), "id")
            if not name:
                raise BadInputError("the question has no 'id'")
            if name in met:
                raise BadInputError(f"a second question with the id {name[:60]!r}")
            met.add(name)
            gold = (golds or {}).get(name)
            request = _request(row, task, prefix, name, gold)
        except (BadInputError, ValidationError) as error:
            yield bad(path, line, error)
            continue
        yield from documents(path, line, row.get("profile"), request.users[0], _SHAPES[task])
        yield request
        if golds is not None and gold is None:
            yield bad(path, line, f"the question {name[:60]!r} has no gold in {outputs.name}")
    for name in golds or ():
        if name not in met:
            yield bad(outputs, 0, f"the gold {name[:60]!r} has no question in {path.name}")


def _request(row: dict[str, Any], task: str, prefix: str, name: str, gold: str | None) -> Request:
    """The request of a question; its user is known by `user_id`, or by the question's id."""
    user = check_user_id(prefix + (id_of(row.get("user_id"), "user_id") or name))
    asked = text_of(row.get("input"), "input")
    when = moment(row.get("date"), first=True)
    return Request(id=prefix + name, task=task, input=asked, users=(user,), gold=gold, before=when)
