"""What methods are compared on: data sets, read into a store, with their held-out requests.

    found = load("proposals", store, data=Path("proposals.jsonl.gz"), split="test", tasks=["P-1", "P-4"])

A benchmark's version is the hash of the files that it was read from: it is part of every figure.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from penname.errors import BadInputError, UnknownBenchmarkError, UnknownSplitError, UnknownTaskError
from penname.evaluate import proposals
from penname.records import BadRow, Item, Request, digest
from penname.sources import read
from penname.store import Store
from penname.tasks import task as find_task

_READ = 1 << 20


@dataclass(frozen=True)
class Loaded:
    """A split of a benchmark, its histories in the store: the requests, each with its real text."""

    name: str
    version: str  # 12 hex digits of what was read
    split: str
    requests: tuple[Request, ...]
    remarks: tuple[str, ...] = ()  # what a reader of the figures must know
    pool: tuple[Request, ...] = ()  # all that the split has, drawn or not: who stands in for whom, and what
    # a manner is learnt from, must not hang on a limit; () where `requests` are all

    @property
    def data(self) -> str:
        """As it stands beside a figure."""
        return f"{self.name} {self.version}" + (f", {self.split} split" if self.split else "")


@dataclass(frozen=True)
class Benchmark:
    """A data set that methods are compared on."""

    name: str
    help: str
    tasks: tuple[str, ...]  # all that it has; () where the store's requests decide
    splits: tuple[str, ...]  # the first is the default; () where there is one
    file: str = ""  # what `data` is called in the folder PENNAME_DATA


_LAMP = tuple(f"LaMP-{number}" for number in range(1, 8))
_LONGLAMP = tuple(f"LongLaMP-{name}" for name in ("email", "abstract", "review", "topic"))
_PSW = tuple(f"PSW-{number}" for number in range(5))

BENCHMARKS = {
    one.name: one
    for one in (
        Benchmark(
            "proposals",
            "improvement proposals, written alone and together: four tasks (as PSW's, on open data)",
            proposals.TASKS,
            proposals.SPLITS,
            "proposals.jsonl.gz",
        ),
        Benchmark("lamp", "LaMP 1 to 7, from the official files", _LAMP, ("dev", "train", "test"), "lamp"),
        Benchmark(
            "longlamp",
            "LongLaMP's four, from the official rows",
            _LONGLAMP,
            ("val", "test", "train"),
            "longlamp",
        ),
        Benchmark("psw", "personalised scientific writing, from its authors' files", _PSW, (), "psw"),
        Benchmark(
            "personamem",
            "PersonaMem: multiple choice over a long conversation",
            ("choice",),
            ("32k", "128k", "1M"),
            "personamem",
        ),
        Benchmark("store", "the requests with a real text that your own store holds (--db)", (), ()),
        Benchmark("sample", "the small sample that comes with penname", (), ()),
    )
}
"""What `penname evaluate` knows, by name."""


def load(
    name: str,
    store: Store,
    *,
    data: Path | None = None,
    split: str | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> Loaded:
    """Read a benchmark into `store` and return its held-out requests.

    Args:
        data: the file or folder; by default what PENNAME_DATA has of it.
        split: the benchmark's first where None.
        tasks: all of the benchmark's where empty.
        limit: examples of each task, drawn by `seed`; a larger limit keeps those of a smaller one.
        note: called with a sentence for each row that cannot be used.

    Raises:
        UnknownBenchmarkError, UnknownTaskError, UnknownSplitError: the message offers the nearest.
        BadInputError: no data, or the split holds no example.
    """
    benchmark = _known(name, data, split, tasks)
    path = _data(benchmark, data) if benchmark.file else None
    chosen = split or (benchmark.splits[0] if benchmark.splits else "")
    if path is not None and path.is_file() and name != "proposals":
        if split is not None:
            raise BadInputError(
                f"{path} is one file, so there is no split to choose in it: leave --split out"
            )
        chosen = ""
    wanted = tuple(tasks) or benchmark.tasks
    bad: list[BadRow] = []
    requests, version = _read(benchmark, store, path, chosen, wanted, bad)
    pool = list(_usable(requests, name, bad))
    found = _drawn([one for one in pool if not wanted or one.task in wanted], limit, seed)
    for row in bad:
        note(str(row))
    there = {one.task for one in found}
    lacking = [task for task in wanted if task not in there]
    if not found or any(task in tasks for task in lacking):
        where = f"the {chosen} split of {name}" if chosen else name
        only = f" for {', '.join(lacking)}" if tasks else ""
        raise BadInputError(f"{where} holds no example with a real text{only}: there is nothing to evaluate")
    if lacking:
        note(f"{name} has no example of {', '.join(lacking)}")
    rows = "row" if len(bad) == 1 else "rows"
    remarks = (f"{len(bad)} {rows} of the files could not be used and were left out",) if bad else ()
    return Loaded(name, version, chosen, tuple(found), remarks, tuple(pool))


def _known(name: str, data: Path | None, split: str | None, tasks: Sequence[str]) -> Benchmark:
    """The benchmark of that name, which has the split and the tasks. Raises as `load` does."""
    if name not in BENCHMARKS:
        raise UnknownBenchmarkError(name, BENCHMARKS)
    benchmark = BENCHMARKS[name]
    for task in tasks:
        if benchmark.tasks and task not in benchmark.tasks:
            raise UnknownTaskError(task, benchmark.tasks)
        find_task(task)
    if split is not None and split not in benchmark.splits:
        if not benchmark.splits:
            raise BadInputError(f"the benchmark {name!r} has no splits: leave --split out")
        raise UnknownSplitError(split, benchmark.splits)
    if data is not None and not benchmark.file:
        raise BadInputError(f"the benchmark {name!r} reads no files: leave --data out")
    return benchmark


def _read(
    benchmark: Benchmark,
    store: Store,
    path: Path | None,
    split: str,
    tasks: Sequence[str],
    bad: list[BadRow],
) -> tuple[list[Request], str]:
    """All requests of the split and the version of what was read; the histories are in the store then."""
    if benchmark.name == "store":
        requests = stored_requests(store)
        return requests, stored_version(store, requests)
    if benchmark.name == "sample":
        folder = resources.files("penname.sample")
        with ExitStack() as opened:
            places = (folder.joinpath(name) for name in ("documents.jsonl", "requests.jsonl"))
            files = [opened.enter_context(resources.as_file(place)) for place in places]
            sample = (item for file in files for item in read("jsonl", file))
            return _taken(store, sample, bad), _version(files)
    assert path is not None  # all others have files
    items: Iterator[Item]
    if benchmark.name == "proposals":
        items = proposals.items(path, split)
    elif benchmark.name in ("lamp", "longlamp"):
        items = (
            item
            for task, folder in _task_folders(path, tasks)
            for item in read(benchmark.name, folder, **_official(task, split, folder))
        )
    elif benchmark.name == "personamem":
        items = read("personamem", path, split=split) if path.is_dir() else read("personamem", path)
    else:
        items = read(benchmark.name, path)
    return _taken(store, items, bad), _version([path])


def _usable(requests: Sequence[Request], name: str, bad: list[BadRow]) -> Iterator[Request]:
    """The requests with a real text that their task can score, each id once; the others go to `bad`."""
    met: set[tuple[str, str]] = set()
    for one in requests:
        if not one.gold or not one.gold.strip():
            continue  # where the files have real texts, the source has told
        choices = find_task(one.task).choices
        if choices and one.gold.strip() not in choices:
            why = f"the real answer {one.gold[:40]!r} of {one.id[:60]!r} is none of the labels of {one.task}"
        elif (one.task, one.id) in met:
            why = f"a second example of {one.task} with the id {one.id[:60]!r}"
        else:
            met.add((one.task, one.id))
            yield one
            continue
        bad.append(BadRow(file=name, line=0, why=why))


def stored_version(store: Store, requests: Sequence[Request]) -> str:
    """12 hex digits of these requests and of what their users wrote."""
    users = dict.fromkeys(user for one in requests for user in one.users)
    histories = [[document.content_hash for document in store.user(user).documents()] for user in users]
    return digest([[one.model_dump(mode="json") for one in requests], histories])[:12]


def stored_requests(store: Store) -> list[Request]:
    """Every request in the store that has a real text, once, in the order of the users' ids."""
    return [
        request
        for user in store.users()
        for request in store.user(user.id).requests()
        if request.gold and request.users[0] == user.id
    ]


def _data(benchmark: Benchmark, data: Path | None) -> Path:
    """Where the benchmark's files are."""
    folder = os.environ.get("PENNAME_DATA")
    path = data or (Path(folder) / benchmark.file if folder else None)
    if path is None:
        raise BadInputError(
            f"the benchmark {benchmark.name!r} needs its files: name them with --data, or the folder that "
            f"holds {benchmark.file!r} with PENNAME_DATA"
        )
    if not path.exists():
        raise BadInputError(f"there is nothing at {path}, where the files of {benchmark.name!r} should be")
    return path


def _task_folders(path: Path, tasks: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The place of each task's files: `path` itself for one task, or a folder in it of the task's name."""
    if path.is_file():
        if len(tasks) != 1:
            raise BadInputError(f"{path} is the file of one task: say which with --task ({', '.join(tasks)})")
        yield tasks[0], path
        return
    found = 0
    for task in tasks:
        short = task.removeprefix("LongLaMP-")
        for folder in (path / task, path / task.replace("-", "_"), path / short):
            if folder.is_dir():
                found += 1
                yield task, folder
                break
        else:
            if len(tasks) == 1:
                found += 1
                yield task, path
    if not found:
        raise BadInputError(
            f"{path} has no folder for any of {', '.join(tasks)}: name the folder of one task, and the task"
        )


def _official(task: str, split: str, place: Path) -> dict[str, str]:
    """The options of the source for one task: users' ids are unique within a task only."""
    options = {"task": task, "prefix": f"{task}/"}
    return options | ({"split": split} if place.is_dir() else {})


def _taken(store: Store, items: Iterable[Item], bad: list[BadRow]) -> list[Request]:
    """Put `items` into the store; the requests among them."""
    requests: list[Request] = []

    def passed() -> Iterator[Item]:
        for item in items:
            if isinstance(item, Request):
                requests.append(item)
            yield item

    store.add(passed(), on_bad=bad.append)
    return requests


def _version(paths: Sequence[Path]) -> str:
    """12 hex digits of SHA-256 over the files' bytes, those in folders in the order of their names."""
    found = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as stream:
                    while block := stream.read(_READ):
                        found.update(block)
    return found.hexdigest()[:12]


def _drawn(requests: Sequence[Request], limit: int | None, seed: int) -> list[Request]:
    """Up to `limit` requests of each task, by a fixed lot; all in their own order where there is no limit."""
    if limit is None:
        return list(requests)
    by_task: dict[str, list[Request]] = {}
    for request in sorted(requests, key=lambda one: digest([seed, one.id])):
        by_task.setdefault(request.task, []).append(request)
    return [request for of_task in by_task.values() for request in of_task[:limit]]
