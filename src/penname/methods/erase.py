"""Erasing a user from what was trained: rows of tables go, and texts that a training kept; shared weights can
only be named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penname.errors import ErasureError, PennameError, TrainedError
from penname.methods.prlhf.table import TABLE, UserTable
from penname.store import Store
from penname.train import seen
from penname.train.folder import CARD, workshop_of
from penname.train.index import INDEX, saw


@dataclass(frozen=True)
class Forgotten:
    """What `forget` found and did, by folder (absolute paths)."""

    rows: tuple[Path, ...] = ()  # the table had a row of the user: zeroed, and out of the index
    weights: tuple[Path, ...] = ()  # the shared weights were trained on the user's data, and stay as they are
    gone: tuple[Path, ...] = ()  # noted in the store, and not there (any more, or on another machine)
    lines: int = 0  # of what trainings saw, with texts of the user: taken out


def forget(store: Store, user: str, folders: Sequence[Path] = ()) -> Forgotten:
    """Erases the user's row in every run trained from `store`, and in `folders` too.

    Call it before the user's part of the store is erased: where a kill comes between, both can be repeated.
    A run that cannot be looked into does not keep the others from being cleaned.

    Args:
        store: names the runs (`Store.trained`); the user need not be in it.
        user: the id.
        folders: further runs, trained from files or from another store.

    Raises:
        TrainedError: one of `folders` is not there, and nothing was done.
        ErasureError: runs could not be looked into or written, and all others were cleaned.
    """
    named = [folder.expanduser().resolve() for folder in folders]
    for folder in named:
        if not folder.is_dir():
            raise TrainedError(f"there is no folder {folder}: nothing was erased")
    rows: list[Path] = []
    weights: list[Path] = []
    gone: list[Path] = []
    failed: dict[Path, Exception] = {}
    lines = 0
    for folder in dict.fromkeys([*(one.path for one in store.trained()), *named]):
        try:
            if not folder.is_dir():
                # What is not finished may hold a row in its checkpoints: it is named, to be removed whole.
                unfinished = workshop_of(folder)
                (weights if unfinished.is_dir() else gone).append(
                    unfinished if unfinished.is_dir() else folder
                )
                continue
            if _shared_saw(folder, user):
                weights.append(folder)
            if _erase_row(folder, user):
                rows.append(folder)
            lines += sum(seen.erase_user(one, user) for one in (folder, *_inside(folder)))
        except (PennameError, OSError) as error:
            failed[folder] = error
    if failed:
        said = "; ".join(f"{folder} ({error})" for folder, error in failed.items())
        raise ErasureError(
            f"{user!r} could not be erased from {said}. Mend or delete what is named, then "
            "erase again; until then the store keeps the user, while all other runs are clean",
            list(failed),
        )
    return Forgotten(tuple(rows), tuple(weights), tuple(gone), lines)


def knows(folder: Path, user: str) -> bool:
    """Whether the run in `folder` has a row of the user, or trained its shared weights on the user's data.

    Raises:
        TrainedError: the folder holds no run, or a damaged one.
    """
    if _shared_saw(folder, user):
        return True
    if not (folder / TABLE).exists():
        return False
    with UserTable.open(folder) as table:
        return user in table


def _shared_saw(folder: Path, user: str) -> bool:
    """Whether the run's shared weights, or those of a result inside it, were trained on the user's data."""
    indexed = [one for one in _inside(folder) if (one / INDEX).is_file()]
    return any(saw(one, user) for one in (folder, *indexed))


def _inside(folder: Path) -> list[Path]:
    """Results that lie inside a result: what it was made from, or made on the way."""
    return sorted(card.parent for card in folder.rglob(CARD) if card.parent != folder)


def _erase_row(folder: Path, user: str) -> bool:
    """Whether there was a row. A run without users has no table."""
    if not (folder / TABLE).exists():
        return False
    with UserTable.open(folder) as table:
        return table.erase(user)
