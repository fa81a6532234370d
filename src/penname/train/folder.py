"""The result of a training: one folder, whole or not there.

    OUT/            penname.json, adapter/ (peft), users.safetensors and users.db, metrics.jsonl, README.md
    OUT.training/   while it is made: what was asked for, the checkpoints, metrics.jsonl

A training that was stopped goes on from its newest checkpoint when it is asked for again with the same
settings. Its result is put together inside the second folder and renamed into place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penname.errors import BadInputError, TrainedError
from penname.files import put

CARD = "penname.json"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Trained:
    """What a result folder says of itself."""

    path: Path
    method: str
    model: str  # the base model as it was named
    model_fingerprint: str  # of the base model's weights
    settings: dict[str, Any]
    data: dict[str, Any]  # fingerprint and counts of what it was trained on
    version: str  # of penname

    @property
    def adapter(self) -> Path | None:
        """The folder of the peft adapter; None where the method trained none."""
        return self.path / "adapter" if (self.path / "adapter").is_dir() else None


def open_trained(path: Path | str, *methods: str) -> Trained:
    """Read the card of a result folder.

    Args:
        methods: what the result must be of; any where none is named.

    Raises:
        TrainedError: the folder is missing or unfinished, its card is cut short, or it is of another method.
    """
    path = Path(path).expanduser()
    card = path / CARD
    if not card.is_file():
        raise TrainedError(_missing(path))
    try:
        read = json.loads(card.read_text(encoding="utf-8"))
        found = Trained(path, *(read[name] for name in _FIELDS))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainedError(f"{card} cannot be read ({error}): train again, or copy the folder anew") from None
    if methods and found.method not in methods:
        wanted = " or ".join(methods)
        raise TrainedError(f"{path} holds a result of {found.method}, not of {wanted}")
    return found


def rewards_behind(path: Path | str) -> set[str]:
    """Fingerprints of the models that gave a reward to the weights at `path`, or to the base they lie over.

    `path` is a result's folder, its model/, or any model, which then got none that is known.

    Raises:
        TrainedError: a card is there and cannot be read.
    """
    folder = Path(path).expanduser()
    card = (folder.parent if folder.name == "model" else folder) / CARD
    if not card.is_file():
        return set()
    try:
        read = json.loads(card.read_text(encoding="utf-8"))
        rewards, base = read.get("rewards", []), str(read.get("model", ""))
        if not isinstance(rewards, list) or not all(isinstance(one, str) for one in rewards):
            raise ValueError("'rewards' is no list of fingerprints")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise TrainedError(
            f"{card} cannot be read ({error}): whether a judge gave a reward is unknown"
        ) from None
    return set(rewards) | (rewards_behind(base) if base and Path(base) != folder else set())


def link_weights(source: str, target: str) -> None:
    """A copy of one file of a result within another, for `shutil.copytree`.

    Weights are not written twice where one disk holds both; small files may change, and are copied.
    """
    if source.endswith(".safetensors"):
        try:
            Path(target).hardlink_to(source)
            return
        except OSError:  # another disk
            pass
    shutil.copyfile(source, target)


_FIELDS = ("method", "model", "model_fingerprint", "settings", "data", "version")


def _missing(path: Path) -> str:
    if workshop_of(path).is_dir():
        return f"{path} is not finished: the same `penname train` command goes on where it stopped"
    if not path.is_dir():
        return f"no result of training at {path}: name the folder that `penname train --out` wrote"
    return f"{path} is no result of training: {CARD} is missing"


def workshop_of(out: Path) -> Path:
    """Where the result `out` is made."""
    return out.with_name(out.name + ".training")


def check_free(out: Path) -> None:
    """Refuse a place where something is already: before a model is loaded.

    Raises:
        BadInputError: there is.
    """
    if out.exists():
        raise BadInputError(f"{out} is there already: name another --out, or remove it")


@contextmanager
def workshop(out: Path, asked: Mapping[str, Any]) -> Iterator[Path]:
    """The folder in which the result `out` is made, held for this process alone.

    Args:
        asked: what decides the result, as JSON values: method, model, settings, data.

    Raises:
        BadInputError: `out` is there already, or another training's leavings, or another process makes it.
    """
    from filelock import FileLock, Timeout

    out = out.expanduser()
    check_free(out)
    folder = workshop_of(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInputError(f"{folder}: another process trains there now") from None
    try:
        _claim(folder, asked)
        yield folder
    finally:
        lock.release()


def _claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write down what is asked for, or see that it is what was asked before."""
    card = folder / "asked.json"
    wanted = json.loads(json.dumps(asked))
    if not card.is_file():
        put(card, json.dumps(wanted, indent=1))
        return
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
    except ValueError:
        raise TrainedError(f"{card} is cut short: remove {folder} and train again") from None
    if found != wanted:
        differs = ", ".join(_differences(found, wanted)) or "other settings"
        raise BadInputError(
            f"{folder} holds an unfinished training of other settings ({differs}): ask for those again to "
            "go on with it, remove it, or name another --out"
        )


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*found, *wanted]):
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield f"{name} {found!r} then, {wanted!r} now"


def finish(folder: Path, out: Path, card: Mapping[str, Any], fill: Callable[[Path], None]) -> Trained:
    """Put the result together, rename it to `out`, and remove the workshop.

    Args:
        card: the fields of `Trained` but `path`, and whatever else a reader should know.
        fill: puts everything but the card and the metrics into the folder that it is given.
    """
    out = out.expanduser()
    result = folder / "result"
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    fill(result)
    if (folder / METRICS).is_file():
        shutil.copyfile(folder / METRICS, result / METRICS)
    put(result / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    result.rename(out)
    shutil.rmtree(folder, ignore_errors=True)
    return open_trained(out)
