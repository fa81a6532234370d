"""Where penname keeps things on this machine: data that matters, and caches that can be made again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

APP = "penname"


def data_dir() -> Path:
    """The folder of the user's own data; made if it is not there."""
    return Path(platformdirs.user_data_dir(APP, ensure_exists=True))


def cache_dir() -> Path:
    """The folder of what can be made again (converted weights); `PENNAME_CACHE` names another."""
    named = os.environ.get("PENNAME_CACHE")
    folder = Path(named) if named else Path(platformdirs.user_cache_dir(APP))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def default_db() -> str:
    """The store that commands use when none is named: `PENNAME_DB`, or `penname.db` in `data_dir()`."""
    return os.environ.get("PENNAME_DB") or str(data_dir() / "penname.db")


def trained_dir(method: str) -> Path:
    """Where `penname train METHOD` writes when no folder is named, and what the bare method's name means."""
    return data_dir() / "trained" / method
