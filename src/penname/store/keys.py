"""Keys of the HTTP service: whom a request is for. Only the SHA-256 of a secret is ever kept."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Connection, Row, Select, delete, insert, select

from penname.errors import BadInputError, UnknownUserError
from penname.records import check_text, check_user_id
from penname.store.database import Database
from penname.store.ingest import lock_users, make_users
from penname.store.results import Key
from penname.store.rows import chunks
from penname.store.schema import from_micros, key_users, keys, to_micros, users

PREFIX = "pn-"  # by which a secret that was left somewhere can be found
MAX_NAME = 200  # characters


def create(database: Database, user: str | None, allowed: Collection[str], name: str) -> tuple[Key, str]:
    """See `Store.create_key`; `user` None makes a service key for `allowed`."""
    named = [user] if user is not None else list(dict.fromkeys(allowed))
    if len(name) > MAX_NAME:
        raise BadInputError(f"a key's name has at most {MAX_NAME} characters, not {len(name):,}")
    # 128 random bits are beyond guessing; these are 256, so a plain hash is as good as a slow one.
    secret = PREFIX + secrets.token_urlsafe(32)
    made = Key(f"key-{secrets.token_hex(6)}", user, check_text(name), datetime.now(UTC))
    row = {"id": made.id, "hash": _hash(secret), "name": name, "made_at": to_micros(made.made_at)}
    with database.write() as connection:
        pks = lock_users(connection, named)
        absent = next((one for one in named if one not in pks), None)
        if absent is not None:
            raise UnknownUserError(absent)
        row["user_pk"] = None if user is None else pks[user]
        key_pk = connection.scalar(insert(keys).returning(keys.c.pk), row)
        if user is None and named:
            grants = [{"key_pk": key_pk, "user_pk": pks[one]} for one in named]
            connection.execute(insert(key_users), grants)
    return made, secret


def find(database: Database, secret: str) -> Key | None:
    """See `Store.key`. Found by its hash in an index, so that the time it takes tells of no other secret."""
    with database.read() as connection:
        row = connection.execute(_keys().where(keys.c.hash == _hash(secret))).first()
    return None if row is None else _key(row)


def known(database: Database, id: str) -> bool:  # noqa: A002
    """See `Store.has_key`."""
    with database.read() as connection:
        return connection.scalar(select(keys.c.pk).where(keys.c.id == id)) is not None


def listed(database: Database) -> list[Key]:
    """All keys, oldest first."""
    with database.read() as connection:
        return [_key(row) for row in connection.execute(_keys().order_by(keys.c.pk))]


def users_of(
    database: Database,
    id: str,  # noqa: A002
    among: Collection[str] | None,
    after: str | None,
    limit: int | None,
) -> tuple[str, ...]:
    """See `Store.key_users`."""
    granted = (
        select(users.c.id)
        .join(key_users, key_users.c.user_pk == users.c.pk)
        .join(keys, keys.c.pk == key_users.c.key_pk)
        .where(keys.c.id == id)
    )
    own = select(users.c.id).join(keys, keys.c.user_pk == users.c.pk).where(keys.c.id == id)
    found: set[str] = set()
    with database.read() as connection:
        for query in (own, granted):
            if after is not None:
                query = query.where(users.c.id > after)
            query = query.order_by(users.c.id).limit(limit)
            if among is None:
                found.update(connection.scalars(query))
            else:
                for some in chunks(among):
                    found.update(connection.scalars(query.where(users.c.id.in_(some))))
    return tuple(sorted(found)[:limit])


def add_user(database: Database, id: str, user: str, name: str) -> None:  # noqa: A002
    """See `Store.add_key_user`."""
    check_user_id(user)
    check_text(name)
    with database.write() as connection:
        # Held until the end, so that the key is not revoked in between.
        service = select(keys.c.pk).where(keys.c.id == id, keys.c.user_pk.is_(None)).with_for_update()
        key_pk = connection.scalar(service)
        if key_pk is None:
            raise BadInputError(f"there is no service key {id!r}")
        counts: Counter[str] = Counter()
        user_pk = make_users(connection, {user: name}, counts)[user]
        if counts["users"]:
            connection.execute(insert(key_users), {"key_pk": key_pk, "user_pk": user_pk})
        elif not _granted(connection, key_pk, user_pk):
            raise UnknownUserError(user)  # which also takes back a new name


def revoke(database: Database, id: str) -> None:  # noqa: A002
    """See `Store.revoke_key`."""
    with database.write() as connection:
        if not connection.execute(delete(keys).where(keys.c.id == id)).rowcount:
            # Not quoted: it may be a secret, given by mistake.
            raise BadInputError("there is no key with this id: `penname keys list` shows their ids")


def _granted(connection: Connection, key_pk: int, user_pk: int) -> bool:
    grant = select(key_users.c.key_pk).where(key_users.c.key_pk == key_pk, key_users.c.user_pk == user_pk)
    return connection.scalar(grant) is not None


def _keys() -> Select[Any]:
    query = select(keys.c.id, keys.c.name, keys.c.made_at, users.c.id.label("user"))
    return query.outerjoin(users, users.c.pk == keys.c.user_pk)


def _key(row: Row[Any]) -> Key:
    return Key(row.id, row.user, row.name, cast(datetime, from_micros(row.made_at)))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
