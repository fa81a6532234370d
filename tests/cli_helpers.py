"""Running the command line inside the test's own process, errors and status included."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penname.cli import main
from penname.store import Store


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[Any]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Cli:
    """`penname` on a store of the test's own: `cli("users", "--json").rows`."""

    def __init__(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
    ) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch
        self.db = folder / "store.db"
        monkeypatch.setenv("PENNAME_DB", str(self.db))
        with Store(self.db):
            pass  # an empty store: commands that do not fill one refuse to make one
        for name in ("PENNAME_MODEL", "PENNAME_DEBUG", "PENNAME_PROMPTS"):
            monkeypatch.delenv(name, raising=False)

    def __call__(self, *args: str, stdin: str = "", terminal: bool = False) -> Outcome:
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        self.monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        with pytest.raises(SystemExit) as left:
            main(args)
        out, err = self.capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Outcome(left.value.code, out, err)
