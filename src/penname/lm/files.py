"""Files of models: their hashes, and folders in the cache that are made once and then only read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from penname import paths
from penname.errors import ModelError

log = logging.getLogger(__name__)

_ABANDONED = 3600.0  # seconds after which a half-made folder is taken to be a killed process's


def sha256(file: Path) -> str:
    """The file's SHA-256, in hex; remembered in the cache folder while its size and time stay the same."""
    stat = file.stat()
    state = [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    memo = paths.cache_dir() / "hashes" / key
    try:
        known = memo.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        known = ""
    if len(known) == 64:  # a file cut short by a full disk is not believed
        return known
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _remember(memo, digest)
    return digest


def fingerprint(files: Iterable[Path]) -> str:
    """One hash over the names and contents of `files`, whatever folder they lie in."""
    lines = sorted(f"{file.name} {sha256(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, a folder; where it is not there yet, `make` fills a folder beside it, renamed into place.

    A kill leaves no half-made folder under that name. Of several processes that make it at once one wins, and
    all get the same.

    Raises:
        ModelError: the cache folder cannot be written, or the disk is full.
    """
    if target.is_dir():
        return target
    log.info("converting a model, once, to %s", target)
    beside = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    try:
        beside.mkdir(parents=True)
        _clear_abandoned(target)
        make(beside)
        _rename(beside, target)
    except OSError as error:
        raise ModelError(
            f"cannot write the converted model to {target.parent}: {error.strerror or error}; "
            "PENNAME_CACHE names another folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _rename(beside: Path, target: Path) -> None:
    try:
        beside.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first, and its folder is as good
            raise


def _clear_abandoned(target: Path) -> None:
    for folder in target.parent.glob(f".{target.name}-*"):
        try:
            abandoned = time.time() - folder.stat().st_mtime > _ABANDONED
        except OSError:  # its maker has just renamed it
            continue
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)


def _remember(memo: Path, digest: str) -> None:
    """Keep `digest`; where the cache cannot be written it is only computed again next time."""
    beside = memo.with_name(f"{memo.name}-{uuid.uuid4().hex}")
    try:
        memo.parent.mkdir(exist_ok=True)
        beside.write_text(digest, encoding="ascii")
        os.replace(beside, memo)
    except OSError:
        beside.unlink(missing_ok=True)
