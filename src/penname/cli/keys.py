"""`penname keys`: who may use `penname serve`, and for which users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penname.cli.options import Db, Json, open_store
from penname.cli.output import line, note, plural, say, say_json, table

if TYPE_CHECKING:
    from penname.store import Key, Store

keys_app = typer.Typer(
    help="Make, list and end keys for `penname serve`.", no_args_is_help=True, rich_markup_mode=None
)


@keys_app.command("create")
def create(
    user: Annotated[
        list[str] | None,
        typer.Option(
            "--user", metavar="USER", help="Whose key; of a service: whom it acts for, again for more."
        ),
    ] = None,
    service: Annotated[
        bool, typer.Option("--service", help="A key for an application with users of its own.")
    ] = False,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="To tell keys apart.")] = "",
    db: Db = None,
    json: Json = False,
) -> None:
    """Make a key and print its secret, this once.

    Example: penname keys create --user alice --name laptop
    """
    users = user or []
    if not service and len(users) != 1:
        raise typer.BadParameter("give one --user, whose key it is, or --service")
    # An application may begin with no users: its key is then the first thing in a new store.
    with open_store(db, create=service and not users) as store:
        if service:
            made, secret = store.create_key(service=True, users=users, name=name)
        else:
            made, secret = store.create_key(user=users[0], name=name)
        shown = _shown(store, made)
    if json:
        say_json({**shown, "secret": secret})
        return
    say(secret)
    note(f"{made.id}, for {_whom(shown)}; the secret is not shown again")


@keys_app.command("list")
def list_keys(db: Db = None, json: Json = False) -> None:
    """List the keys that are valid, without their secrets.

    Example: penname keys list --json
    """
    with open_store(db) as store:
        keys = store.keys()
        rows = [_shown(store, key) for key in keys]
    if json:
        for row in rows:
            say_json(row)
        return
    head = ("id", "for", "made", "name")
    table(head, [(row["id"], _whom(row), row["made_at"][:10], row["name"]) for row in rows])


@keys_app.command("revoke")
def revoke(
    id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `keys list` shows it.")],  # noqa: A002
    db: Db = None,
) -> None:
    """End a key; a running server refuses it at once.

    Example: penname keys revoke key-3f9a52c1d07e
    """
    with open_store(db) as store:
        store.revoke_key(id)
    note(f"revoked {line(id)}")


def _shown(store: Store, key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "user": key.user,
        "service": key.service,
        "users": list(store.key_users(key.id)),
        "name": key.name,
        "made_at": key.made_at.isoformat(),
    }


def _whom(shown: dict[str, Any]) -> str:
    return f"a service of {plural(len(shown['users']), 'user')}" if shown["service"] else line(shown["user"])
