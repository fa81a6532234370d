"""Import, users, show, export, erase and db upgrade."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli
from penname.errors import StoreFullError
from penname.records import Authored, Document, Item, Preference, Profile, Request, User
from penname.store import Added, Store

GOOD = [
    {"user": "ann", "title": "One", "text": "The first text.", "date": "2024-01-01"},
    {"user": ["ann", "bob"], "title": "Two", "text": "A text of two.", "date": "2024-02-01"},
    {"user": "ann", "title": "Three", "text": "The third text."},
]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    return Cli(capsys, monkeypatch, tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", GOOD)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# --- import


def test_import_tells_what_is_new_and_what_was_there(cli: Cli, rows: Path) -> None:
    first = cli("import", "jsonl", str(rows))
    assert (first.status, first.err) == (0, "")
    assert first.out == "4 new documents, 0 changed, 0 already there, 2 new users\n"
    assert cli("import", "jsonl", str(rows)).out == "0 new documents, 0 changed, 4 already there\n"


def test_import_as_json(cli: Cli, rows: Path) -> None:
    [counts] = cli("import", "jsonl", str(rows), "--json").rows
    assert counts == {**dict.fromkeys(counts, 0), "users": 2, "new": 4}


def test_every_bad_row_is_told_and_the_rest_is_kept(cli: Cli, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mixed.jsonl", ["nonsense", GOOD[0], '{"user": "ann"}', GOOD[2]])
    outcome = cli("import", "jsonl", str(path))
    assert outcome.status == 1
    assert outcome.out.startswith("2 new documents")
    assert f"{path}:1: " in outcome.err
    assert f"{path}:3: " in outcome.err
    assert "--skip-bad" in outcome.err
    again = cli("import", "jsonl", str(path), "--skip-bad", "--json")
    assert (again.status, again.rows[0]["bad"], again.rows[0]["same"]) == (0, 2, 2)


def test_fields_by_name(cli: Cli, tmp_path: Path) -> None:
    row = {"by": "ann", "body": "A text.", "head": "Title", "when": "2024-05-06", "no": "d1"}
    path = write_rows(tmp_path / "named.jsonl", [row])
    names = {"user": "by", "text": "body", "title": "head", "date": "when", "id": "no"}
    flags = [part for name, field in names.items() for part in (f"--{name}-field", field)]
    assert cli("import", "jsonl", str(path), *flags).status == 0
    [shown] = cli("show", "ann", "--json").rows[0]["newest"]
    assert (shown["id"], shown["title"], shown["date"]) == ("d1", "Title", "2024-05-06")


def test_an_option_of_another_source_is_refused(cli: Cli, rows: Path) -> None:
    cli.db.unlink()
    outcome = cli("import", "jsonl", str(rows), "--split", "dev")
    assert outcome.status == 2
    assert "--split" in outcome.err
    assert "--user-field" in outcome.err, "the options that it has are told"
    assert not cli.db.exists()


def test_a_mistyped_source_gets_the_nearest(cli: Cli, rows: Path) -> None:
    assert (
        cli("import", "jsonll", str(rows)).err == "penname: unknown source 'jsonll' (did you mean 'jsonl'?)\n"
    )


def test_a_missing_file_is_an_error(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("import", "jsonl", str(tmp_path / "absent.jsonl"))
    assert (outcome.status, outcome.out) == (1, "")
    assert "absent.jsonl" in outcome.err


def documents(n: int) -> Iterator[Item]:
    for number in range(n):
        yield Authored(user="ann", document=Document(id=f"d{number}", text=f"Text {number}."))


def interrupted(n: int, error: BaseException) -> Iterator[Item]:
    yield from documents(n)
    raise error


def test_ctrl_c_keeps_what_was_written_and_says_how_to_go_on(
    cli: Cli, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penname.sources.read", lambda *_: interrupted(1500, KeyboardInterrupt()))
    outcome = cli("import", "jsonl", str(rows))
    assert (outcome.status, outcome.out) == (130, "")
    assert "kept so far: 1,000 new documents" in outcome.err
    assert "same command again" in outcome.err
    monkeypatch.setattr("penname.sources.read", lambda *_: documents(1500))
    assert cli("import", "jsonl", str(rows)).out == "500 new documents, 0 changed, 1,000 already there\n"


def test_an_error_in_the_middle_says_what_was_kept(
    cli: Cli, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "penname.sources.read", lambda *_: interrupted(1500, StoreFullError("the disk is full"))
    )
    outcome = cli("import", "jsonl", str(rows))
    assert outcome.status == 1
    assert outcome.err.splitlines() == [
        "kept so far: 1,000 new documents, 0 changed, 0 already there, 1 new user",
        "penname: the disk is full",
    ]


# --- users and show


def test_users(cli: Cli, rows: Path) -> None:
    cli("import", "jsonl", str(rows))
    with Store(cli.db) as store:
        store.user("bob").add_profile(Profile(user="bob", text="Tone: dry"))
    assert cli("users").out.splitlines() == [
        "id\tdocuments\tfirst\tlast\tprofile",
        "ann\t3\t2024-01-01\t2024-02-01\t",
        "bob\t1\t2024-02-01\t2024-02-01\t1",
    ]
    ann, bob = cli("users", "--json").rows
    assert ann == {
        "id": "ann",
        "name": "",
        "documents": 3,
        "first": "2024-01-01",
        "last": "2024-02-01",
        "profile": None,
    }
    assert bob["profile"] == 1


def test_users_beyond_the_limit_are_counted(cli: Cli, rows: Path) -> None:
    cli("import", "jsonl", str(rows))
    outcome = cli("users", "--limit", "1", "--json")
    assert [row["id"] for row in outcome.rows] == ["ann"]
    assert "1 of 2 users" in outcome.err
    assert len(cli("users", "--limit", "0", "--json").rows) == 2


def test_an_empty_store_has_no_users(cli: Cli) -> None:
    assert cli("users", "--json").rows == []


def test_show(cli: Cli, rows: Path) -> None:
    cli("import", "jsonl", str(rows))
    [shown] = cli("show", "ann", "--documents", "2", "--json").rows
    assert shown["documents"] == 3
    assert (shown["preferences"], shown["requests"], shown["profile"]) == (0, 0, None)
    assert [document["title"] for document in shown["newest"]] == ["Two", "One"]
    text = cli("show", "ann").out
    assert "3 documents, 2024-01-01 to 2024-02-01" in text
    assert "profile: none yet" in text
    assert "The third text." in text


def test_the_database_can_be_named(cli: Cli, rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    cli("import", "jsonl", str(rows), "--db", str(other))
    assert cli("users", "--json").rows == []
    assert len(cli("users", "--json", "--db", str(other)).rows) == 2


# --- export, erase, upgrade


def fill(path: Path) -> None:
    """A store with everything of a user that there can be."""
    when = datetime(2024, 3, 1, 9, 30, 0, 5, tzinfo=UTC)
    document = Document(
        id="d1", title="A\u2028b", text="Line\x1b\x85\n“two”", written_at=when, fields={"n": [1, {"x": None}]}
    )
    items: list[Item] = [
        User(id="ann", name="Ann O'Neill"),
        Authored(user="ann", document=document),
        Authored(user="ann", document=Document(text="Undated.", position=1, n_authors=2)),
        Profile(
            user="ann", text="Tone: dry", topics=("tea",), documents=("d1",), created_at=when, edited=True
        ),
        Profile(user="ann", text="Tone: warm", before=when),
        Preference(user="ann", kind="choice", prompt="p", chosen="a", rejected="b", made_at=when),
        Preference(user="ann", kind="rating", completion="c", rating=-0.25),
        Request(
            task="email", input="About tea", users=("ann", "bob"), before=when, exclude=("d1",), gold="Tea."
        ),
    ]
    with Store(path) as store:
        store.add(items)


def test_an_export_reads_back_identically(cli: Cli, tmp_path: Path) -> None:
    fill(cli.db)
    exported = tmp_path / "ann.jsonl"
    outcome = cli("export", "ann", "--out", str(exported))
    assert (outcome.status, outcome.out) == (0, "")
    assert str(exported) in outcome.err
    other = str(tmp_path / "other.db")
    assert cli("import", "jsonl", str(exported), "--db", other).status == 0
    assert cli("export", "ann", "--db", other).out == exported.read_text("utf-8")
    with Store(cli.db) as left, Store(other) as right:
        assert left.user("ann").documents() == right.user("ann").documents()
        assert left.user("ann").profiles() == right.user("ann").profiles()
        assert left.user("ann").preferences() == right.user("ann").preferences()
        assert left.user("ann").requests() == right.user("ann").requests()


def test_a_failed_export_leaves_what_was_there(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cli.db)
    out = tmp_path / "ann.jsonl"
    out.write_text("as before")

    def broken(_: object) -> Iterator[dict[str, object]]:
        yield {"penname": "user"}
        raise StoreFullError("the disk is full")

    monkeypatch.setattr("penname.store.UserStore.export", broken)
    assert cli("export", "ann", "--out", str(out)).status == 1
    assert out.read_text() == "as before"
    assert sorted(path.name for path in tmp_path.iterdir() if "ann" in path.name) == ["ann.jsonl"]


def test_an_export_into_a_folder_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    fill(cli.db)
    outcome = cli("export", "ann", "--out", str(tmp_path / "absent" / "ann.jsonl"))
    assert outcome.status == 1
    assert "no file can be made in" in outcome.err
    assert str(tmp_path / "absent") in outcome.err
    assert ".part" not in outcome.err


def test_an_export_onto_a_full_disk_names_its_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fill(cli.db)
    monkeypatch.setattr("os.fsync", full)
    outcome = cli("export", "ann", "--out", str(tmp_path / "ann.jsonl"))
    assert outcome.status == 1
    assert f"{tmp_path / 'ann.jsonl'} cannot be written: No space left" in outcome.err
    assert not [path for path in tmp_path.iterdir() if "ann" in path.name]


def test_erase_asks_first(cli: Cli) -> None:
    fill(cli.db)
    refused = cli("erase", "ann", stdin="n\n")
    assert refused.status == 1
    assert "2 documents" in refused.err
    assert cli("erase", "ann").status == 1, "no answer is no"
    assert cli("show", "ann").status == 0
    agreed = cli("erase", "ann", stdin="y\n")
    assert agreed.status == 0
    assert agreed.out.startswith("erased ann: 2 documents")
    assert cli("show", "ann").status == 1


def test_erase_returns_counts(cli: Cli) -> None:
    fill(cli.db)
    [counts] = cli("erase", "ann", "--yes", "--json").rows
    assert counts["user"] == "ann"
    assert (counts["documents"], counts["profiles"], counts["preferences"], counts["requests"]) == (
        2,
        2,
        2,
        1,
    )
    assert cli("erase", "ann", "--yes").status == 1


def test_upgrade_may_run_again(cli: Cli) -> None:
    cli.db.unlink()
    [first] = cli("db", "upgrade", "--json").rows
    assert first["before"] is None
    assert first["schema"]
    [second] = cli("db", "upgrade", "--json").rows
    assert second["before"] == second["schema"] == first["schema"]
    assert "nothing to do" in cli("db", "upgrade").out


def test_added_has_words_for_every_count() -> None:
    from penname.cli.importer import _summary

    added = Added(users=1, new=2, same=3, changed=4, requests=5, preferences=6, profiles=7, bad=8)
    assert [int(word) for word in _summary(added).split() if word.isdigit()] == [2, 4, 3, 1, 5, 6, 7, 8]


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders there")
def test_an_export_replaces_no_device(cli: Cli, tmp_path: Path) -> None:
    fill(cli.db)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        outcome = cli("export", "ann", "--out", str(tmp_path / name))
        assert outcome.status == 1
        assert "is no file" in outcome.err
    assert (tmp_path / "pipe").is_fifo()


def test_an_export_keeps_a_link(cli: Cli, tmp_path: Path) -> None:
    fill(cli.db)
    real = tmp_path / "real.jsonl"
    real.touch()
    (tmp_path / "link.jsonl").symlink_to(real)
    assert cli("export", "ann", "--out", str(tmp_path / "link.jsonl")).status == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert real.read_text("utf-8") == cli("export", "ann").out


@pytest.mark.parametrize(
    "command", [("users",), ("show", "ann"), ("export", "ann"), ("erase", "ann", "--yes")]
)
def test_a_mistyped_store_is_not_made(cli: Cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    outcome = cli(*command, "--db", str(tmp_path / "mistyped.db"))
    assert outcome.status == 1
    assert "there is no store at" in outcome.err
    assert not (tmp_path / "mistyped.db").exists()
