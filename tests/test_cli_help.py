"""The command line as a whole: what every command owes to those who ask for help, and to the shell."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli_helpers import Cli
from penname import __version__
from penname.cli import app
from penname.sources import SOURCES

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"
HEAVY = ("torch", "transformers", "sqlalchemy", "openvino_genai", "openai", "rich", "numpy", "pydantic")


def commands() -> dict[str, Any]:
    """Every command by its full name."""

    def walk(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, f"{prefix}{name} ")
            else:
                yield prefix + name, command

    return dict(walk(typer.main.get_command(app), ""))


COMMANDS = commands()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    return Cli(capsys, monkeypatch, tmp_path)


def section(command: str) -> str:
    """What docs/cli.md says under the command's heading."""
    text = DOCS.read_text("utf-8")
    found = re.search(
        rf"^#+ `penname {re.escape(command)}`\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert found, f"docs/cli.md has no heading `penname {command}`"
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_help_text_with_an_example(name: str) -> None:
    text = inspect.cleandoc(COMMANDS[name].help or "")
    first = text.split("\n")[0]
    assert first.endswith(".")
    assert len(first) <= 66, "the list of commands would cut it"
    assert f"Example: penname {name}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_has_a_help_text(name: str) -> None:
    assert [p.name for p in COMMANDS[name].params if not p.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_options_are_documented(name: str) -> None:
    text = section(name)
    assert f"penname {name}" in text, "an example is missing"
    options = [p.opts[0] for p in COMMANDS[name].params if p.opts[0].startswith("--")]
    assert [option for option in options if f"`{option}" not in text] == []


def test_no_command_is_documented_that_is_not_there() -> None:
    headings = re.findall(r"^#+ `penname ([^`]+)`$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(COMMANDS)


def test_every_option_of_a_source_can_be_given() -> None:
    flags = {p.name for p in COMMANDS["import"].params}
    wanted = {option for source in SOURCES.values() for option in source.options}
    assert wanted <= flags


def test_every_source_is_named_in_the_help() -> None:
    [source] = [p for p in COMMANDS["import"].params if p.name == "source"]
    assert [name for name in SOURCES if name not in source.help] == []


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from penname.cli import main
try:
    main(["--help"])
except SystemExit as left:
    print([left.code, *(name for name in {HEAVY!r} if name in sys.modules)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0]"


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"penname {__version__}\n"


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    assert "Commands:" in (shown := cli()).out + shown.err


@pytest.mark.parametrize("args", [("usrs",), ("users", "--limt", "3"), ("show",), ("users", "--limit", "x")])
def test_a_wrong_use_has_status_2(cli: Cli, args: tuple[str, ...]) -> None:
    outcome = cli(*args)
    assert outcome.status == 2
    assert outcome.out == ""
    assert "Usage: penname" in outcome.err


def test_a_mistyped_command_gets_the_nearest(cli: Cli) -> None:
    assert "'users'" in cli("usrs").err


def test_an_error_is_one_line_without_a_traceback(cli: Cli) -> None:
    outcome = cli("show", "nobody")
    assert (outcome.status, outcome.out, outcome.err) == (1, "", "penname: unknown user 'nobody'\n")


def test_an_unexpected_error_is_told_without_a_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("what\x1b[31m")

    monkeypatch.setattr("penname.store.Store.user", broken)
    outcome = cli("show", "nobody")
    assert outcome.status == 1
    assert outcome.err.startswith("penname: unexpected ZeroDivisionError: what\\x1b[31m (a bug")
    assert "--debug" in outcome.err


@pytest.mark.parametrize("args", [("--debug", "show", "nobody"), ("show", "nobody", "--debug")])
def test_debug_lets_the_error_through(cli: Cli, args: tuple[str, ...]) -> None:
    from penname.cli import main
    from penname.errors import UnknownUserError

    with pytest.raises(UnknownUserError):
        main(args)


def test_debug_by_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from penname.cli import main
    from penname.errors import UnknownUserError

    monkeypatch.setenv("PENNAME_DEBUG", "1")
    with pytest.raises(UnknownUserError):
        main(["show", "nobody"])


def test_ctrl_c_has_status_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penname.store.Store.user", stopped)
    outcome = cli("show", "nobody")
    assert (outcome.status, outcome.out) == (130, "")


@pytest.mark.skipif(os.name == "nt", reason="pipes close otherwise there")
def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    rows = "".join(f'{{"user": "u{n}", "text": "{"word " * 50}"}}\n' for n in range(500))
    (tmp_path / "rows.jsonl").write_text(rows)
    environment = {**os.environ, "PENNAME_DB": str(tmp_path / "store.db")}
    run = [sys.executable, "-c", "from penname.cli import main; main()"]
    subprocess.run(
        [*run, "import", "jsonl", tmp_path / "rows.jsonl"], env=environment, check=True, capture_output=True
    )
    with subprocess.Popen(
        [*run, "users", "--limit", "0", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_output_to_a_pipe_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"user": "zoë", "text": "日本"}\n', encoding="utf-8")
    environment = {**os.environ, "PENNAME_DB": str(tmp_path / "store.db"), "PYTHONIOENCODING": "latin-1"}
    run = [sys.executable, "-c", "from penname.cli import main; main()"]
    subprocess.run(
        [*run, "import", "jsonl", tmp_path / "rows.jsonl"], env=environment, check=True, capture_output=True
    )
    done = subprocess.run([*run, "show", "zoë"], env=environment, check=True, capture_output=True)
    assert "日本" in done.stdout.decode("utf-8")
