"""`penname serve` as a command and as a process: where it listens, when it refuses, what a kill leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli
from penname.cli import serve
from penname.store import Store

KILL = Path(__file__).parents[1] / "benchmarks" / "serve_kill.py"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been served: (settings, host, port)."""
    found: list[Any] = []
    monkeypatch.setattr(serve, "_run", lambda *given: found.append(given))
    return found


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    return Cli(capsys, monkeypatch, tmp_path)


def test_it_listens_on_loopback_and_says_how_to_make_a_key(cli: Cli, started: list[Any]) -> None:
    options = ["--run", "runs/a", "--adapt", "a", "--report", "found", "--per-minute", "7"]
    outcome = cli("serve", *options, "--no-page", "--share-prompts")
    assert (outcome.status, outcome.out) == (0, "")
    assert "penname keys create --user USER" in outcome.err
    [(settings, host, port)] = started
    assert (host, port, settings.runs, settings.adapt) == ("127.0.0.1", 8000, (Path("runs/a"),), ("a",))
    assert settings.reports == (Path("found"),)
    assert (settings.per_minute, settings.page, settings.db) == (7, False, str(cli.db))
    assert settings.share_prompts


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "penname.example"])
def test_it_is_open_to_others_only_where_there_is_a_key(cli: Cli, started: list[Any], host: str) -> None:
    refused = cli("serve", "--host", host)
    assert (refused.status, started) == (1, [])
    assert f"--host {host} is open to others" in refused.err
    with Store(cli.db) as store:
        store.create_key(service=True)
    assert cli("serve", "--host", host).err == ""
    assert started[0][1] == host


def test_without_the_extra_it_says_what_to_install(
    cli: Cli, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    for command in (("serve",), ("mcp", "--user", "ann")):
        outcome = cli(*command)
        assert (outcome.status, started) == (1, [])
        assert "pip install 'penname[serve]'" in outcome.err


def test_what_was_acknowledged_survives_a_kill() -> None:
    command = [sys.executable, str(KILL), "--rounds", "2", "--clients", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of all rounds nothing" in done.stdout
