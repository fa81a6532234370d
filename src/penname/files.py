"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def put(path: Path, text: str) -> Path:
    """Write `text` as UTF-8 beside `path` and rename it into place; one from before is replaced.

    Whoever reads it meanwhile, or after a kill, finds the old file or the new one.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path
