"""Readers of other people's formats: each turns files into records, one at a time, in constant memory.

A row that cannot be used comes out as a `BadRow` (file, line, why) and reading goes on; a file that cannot be
read at all raises. Each source is one module, with a function `read(path, **options)`, imported on first use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from penname.errors import BadInputError, EmptySourceError, UnknownSourceError
from penname.records import Item

__all__ = ["SOURCES", "Source", "read"]


@dataclass(frozen=True)
class Source:
    """A format that can be imported. `name` is also its module's name, `help` one line for people."""

    name: str
    help: str

    @property
    def reader(self) -> Callable[..., Iterator[Item]]:
        """The module's `read(path, **options)`."""
        module = import_module(f"penname.sources.{self.name}")
        return cast(Callable[..., Iterator[Item]], module.read)

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that `read` takes for this source."""
        return tuple(inspect.signature(self.reader).parameters)[1:]


SOURCES = {
    source.name: source
    for source in (
        Source("jsonl", "JSON Lines, plain or .gz: one document a row; also what `penname export` writes"),
        Source("git", "a git repository: the commit messages of each author"),
        Source("mbox", "e-mail in one mbox file: what each sender wrote, without quotes and signatures"),
        Source("markdown", "a folder of Markdown files, with author, title and date in their front matter"),
        Source("lamp", "LaMP's official files: users, profiles, requests and golds"),
        Source("longlamp", "LongLaMP's official rows, as a JSON array or JSON Lines"),
        Source("psw", "personalised scientific writing: the folder of Step-Back Profiling's authors"),
        Source("personamem", "PersonaMem, version 1: questions with options, and long conversations"),
        Source("prism", "PRISM's folder: a survey, conversations, and scores of responses"),
        Source("psoups", "Personalized Soups: pairs of responses, chosen by one preference"),
        Source("tldr", "TL;DR: which of two summaries a worker chose"),
        Source("personalllm", "PersonalLLM: responses with ten scores, and users simulated from them"),
        Source("trl", "TRL's preference rows, pairs or single ratings, with a field for the user"),
    )
}


def read(source: str, path: Path, **options: Any) -> Iterator[Item]:
    """The items of `path`, in the format named `source`; nothing is read before the first is asked for.

    Args:
        source: a name in SOURCES.
        path: a file or folder, as the source needs.
        options: those of the source (`SOURCES[source].options`).

    Raises:
        UnknownSourceError: no such source.
        BadInputError: no such option; while iterating: the path as a whole cannot be read.
        EmptySourceError: while iterating: it holds nothing.
        MissingPackageError: while iterating: a program that the source needs (git) is absent.
    """
    if source not in SOURCES:
        raise UnknownSourceError(source, SOURCES)
    known = SOURCES[source].options
    for name in options:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise BadInputError(f"the source {source!r} has no option {name!r}: {takes}")
    return _some(SOURCES[source].reader(Path(path), **options), Path(path))


def _some(items: Iterator[Item], path: Path) -> Iterator[Item]:
    """The items, of which there must be at least one."""
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        raise EmptySourceError(f"{path} holds nothing to import")
