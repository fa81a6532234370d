"""One user's part of the store. Every query here carries the user's key; none can see another user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, bindparam, delete, func, insert, select

from penname.errors import BadInputError, UnknownUserError
from penname.records import Authored, Document, Preference, Profile, Request, User, check_text
from penname.store import made, reading
from penname.store.database import Database
from penname.store.erase import delete_user, scrub
from penname.store.ingest import MAX_BATCH_CHARACTERS, Batch, changed, lock_users, write
from penname.store.results import Added, Erased, Span
from penname.store.rows import document_of, exported, preference_of, profile_of, profile_values
from penname.store.schema import documents, from_micros, gists, own_key, profiles, to_micros, users

if TYPE_CHECKING:
    import numpy as np

BATCH = 1000

# Asked at every request: built once, which halves their cost.
_VERSION = select(users.c.history_version).where(users.c.pk == bindparam("pk"))
_ANY = select(documents.c.id).where(documents.c.user_pk == bindparam("pk")).limit(1)
_PROFILES = reading.described(bindparam("pk")).order_by(profiles.c.version.desc()).limit(1)
_LATEST = _PROFILES.where(profiles.c.before.is_(None))
_MADE = _PROFILES.where(profiles.c.fingerprint == bindparam("fingerprint"))

T = TypeVar("T")


class UserStore:
    """Everything of one user; made by `Store.user` and `Store.add_user`.

    A UserStore outlives no erase: its writes then raise UnknownUserError and its reads find nothing, also
    where a user of the same id was added since.

    Attributes:
        id: the user's.
        number: of the user in this store. It is given once: whoever gets the id after an erase has another.
        store_url: of the store that holds the user, its password hidden.
        name: the user's name when this object was made.
    """

    def __init__(self, database: Database, pk: int, id: str, name: str) -> None:  # noqa: A002
        self.id = id
        self.number = pk
        self.name = name
        self.store_url = database.shown
        self._database = database
        self._pk = pk

    def __repr__(self) -> str:
        return f"UserStore({self.id!r})"

    # --- documents

    def add(self, documents: Iterable[Document]) -> Added:
        """Adds documents; one that is there under the same id is replaced where its content differs.

        A batch of 1,000 is one transaction.

        Raises:
            BadInputError: a document that cannot be kept; those of earlier batches are.
        """
        total = Added()
        batch = Batch()
        for document in documents:
            batch.take(Authored(user=self.id, document=document))
            if batch.size >= BATCH or batch.characters >= MAX_BATCH_CHARACTERS:
                total += self._write(batch)
                batch = Batch()
        return total + self._write(batch)

    def documents(
        self,
        before: datetime | None = None,
        exclude: Collection[str] = (),
        *,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Document]:
        """The history, oldest first (undated ones first of all; at equal times by id).

        Args:
            before: only what was written strictly before this moment; undated documents are left out.
                A naive time is read as UTC.
            exclude: ids that are left out.
            after: only those that come after the document with this id.
            limit: at most so many; no more are read.

        Raises:
            BadInputError: the user has no document `after`.
        """
        query = self._history(before)
        left_out = frozenset(exclude)
        if limit is not None:
            query = query.limit(limit + len(left_out))
        with self._database.read() as connection:
            if after is not None:
                query = query.where(self._behind(connection, after))
            found = [document_of(row) for row in connection.execute(query) if row.id not in left_out]
        return found[:limit]

    def contents(self, before: datetime | None = None, exclude: Collection[str] = ()) -> dict[str, str]:
        """The content hash of each of `documents(before, exclude)`, by id and in order; reads no text."""
        query = self._history(before).with_only_columns(documents.c.id, documents.c.content_hash)
        left_out = frozenset(exclude)
        with self._database.read() as connection:
            rows = connection.execute(query)
            return {row.id: row.content_hash for row in rows if row.id not in left_out}

    def has_documents(self, before: datetime | None = None, exclude: Collection[str] = ()) -> bool:
        """Whether `documents(before, exclude)` would hold any; reads no text."""
        with self._database.read() as connection:
            if before is None and not exclude:
                return connection.scalar(_ANY, {"pk": self._pk}) is not None
            query = select(documents.c.id).where(documents.c.user_pk == self._pk)
            if before is not None:
                query = query.where(documents.c.written_at < to_micros(before))
            left_out = frozenset(exclude)
            ids = connection.scalars(query.limit(len(left_out) + 1))
            return any(id not in left_out for id in ids)  # noqa: A001

    def document(self, id: str) -> Document:  # noqa: A002
        """The document with this id.

        Raises:
            BadInputError: the user has none.
        """
        with self._database.read() as connection:
            row = connection.execute(
                reading.history(self._pk).where(documents.c.key == own_key(self._pk, check_text(id)))
            ).first()
        if row is None:
            raise self._no_document(id)
        return document_of(row)

    def remove(self, id: str) -> None:  # noqa: A002
        """Deletes a document, its vectors, and all gists of the user, which may tell of it.

        Raises:
            BadInputError: the user has no such document.
        """
        with self._writing() as connection:
            mine = documents.c.key == own_key(self._pk, check_text(id))
            if not connection.execute(delete(documents).where(mine)).rowcount:
                raise self._no_document(id)
            connection.execute(delete(gists).where(gists.c.user_pk == self._pk))
            changed(connection, [self._pk])

    @property
    def count(self) -> int:
        """The number of documents."""
        query = select(func.count()).select_from(documents).where(documents.c.user_pk == self._pk)
        return self._scalar(query) or 0

    @property
    def span(self) -> Span:
        """How many documents there are, and the dates of the first and last dated one; reads no text."""
        date = documents.c.written_at
        query = select(func.count(), func.min(date), func.max(date)).where(documents.c.user_pk == self._pk)
        with self._database.read() as connection:
            number, first, last = connection.execute(query).one()
        return Span(number, from_micros(first), from_micros(last))

    @property
    def history_version(self) -> int:
        """A number that grows with every change of the documents and is never used again for another history
        of the same user id, so that whatever was made of the documents can be kept under it.

        Raises:
            UnknownUserError: the user was erased.
        """
        with self._database.read() as connection:
            version = self._version(connection)
        if version is None:
            raise UnknownUserError(self.id)
        return version

    # --- what was made of the documents

    def vectors(self, model: str, ids: Iterable[str]) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """The vectors (float32, one-dimensional) that `model` made of these documents, if any."""
        with self._database.read() as connection:
            return made.vectors_of(connection, self._pk, model, ids)

    def put_vectors(
        self, model: str, vectors_by_id: Mapping[str, Any], *, history_version: int | None = None
    ) -> None:
        """Keeps vectors of documents, replacing those of the same model. Unknown ids are passed over: their
        documents were removed meanwhile.

        Args:
            model: the embedder's fingerprint.
            vectors_by_id: one-dimensional arrays, kept as float32, by document id.
            history_version: `history_version` as it was before the documents were read. Where it has moved
                since, nothing is kept, so that no vector of an old content stands for the new one.

        Raises:
            BadInputError: an array is not one-dimensional.
        """
        rows = made.vector_rows(model, vectors_by_id)
        with self._writing() as connection:
            if history_version in (None, self._version(connection)):
                made.put_vectors(connection, self._pk, model, rows)

    def gists(self, keys: Iterable[str]) -> dict[str, str]:
        """The gists kept under these keys, as far as there are any."""
        with self._database.read() as connection:
            return made.gists_of(connection, self._pk, keys)

    def put_gists(self, texts: Mapping[str, str]) -> None:
        """Keeps gists of parts of the history, all or none; a key should be a hash of what it was made of."""
        rows = made.gist_rows(self._pk, texts)
        with self._writing() as connection:
            made.put_gists(connection, self._pk, rows)

    # --- profiles

    def profile(self, fingerprint: str | None = None) -> Profile | None:
        """The newest profile of the whole history (without `before`), or the newest with this fingerprint.

        None where there is none.
        """
        with self._database.read() as connection:
            if fingerprint is None:
                row = connection.execute(_LATEST, {"pk": self._pk}).first()
            else:
                row = connection.execute(_MADE, {"pk": self._pk, "fingerprint": fingerprint}).first()
        return None if row is None else profile_of(self.id, row.version, row.content)

    def profiles(self) -> list[Profile]:
        """All versions, oldest first."""
        with self._database.read() as connection:
            return reading.all_profiles(connection, self._pk, self.id)

    def add_profile(self, profile: Profile) -> Profile:
        """Keeps a profile as the next version and returns it with that version.

        Raises:
            BadInputError: it is another user's.
        """
        self._check_mine(profile.user, "profile")
        row = profile_values(profile)
        with self._writing() as connection:
            query = select(func.max(profiles.c.version)).where(profiles.c.user_pk == self._pk)
            version = (connection.scalar(query) or 0) + 1
            connection.execute(insert(profiles), {**row, "user_pk": self._pk, "version": version})
        return profile.model_copy(update={"version": version})

    # --- preferences and requests

    def prefer(self, preference: Preference) -> Preference:
        """Keeps a preference; one of the same id is replaced.

        Raises:
            BadInputError: it is another user's.
        """
        self._check_mine(preference.user, "preference")
        batch = Batch()
        batch.take(preference)
        self._write(batch)
        return preference

    def preferences(self, *, after: str | None = None, limit: int | None = None) -> list[Preference]:
        """The preferences, in the order in which they came.

        Args:
            after: only those that came after the one with this id.
            limit: at most so many; no more are read.

        Raises:
            BadInputError: the user has no preference `after`.
        """
        query = reading.preferred(self._pk).limit(limit)
        with self._database.read() as connection:
            if after is not None:
                later = reading.later(connection, self._pk, check_text(after))
                if later is None:
                    raise BadInputError(f"user {self.id!r} has no preference {after!r}")
                query = query.where(later)
            return [preference_of(self.id, content) for content in connection.scalars(query)]

    def add_request(self, request: Request) -> Request:
        """Keeps a request; one of the same id, task and users is replaced.

        Raises:
            BadInputError: it does not name this user.
            UnknownUserError: one of the others that it names is not in the store.
        """
        if self.id not in request.users:
            raise BadInputError(f"the request {request.id!r} does not name the user {self.id!r}")
        batch = Batch()
        batch.take(request)
        self._write(batch)
        return request

    def requests(self) -> list[Request]:
        """The requests that name this user, in the order in which they came."""
        with self._database.read() as connection:
            return reading.all_requests(connection, self._pk)

    # --- everything

    def export(self) -> Iterator[dict[str, object]]:
        """Everything of the user, as of one moment, in rows of JSON values that an import reads back.

        Each row has its kind under "penname" ("user", "document", "profile", "preference", "request") and the
        record's fields beside it; documents also "user". Vectors and gists can be made again and are not
        exported. A request that names several users goes with the first of them.

        Raises:
            UnknownUserError: the user was erased.
        """
        with self._database.read() as connection:
            name = connection.scalar(select(users.c.name).where(users.c.pk == self._pk))
            if name is None:
                raise UnknownUserError(self.id)
            rows = reading.everything(connection, self._pk, User(id=self.id, name=name))
        for kind, record in rows:
            whose = {"user": self.id} if kind == "document" else {}
            yield exported(kind, record, **whose)

    def erase(self) -> Erased:
        """Deletes the user and everything of the user, for good; requests that name the user go whole.

        On SQLite the file is rewritten afterwards, so that its bytes go too. If the error says that the rows
        are gone but the bytes are not, `Store.compact` finishes the work, as does the next opening.

        Raises:
            UnknownUserError: erased already.
            StoreBusyError: another process reads or writes for longer than the time-out.
        """
        with self._writing() as connection:
            erased = delete_user(connection, self._pk)
        if self._database.is_sqlite:
            scrub(self._database, self.id)
        return erased

    # --- inside

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A write transaction that holds this user's row."""
        with self._database.write() as connection:
            if lock_users(connection, [self.id]).get(self.id) != self._pk:
                raise UnknownUserError(self.id)
            yield connection

    def _write(self, batch: Batch) -> Added:
        """Writes a batch of this user's, and of users who must be there."""
        counts: Counter[str] = Counter()
        with self._database.write() as connection:
            keys = lock_users(connection, {self.id, *batch.users})
            absent = next((name for name in (self.id, *batch.users) if name not in keys), None)
            if absent is not None or keys[self.id] != self._pk:
                raise UnknownUserError(absent or self.id)
            write(connection, keys, batch, counts)
        return Added(**counts)

    def _check_mine(self, user: str, what: str) -> None:
        if user != self.id:
            raise BadInputError(f"the {what} is of the user {user!r}, not of {self.id!r}")

    def _no_document(self, name: str) -> BadInputError:
        return BadInputError(f"user {self.id!r} has no document {name!r}")

    def _history(self, before: datetime | None) -> Select[Any]:
        query = reading.history(self._pk)
        return query if before is None else query.where(documents.c.written_at < to_micros(before))

    def _version(self, connection: Connection) -> int | None:
        return connection.scalar(_VERSION, {"pk": self._pk})

    def _scalar(self, query: Select[T]) -> T | None:
        with self._database.read() as connection:
            return connection.scalar(query)

    def _behind(self, connection: Connection, id: str) -> ColumnElement[bool]:  # noqa: A002
        found = reading.behind(connection, self._pk, check_text(id))
        if found is None:
            raise self._no_document(id)
        return found
