"""The store as a whole: opening it, its users, and adding in bulk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, bindparam, func, select

from penname import paths
from penname.errors import (
    BadInputError,
    StoreBusyError,
    StoreFullError,
    StoreReadOnlyError,
    StoreSchemaError,
    UnknownUserError,
)
from penname.records import BadRow, Item, User, check_user_id
from penname.store import keys, migrate, trained
from penname.store.database import Database
from penname.store.erase import compact, unfinished
from penname.store.ingest import add_items
from penname.store.results import Added, Group, Key, Schema, TrainedFolder
from penname.store.rows import CHUNK, chunks
from penname.store.schema import HEAD, documents, users
from penname.store.user import UserStore

# Asked at every request: built once, which halves its cost.
_USER = select(users.c.pk, users.c.name).where(users.c.id == bindparam("id"))


class Store:
    """Users with their documents, profiles, preferences and requests, in SQLite or PostgreSQL.

    Args:
        location: a file (made if it is not there), or a URL (`sqlite:///FILE`,
            `postgresql://user@host/database`). None: PENNAME_DB, or `penname.db` in the user's data folder.
        busy_timeout: seconds that a call waits for other processes before it raises StoreBusyError.
        check: False opens without a look at the schema, for `schema` and `upgrade`.
        create: False raises StoreError where there is no SQLite file yet, as a mistyped name has none.

    Raises:
        StoreError: the location cannot be opened, or is no database of penname; its kinds say why.
        StoreSchemaError: made by a newer penname; or PostgreSQL, and `penname db upgrade` was not run.
        MissingPackageError: PostgreSQL without its driver.

    Attributes:
        url: where the store is, without passwords.
    """

    def __init__(
        self,
        location: str | Path | None = None,
        *,
        busy_timeout: float = 30.0,
        check: bool = True,
        create: bool = True,
    ) -> None:
        named = paths.default_db() if location is None else location
        self._database = Database(named, busy_timeout, create)
        self.url = self._database.shown
        if check:
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def close(self) -> None:
        """Closes the connections. A later call opens new ones."""
        self._database.close()

    # --- users

    def user(self, id: str) -> UserStore:  # noqa: A002
        """The part of the store that is this user's.

        Raises:
            UnknownUserError: there is no such user; the message offers the nearest.
            BadUserIdError: no id that a user could have.
        """
        with self._database.read() as connection:
            row = connection.execute(_USER, {"id": check_user_id(id)}).first()
            if row is None:
                raise UnknownUserError(id, _candidates(connection, id))
        return UserStore(self._database, row.pk, id, row.name)

    def add_user(self, id: str, name: str = "") -> UserStore:  # noqa: A002
        """The user's part of the store, made where there is none yet. A name, where given, replaces the old.

        Raises:
            BadUserIdError: the id is empty, too long or holds control characters.
        """
        self.add([User(id=id, name=name)])
        return self.user(id)

    def users(self) -> Iterator[User]:
        """All users, ordered by id; for administration. Memory stays constant, and no transaction is open
        between two of them: they may be changed or erased on the way."""
        after = ""
        while True:
            query = (
                select(users.c.id, users.c.name).where(users.c.id > after).order_by(users.c.id).limit(CHUNK)
            )
            with self._database.read() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            for row in rows:
                yield User.model_construct(id=row.id, name=row.name)
            after = rows[-1].id

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """The numbers (`UserStore.number`) of those of these users who are there: whether somebody who was
        there before still is, and is no namesake who came after an erase."""
        found: dict[str, int] = {}
        with self._database.read() as connection:
            for some in chunks(ids):
                query = select(users.c.id, users.c.pk).where(users.c.id.in_(some))
                found.update({row.id: row.pk for row in connection.execute(query)})
        return found

    @property
    def n_users(self) -> int:
        """The number of users."""
        with self._database.read() as connection:
            return connection.scalar(select(func.count()).select_from(users)) or 0

    def groups(self, min_documents: int = 1) -> list[Group]:
        """Users who wrote together, those with most documents first; for administration.

        They are found by documents that stand, with the same id and several authors, in several histories.
        Authors who are not in the store are not seen.

        Args:
            min_documents: groups with fewer documents together are left out.
        """
        query = (
            select(documents.c.id, users.c.id)
            .join(users, users.c.pk == documents.c.user_pk)
            .where(documents.c.n_authors > 1)
            .order_by(documents.c.id, documents.c.position, users.c.id)
        )
        together: Counter[tuple[str, ...]] = Counter()
        with self._database.read() as connection:
            rows = connection.execution_options(yield_per=CHUNK).execute(query)
            for _, authors in groupby(rows, itemgetter(0)):
                together[tuple(name for _, name in authors)] += 1
        found = [Group(names, n) for names, n in together.items() if len(names) > 1 and n >= min_documents]
        return sorted(found, key=lambda group: (-group.documents, group.users))

    def add(
        self,
        items: Iterable[Item],
        batch: int = CHUNK,
        on_bad: Callable[[BadRow], None] | None = None,
        on_batch: Callable[[Added], None] | None = None,
    ) -> Added:
        """Adds items of any users, who are made where they are new. Adding the same again changes nothing.

        Items are taken one by one and written in batches, each in one transaction; memory stays constant.

        Args:
            items: what a source yields.
            batch: items a transaction; long documents make it smaller.
            on_bad: is given each row that could not be read or kept; the rest goes on.
            on_batch: is given the counts so far after each batch. What it was told is safe from then on.

        Returns:
            The counts of all batches.
        """
        return add_items(self._database, items, batch, on_bad, on_batch)

    # --- what was trained from it

    def add_trained(self, path: Path | str, method: str) -> None:
        """Notes the folder of something that is trained from this store, so that an erase looks there too.

        Call it before the training reads the store. Noting a folder again only renews its method and time.

        Args:
            path: the folder; kept as an absolute path. It need not be there yet.
            method: which method trained it.
        """
        trained.add_folder(self._database, path, method)

    def trained(self) -> list[TrainedFolder]:
        """The folders that were noted, in the order in which they came, also those that are gone."""
        return trained.folders(self._database)

    # --- keys of the HTTP service

    def create_key(
        self, *, user: str | None = None, service: bool = False, users: Collection[str] = (), name: str = ""
    ) -> tuple[Key, str]:
        """Makes a key and returns it with its secret, which is kept nowhere and cannot be asked for again.

        Args:
            user: whose key it is, unless it is a service's.
            service: a service's key, which acts for `users` and for those that `add_key_user` adds.
            users: of a service's key: users of the store that it may act for from the start.
            name: for people to read; at most 200 characters.

        Raises:
            BadInputError: neither a user nor a service, or both; or the name is too long.
            UnknownUserError: a user who is not in the store.
        """
        if service == (user is not None) or (users and not service):
            raise BadInputError("a key is a user's (user=…) or a service's (service=True, users=[…])")
        for one in users if service else (user or "",):
            self.user(one)  # its error offers the nearest
        return keys.create(self._database, user, users, name)

    def key(self, secret: str) -> Key | None:
        """The key with this secret; None where there is none, or none any more."""
        return keys.find(self._database, secret)

    def has_key(self, id: str) -> bool:  # noqa: A002
        """Whether the key with this id is valid."""
        return keys.known(self._database, id)

    def keys(self) -> list[Key]:
        """All keys, oldest first; for administration."""
        return keys.listed(self._database)

    def key_users(
        self,
        id: str,  # noqa: A002
        among: Collection[str] | None = None,
        *,
        after: str | None = None,
        limit: int | None = None,
    ) -> tuple[str, ...]:
        """The users that the key with this id may act for, ordered by id; none where there is no such key.

        Args:
            id: the key's.
            among: only these are looked up, as a service may have very many.
            after: only those whose ids come after this one; it need be nobody's.
            limit: at most so many; no more are read.
        """
        return keys.users_of(self._database, id, among, after, limit)

    def add_key_user(self, id: str, user: str, name: str = "") -> UserStore:  # noqa: A002
        """The part of the store of a user that the service key with this id acts for; a new user is made.

        Args:
            id: the service key's.
            user: the user's id.
            name: replaces the user's name, where given.

        Raises:
            BadUserIdError: no id that a user could have.
            UnknownUserError: the user was there before, and is not the key's to act for.
            BadInputError: no such service key.
        """
        keys.add_user(self._database, id, user, name)
        return self.user(user)

    def revoke_key(self, id: str) -> None:  # noqa: A002
        """Deletes the key: requests with it are refused from now on. The users it acted for stay.

        Raises:
            BadInputError: there is no key with this id.
        """
        keys.revoke(self._database, id)

    # --- the database

    @property
    def schema(self) -> Schema:
        """The schema that the database has, and the newest that this version knows."""
        with self._database.read() as connection:
            return Schema(migrate.current(connection), HEAD)

    def upgrade(self) -> Schema:
        """Makes the tables or brings them up to date; several processes may try at once.

        Raises:
            StoreSchemaError: made by a newer penname, or the database is another program's.
        """
        migrate.upgrade(self._database)
        return self.schema

    def compact(self) -> None:
        """Rewrites the database so that no byte of deleted rows remains; needed where an erase says so.

        On SQLite it takes about twice the file's size of free disk; on PostgreSQL it locks the tables.

        Raises:
            StoreBusyError: another process read or wrote for longer than the time-out.
            StoreFullError: there is no room for the second copy.
        """
        compact(self._database)

    def _prepare(self) -> None:
        """Brings the schema up to date where that is ours to do, and finishes an erase that was cut off."""
        with self._database.read() as connection:
            version = migrate.current(connection)
            left = version == HEAD and unfinished(connection)
        if version != HEAD:
            migrate.refuse_newer(version, self._database.where)
            if not self._database.is_sqlite:
                state = f"has the schema {version}" if version else "has no tables of penname yet"
                raise StoreSchemaError(f"{self.url} {state} (needed: {HEAD}): run `penname db upgrade`")
            migrate.upgrade(self._database)
        elif left and self._database.is_sqlite:
            # Where it cannot be finished now, the store remembers it, and can be used meanwhile.
            with suppress(StoreBusyError, StoreReadOnlyError, StoreFullError):
                compact(self._database, patience=0)


def _candidates(connection: Connection, wanted: str) -> list[str]:
    """Ids that `wanted` may have meant: those that begin alike, and the first of all."""
    query = select(users.c.id).order_by(users.c.id).limit(CHUNK)
    alike = query.where(users.c.id >= wanted[:2], users.c.id < wanted[:2] + "\U0010ffff")
    return [*dict.fromkeys([*connection.scalars(alike), *connection.scalars(query)])]
