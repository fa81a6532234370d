"""Taking items in: one batch, one transaction, whatever mixture of kinds and users it holds."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from penname.errors import BadInputError
from penname.records import Authored, BadRow, Item, Preference, Profile, Request, User
from penname.store.database import Database
from penname.store.results import Added
from penname.store.rows import (
    Values,
    chunks,
    document_values,
    preference_values,
    profile_values,
    request_values,
)
from penname.store.schema import (
    documents,
    own_key,
    preferences,
    profiles,
    request_users,
    requests,
    users,
    vectors,
)

MAX_BATCH_CHARACTERS = 16_000_000  # of texts: a batch of long documents stays small in memory too

Counts = Counter[str]
Keys = dict[str, int]  # users' ids to their keys


@dataclass
class Batch:
    """Checked rows that wait to be written together, each with its user (requests: their users)."""

    users: dict[str, str] = field(default_factory=dict)  # id to name; "" leaves a name as it is
    documents: list[tuple[str, Values]] = field(default_factory=list)
    profiles: list[tuple[str, int, Values]] = field(default_factory=list)  # with the version, 0: the next
    preferences: list[tuple[str, Values]] = field(default_factory=list)
    requests: list[tuple[tuple[str, ...], Values]] = field(default_factory=list)
    size: int = 0
    characters: int = 0

    def take(self, item: User | Authored | Profile | Preference | Request) -> None:
        """Raises BadInputError where the item cannot be kept; the batch is then as before."""
        names: tuple[str, ...]
        match item:
            case User():
                names, characters = (item.id,), 0
            case Authored():
                names, characters = (item.user,), len(item.document.text)
                self.documents.append((item.user, document_values(item.document)))
            case Profile():
                names, characters = (item.user,), len(item.text)
                self.profiles.append((item.user, item.version, profile_values(item)))
            case Preference():
                names, characters = (item.user,), len(item.prompt)
                self.preferences.append((item.user, preference_values(item)))
            case Request():
                names, characters = item.users, len(item.input) + len(item.gold or "")
                self.requests.append((item.users, request_values(item)))
            case _:
                assert_never(item)
        for name in names:
            self.users.setdefault(name, "")
        if isinstance(item, User) and item.name:
            self.users[item.id] = item.name
        self.size += 1
        self.characters += characters


def add_items(
    database: Database,
    items: Iterable[Item],
    batch: int,
    on_bad: Callable[[BadRow], None] | None,
    on_batch: Callable[[Added], None] | None,
) -> Added:
    """See `Store.add`."""
    total = Added()
    waiting = Batch()
    bad = 0

    def flush() -> None:
        nonlocal total, waiting, bad
        added = Added(bad=bad)
        if waiting.size:
            with database.write() as connection:
                counts: Counts = Counter()
                keys = make_users(connection, waiting.users, counts)
                write(connection, keys, waiting, counts)
            added += Added(**counts)
        total += added
        waiting, bad = Batch(), 0
        if on_batch is not None:
            on_batch(total)

    for item in items:
        row = item if isinstance(item, BadRow) else _try(waiting, item)
        if row is not None:
            bad += 1
            if on_bad is not None:
                on_bad(row)
        if waiting.size >= batch or waiting.characters >= MAX_BATCH_CHARACTERS:
            flush()
    if waiting.size or bad:
        flush()
    return total


def write(connection: Connection, keys: Keys, batch: Batch, counts: Counts) -> None:
    """Writes a batch whose users' rows are there and locked (`keys`), and counts what that did."""
    _add_documents(connection, keys, batch.documents, counts)
    _add_profiles(connection, keys, batch.profiles, counts)
    _add_preferences(connection, keys, batch.preferences, counts)
    _add_requests(connection, keys, batch.requests, counts)


def lock_users(connection: Connection, ids: Iterable[str]) -> Keys:
    """The keys of those users that are there. Until the transaction ends nobody else writes to them: on
    PostgreSQL by locks, taken in one order so that no two writers wait for each other."""
    found: Keys = {}
    for some in chunks(sorted(ids)):
        query = select(users.c.id, users.c.pk).where(users.c.id.in_(some)).order_by(users.c.id)
        found.update({row.id: row.pk for row in connection.execute(query.with_for_update())})
    return found


def changed(connection: Connection, user_pks: Iterable[int]) -> None:
    """Bumps the history versions: to be called where, and only where, documents have changed."""
    for some in chunks(sorted(user_pks)):
        statement = update(users).where(users.c.pk.in_(some))
        connection.execute(statement.values(history_version=users.c.history_version + 1))


def _try(batch: Batch, item: User | Authored | Profile | Preference | Request) -> BadRow | None:
    try:
        batch.take(item)
    except BadInputError as error:
        user = getattr(item, "user", None) or next(iter(getattr(item, "users", ())), "")
        return BadRow(file=f"{type(item).__name__.lower()} of {user!r}", line=0, why=str(error))
    return None


def make_users(connection: Connection, names: dict[str, str], counts: Counts) -> Keys:
    """The keys of these users, made where they are new (which is counted) and locked as by `lock_users`."""
    keys: Keys = {}
    while missing := names.keys() - keys.keys():  # again only where another process erases one meanwhile
        there = _existing(connection, missing)
        fresh = sorted(missing - there)
        if fresh:
            counts["users"] += _insert_users(connection, [(name, names[name]) for name in fresh])
        keys.update(lock_users(connection, missing))
    named = [{"key": keys[name], "name": text} for name, text in names.items() if text]
    if named:
        statement = update(users).where(users.c.pk == bindparam("key"), users.c.name != bindparam("name"))
        connection.execute(statement.values(name=bindparam("name")), named)
    return keys


def _existing(connection: Connection, ids: Iterable[str]) -> set[str]:
    return {
        name
        for some in chunks(ids)
        for name in connection.scalars(select(users.c.id).where(users.c.id.in_(some)))
    }


def _insert_users(connection: Connection, fresh: Sequence[tuple[str, str]]) -> int:
    """How many were made; on PostgreSQL another process may make the same user at the same moment."""
    rows = [
        {"id": name, "name": text, "history_version": secrets.randbits(48)} for name, text in fresh
    ]  # 48 bits: leaves room to count, and is exact as a JSON number
    statement = insert(users)
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        statement = postgresql.insert(users).on_conflict_do_nothing()
    return len(connection.execute(statement.returning(users.c.pk), rows).all())


def _add_documents(
    connection: Connection, keys: Keys, rows: Sequence[tuple[str, Values]], counts: Counts
) -> None:
    wanted = [{**row, "user_pk": keys[user], "key": own_key(keys[user], row["id"])} for user, row in rows]
    kept: dict[str, int] = {}
    hashes: dict[str, str] = {}
    for some in chunks(row["key"] for row in wanted):
        query = select(documents.c.key, documents.c.pk, documents.c.content_hash)
        for found in connection.execute(query.where(documents.c.key.in_(some))):
            kept[found.key] = found.pk
            hashes[found.key] = found.content_hash
    fresh: dict[str, Values] = {}
    replaced: dict[str, Values] = {}
    for row in wanted:  # in turn: one batch may hold a document twice
        key = row["key"]
        if hashes.get(key) == row["content_hash"]:
            counts["same"] += 1
            continue
        counts["changed" if key in hashes else "new"] += 1
        hashes[key] = row["content_hash"]
        (replaced if key in kept else fresh)[key] = row
    if fresh:
        connection.execute(insert(documents), list(fresh.values()))
    if replaced:
        statement = update(documents).where(documents.c.key == bindparam("at"))
        connection.execute(statement, [{**row, "at": key} for key, row in replaced.items()])
        for pks in chunks(kept[key] for key in replaced):
            connection.execute(delete(vectors).where(vectors.c.document_pk.in_(pks)))
    changed(connection, {row["user_pk"] for row in (*fresh.values(), *replaced.values())})


def _add_profiles(
    connection: Connection, keys: Keys, rows: Sequence[tuple[str, int, Values]], counts: Counts
) -> None:
    """Profiles keep their versions, so that an export comes back as it was. Where another profile has the
    version already, a new one gets the next, and one that is there under any version stays as it is."""
    known: dict[str, dict[int, str]] = {}
    for user, version, row in rows:
        if user not in known:
            query = select(profiles.c.version, profiles.c.content_hash)
            found = connection.execute(query.where(profiles.c.user_pk == keys[user]))
            known[user] = {one.version: one.content_hash for one in found}
        theirs = known[user]
        if not version or version in theirs:
            if row["content_hash"] in theirs.values():
                continue
            version = max(theirs, default=0) + 1
        theirs[version] = row["content_hash"]
        connection.execute(insert(profiles), {**row, "user_pk": keys[user], "version": version})
        counts["profiles"] += 1


def _add_preferences(
    connection: Connection, keys: Keys, rows: Sequence[tuple[str, Values]], counts: Counts
) -> None:
    wanted = [{**row, "user_pk": keys[user], "key": own_key(keys[user], row["id"])} for user, row in rows]
    fresh, replaced = _sorted_out(connection, preferences, wanted)
    if fresh:
        connection.execute(insert(preferences), fresh)
    counts["preferences"] += len(fresh) + len(replaced)


def _add_requests(
    connection: Connection, keys: Keys, rows: Sequence[tuple[tuple[str, ...], Values]], counts: Counts
) -> None:
    fresh, replaced = _sorted_out(connection, requests, [row for _, row in rows])
    if fresh:
        named = {row["key"]: names for names, row in rows}
        made = connection.execute(insert(requests).returning(requests.c.pk, requests.c.key), fresh)
        links = [
            {"request_pk": one.pk, "position": position, "user_pk": keys[name]}
            for one in made
            for position, name in enumerate(named[one.key])
        ]
        connection.execute(insert(request_users), links)
    counts["requests"] += len(fresh) + len(replaced)


def _sorted_out(
    connection: Connection, table: Table, rows: Sequence[Values]
) -> tuple[list[Values], list[Values]]:
    """Those of `rows` (with `key` and `content`; the last of each key) that are new, and those whose content
    differs, which are written here."""
    last = {row["key"]: row for row in rows}
    known: dict[str, str] = {}
    for some in chunks(last):
        query = select(table.c.key, table.c.content).where(table.c.key.in_(some))
        known.update({found.key: found.content for found in connection.execute(query)})
    fresh = [row for key, row in last.items() if key not in known]
    replaced = [row for key, row in last.items() if known.get(key, row["content"]) != row["content"]]
    if replaced:
        statement = update(table).where(table.c.key == bindparam("at"))
        values = [{"at": row["key"], "content": row["content"]} for row in replaced]
        connection.execute(statement, values)
    return fresh, replaced
