"""`keys`: making, listing and ending them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from cli_helpers import Cli
from penname.records import User
from penname.store import Store


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    made = Cli(capsys, monkeypatch, tmp_path)
    with Store(made.db) as store:
        store.add([User(id="ann"), User(id="bob")])
    return made


def test_the_secret_alone_is_on_stdout(cli: Cli) -> None:
    outcome = cli("keys", "create", "--user", "ann", "--name", "laptop")
    assert outcome.status == 0
    secret = outcome.out.removesuffix("\n")
    with Store(cli.db) as store:
        key = store.key(secret)
    assert key is not None
    assert (key.user, key.name) == ("ann", "laptop")
    assert outcome.err == f"{key.id}, for ann; the secret is not shown again\n"


def test_a_services_key(cli: Cli) -> None:
    [made] = cli("keys", "create", "--service", "--user", "bob", "--user", "ann", "--json").rows
    with Store(cli.db) as store:
        key = store.key(made.pop("secret"))
    assert key is not None
    assert datetime.fromisoformat(made.pop("made_at")) == key.made_at
    assert made == {"id": key.id, "user": None, "service": True, "users": ["ann", "bob"], "name": ""}
    assert cli("keys", "create", "--service").err.endswith(
        ", for a service of 0 users; the secret is not shown again\n"
    )


def test_a_new_store_may_begin_with_a_services_key(cli: Cli, tmp_path: Path) -> None:
    new = str(tmp_path / "new.db")
    assert cli("keys", "create", "--user", "ann", "--db", new).status == 1
    outcome = cli("keys", "create", "--service", "--db", new)
    assert outcome.status == 0
    with Store(new, create=False) as store:
        assert store.key(outcome.out.strip()) is not None


@pytest.mark.parametrize("args", [(), ("--user", "ann", "--user", "bob")])
def test_a_key_is_for_one_user_or_a_service(cli: Cli, args: tuple[str, ...]) -> None:
    outcome = cli("keys", "create", *args)
    assert outcome.status == 2
    assert "one --user, whose key it is, or --service" in outcome.err
    assert cli("keys", "list", "--json").rows == []


def test_a_mistyped_user_is_named(cli: Cli) -> None:
    outcome = cli("keys", "create", "--user", "anne")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == "penname: unknown user 'anne' (did you mean 'ann'?)\n"


def test_the_list_shows_no_secret(cli: Cli) -> None:
    secrets = [
        cli("keys", "create", "--user", "ann", "--name", "a\tb\x1b[2J").out.strip(),
        cli("keys", "create", "--service", "--user", "ann").out.strip(),
    ]
    shown = cli("keys", "list")
    rows = [line.split("\t") for line in shown.out.splitlines()]
    assert rows[0] == ["id", "for", "made", "name"]
    assert [(row[1], row[3]) for row in rows[1:]] == [("ann", r"a b\x1b[2J"), ("a service of 1 user", "")]
    listed = cli("keys", "list", "--json")
    assert [row["users"] for row in listed.rows] == [["ann"], ["ann"]]
    assert [row["id"] for row in listed.rows] == [row[0] for row in rows[1:]]
    assert not any(secret in shown.out + listed.out for secret in secrets)


def test_a_revoked_key_is_gone(cli: Cli) -> None:
    [made] = cli("keys", "create", "--user", "ann", "--json").rows
    outcome = cli("keys", "revoke", made["id"])
    assert (outcome.status, outcome.out, outcome.err) == (0, "", f"revoked {made['id']}\n")
    assert cli("keys", "list", "--json").rows == []
    again = cli("keys", "revoke", made["id"])
    assert again.status == 1
    assert "no key with this id: `penname keys list`" in again.err


def test_an_erase_tells_how_many_keys_went(cli: Cli) -> None:
    cli("keys", "create", "--user", "ann")
    assert " 1 key," in cli("erase", "ann", "--yes").out
    assert cli("keys", "list", "--json").rows == []
