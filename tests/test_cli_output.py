"""No text of a user reaches the terminal as a command, and JSON loses nothing."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_helpers import Cli
from penname.cli.output import clean, line, to_json

HOSTILE = "\x1b]0;owned\x07 [bold]x[/bold] \x9b31m :smile: \u202egnp.exe"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    return Cli(capsys, monkeypatch, tmp_path)


@given(st.text(st.characters()))
def test_clean_text_has_no_control_characters(text: str) -> None:
    shown = clean(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    shown.encode("utf-8")


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf"], include_characters="\n\t")))
def test_clean_leaves_harmless_text_alone(text: str) -> None:
    assert clean(text) == text


def test_clean_shows_what_it_took_out() -> None:
    assert clean("a\x1b[31mb\r\nc\rd\x9b\ud800") == "a\\x1b[31mb\nc\\rd\\x9b\\ud800"


@given(st.text(), st.integers(1, 40))
def test_line_is_one_line_of_that_width(text: str, width: int) -> None:
    assert len(line(text, width)) <= width
    assert "\n" not in line(text)


@given(st.recursive(st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)))
def test_json_loses_nothing_and_is_safe(value: object) -> None:
    text = to_json(value)
    assert json.loads(text) == value
    assert not [c for c in text if unicodedata.category(c) == "Cc"]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("command", [("show", "ann"), ("users",)])
def test_a_hostile_document_is_shown_as_text(
    cli: Cli, tmp_path: Path, command: tuple[str, ...], terminal: bool
) -> None:
    row = {"user": "ann", "title": HOSTILE, "text": HOSTILE, "date": "2024-03-01"}
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"penname": "user", "id": "ann", "name": HOSTILE}) + "\n" + json.dumps(row)
    )
    assert cli("import", "jsonl", str(tmp_path / "rows.jsonl")).status == 0
    shown = cli(*command, terminal=terminal)
    assert shown.status == 0
    for raw in ("\x1b]", "\x07", "\x9b", "\u202e"):
        assert raw not in shown.out + shown.err
    if command[0] == "show":
        assert "[bold]x[/bold]" in shown.out.replace("\n", "")
        assert ":smile:" in shown.out


def test_an_error_that_quotes_hostile_input_is_clean(cli: Cli) -> None:
    outcome = cli("import", "jsonl", "\x1b]0;owned\x07.jsonl")
    assert outcome.status == 1
    assert "\x1b" not in outcome.err
