"""Every error that penname raises on purpose, as one tree.

    PennameError
    ├── BadInputError            what was given cannot be used
    │   ├── BadUserIdError
    │   ├── EmptyHistoryError    a method needs documents and the user has none (before that moment)
    │   ├── EmptySourceError     an import that holds nothing to import
    │   ├── PromptTooLongError   the request alone exceeds the model's context
    │   └── JudgeNotIndependentError  a judge that also gave a reward in training
    ├── UnknownNameError         a name that is not there, with the nearest that are
    │   ├── UnknownUserError
    │   ├── UnknownMethodError
    │   ├── UnknownRetrieverError
    │   ├── UnknownTaskError
    │   ├── UnknownSourceError
    │   ├── UnknownBenchmarkError
    │   ├── UnknownSplitError
    │   ├── UnknownMetricError
    │   └── UnknownControlError
    ├── StoreError               the database
    │   ├── StoreBusyError       another process holds it for longer than the time-out
    │   ├── StoreReadOnlyError
    │   ├── StoreFullError
    │   └── StoreSchemaError     made by a newer version, or needs `penname db upgrade`
    ├── ModelError               a language model or embedder
    │   ├── ModelNotFoundError   no such model, or the folder holds none
    │   ├── TrainedError         a result of training cannot be used: missing, cut short, of another model
    │   │   └── ErasureError     a user could not be taken out of results of training
    │   └── ServerError          a remote model server
    │       ├── ServerUnreachableError
    │       ├── ServerRefusedError      it answered, and said no (401, 404, 400 …)
    │       ├── ServerRateLimitedError  429 after all retries
    │       └── StreamCutError          the stream ended before the answer did
    └── MissingPackageError      a package that an optional part needs, with the pip line

A message says what was wrong, where, and what to do. The command line prints it and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class PennameError(Exception):
    """Base of all errors that penname raises on purpose."""


class BadInputError(PennameError):
    """What was given cannot be used."""


class BadUserIdError(BadInputError):
    """A user id that is empty, too long, or holds control characters."""


class EmptyHistoryError(BadInputError):
    """The user has no documents that may be used for this request."""


class EmptySourceError(BadInputError):
    """An import found nothing to import."""


class PromptTooLongError(BadInputError):
    """The request alone, without any history, exceeds the model's context."""


class JudgeNotIndependentError(BadInputError):
    """A judge that also gave a reward in training would judge its own taste."""


class UnknownNameError(PennameError):
    """A name that is not there; the message offers the nearest names that are, or else all of them.

    Args:
        name: what was asked for.
        known: the names that exist (any iterable; read once).
    """

    kind = "name"
    few = True  # few enough, and nobody's own, to be all told

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        self.name = name
        there = list(known)
        near = difflib.get_close_matches(name, there, n=3, cutoff=0.6)
        meant = f" (did you mean {' or '.join(repr(n) for n in near)}?)" if near else ""
        if self.few and there and not near:
            meant = f"; there are {', '.join(there)}"
        super().__init__(f"unknown {self.kind} {_short(name)}{meant}")


class UnknownUserError(UnknownNameError):
    """No such user in this store."""

    kind = "user"
    few = False


class UnknownMethodError(UnknownNameError):
    """No such method or stage of a method."""

    kind = "method"


class UnknownRetrieverError(UnknownNameError):
    """No such retriever."""

    kind = "retriever"


class UnknownTaskError(UnknownNameError):
    """No such task."""

    kind = "task"


class UnknownSourceError(UnknownNameError):
    """No such source format."""

    kind = "source"


class UnknownBenchmarkError(UnknownNameError):
    """No such benchmark."""

    kind = "benchmark"


class UnknownSplitError(UnknownNameError):
    """No such split of a benchmark."""

    kind = "split"


class UnknownMetricError(UnknownNameError):
    """No such metric."""

    kind = "metric"


class UnknownControlError(UnknownNameError):
    """No such control of an evaluation."""

    kind = "control"


class StoreError(PennameError):
    """The database could not do what was asked."""


class StoreBusyError(StoreError):
    """Another process held the database for longer than the time-out."""


class StoreReadOnlyError(StoreError):
    """The database, or the folder it lies in, cannot be written."""


class StoreFullError(StoreError):
    """The disk is full; what was acknowledged before is kept."""


class StoreSchemaError(StoreError):
    """The database's schema is older (needs an upgrade) or newer than this version."""


class ModelError(PennameError):
    """A language model or embedder could not do what was asked."""


class ModelNotFoundError(ModelError):
    """No such model, or the folder that was named holds none."""


class TrainedError(ModelError):
    """A result of training cannot be used: it is missing, cut short, or made for something else."""


class ErasureError(TrainedError):
    """Trained runs, `folders`, could not be cleaned of a user, whom the store therefore keeps."""

    def __init__(self, message: str, folders: Sequence[Path]) -> None:
        super().__init__(message)
        self.folders = tuple(folders)


class ServerError(ModelError):
    """A remote model server failed."""


class ServerUnreachableError(ServerError):
    """No connection, or no answer in time, after all retries."""


class ServerRefusedError(ServerError):
    """The server answered and said no; `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class ServerRateLimitedError(ServerError):
    """The server kept answering 429 after all retries."""


class StreamCutError(ServerError):
    """A stream ended before the answer did; `text` is what had arrived."""

    def __init__(self, message: str, text: str = "") -> None:
        self.text = text
        super().__init__(message)


class MissingPackageError(PennameError):
    """A package that an optional part needs is not installed."""

    def __init__(self, package: str, needed_for: str, install: str) -> None:
        super().__init__(f"{needed_for} needs the package {package!r}: {install}")


def _short(name: str, limit: int = 60) -> str:
    """`name` quoted, cut in the middle where it is absurdly long."""
    shown = name if len(name) <= limit else f"{name[: limit // 2]}…{name[-limit // 4 :]}"
    return repr(shown)
