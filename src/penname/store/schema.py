"""The tables, as they are after the newest migration. Changing them means adding a migration.

Times are integer microseconds since 1970 (UTC; negative before), so that both databases give back what they
were given. Ids compare by code point on both (collation "C" on PostgreSQL; SQLite does so by itself).
A document's or preference's `key` is its user's and its id (`own_key`): one column, because SQLite searches
no index for a list of pairs. Records are kept as the JSON text that pydantic writes; columns of their own are
what queries need.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

HEAD = "0003"
VERSION_TABLE = "penname_schema"  # Alembic's table under a name that no other program uses

metadata = MetaData()

# SQLite counts rows by itself only where the type is spelled INTEGER.
Serial = BigInteger().with_variant(Integer, "sqlite")
Key = Text().with_variant(Text(collation="C"), "postgresql")


def _user_key(primary_key: bool = False) -> Column[int]:
    users_pk = ForeignKey("users.pk", ondelete="CASCADE")
    return Column("user_pk", BigInteger, users_pk, primary_key=primary_key, nullable=False)


users = Table(
    "users",
    metadata,
    Column("pk", Serial, primary_key=True),
    Column("id", Key, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    # Begins at random: a cache keyed by (user, history_version) never serves an erased namesake.
    Column("history_version", BigInteger, nullable=False),
    sqlite_autoincrement=True,  # keys are never given twice, so an old UserStore never sees a new user
)

documents = Table(
    "documents",
    metadata,
    Column("pk", Serial, primary_key=True),
    _user_key(),
    Column("key", Key, nullable=False, unique=True),
    Column("id", Key, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("written_at", BigInteger),
    Column("position", Integer, nullable=False),
    Column("n_authors", Integer, nullable=False),
    Column("fields", Text, nullable=False),
    Index("documents_by_time", "user_pk", "written_at"),
    sqlite_autoincrement=True,
)

vectors = Table(
    "vectors",
    metadata,
    Column("document_pk", BigInteger, ForeignKey("documents.pk", ondelete="CASCADE"), primary_key=True),
    Column("model", Key, primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # float32, little-endian
)

gists = Table(
    "gists",
    metadata,
    _user_key(primary_key=True),
    Column("key", Key, primary_key=True),
    Column("text", Text, nullable=False),
)

profiles = Table(
    "profiles",
    metadata,
    _user_key(primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("fingerprint", Key, nullable=False),
    Column("before", BigInteger),
    Column("content_hash", Text, nullable=False),  # over all but user and version
    Column("content", Text, nullable=False),
)

preferences = Table(
    "preferences",
    metadata,
    Column("pk", Serial, primary_key=True),
    _user_key(),
    Column("key", Key, nullable=False, unique=True),
    Column("id", Key, nullable=False),
    Column("content", Text, nullable=False),
    Index("preferences_by_user", "user_pk"),
    sqlite_autoincrement=True,
)

# A request is told apart by its id, task and users together: data sets number theirs from 0, and no user's
# request may replace another's.
requests = Table(
    "requests",
    metadata,
    Column("pk", Serial, primary_key=True),
    Column("key", Key, nullable=False, unique=True),
    Column("content", Text, nullable=False),
    sqlite_autoincrement=True,
)

request_users = Table(
    "request_users",
    metadata,
    Column("request_pk", BigInteger, ForeignKey("requests.pk", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    _user_key(),
    Index("request_users_by_user", "user_pk"),
)

# Erases whose rows are deleted and whose bytes may still lie in the SQLite file. It names nobody.
erasures = Table(
    "erasures",
    metadata,
    Column("pk", Serial, primary_key=True),
    sqlite_autoincrement=True,
)

# Folders of what was trained from this store, on the machine that trained it. They name nobody; each has an
# index of its own that tells whose data it saw.
trained = Table(
    "trained",
    metadata,
    Column("pk", Serial, primary_key=True),
    Column("path", Key, nullable=False, unique=True),
    Column("method", Text, nullable=False),
    Column("added_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

# Keys of the HTTP service. A secret is kept as its SHA-256 only; without a user it is a service's key.
keys = Table(
    "keys",
    metadata,
    Column("pk", Serial, primary_key=True),
    Column("id", Key, nullable=False, unique=True),
    Column("hash", Key, nullable=False, unique=True),
    Column("user_pk", BigInteger, ForeignKey("users.pk", ondelete="CASCADE")),
    Column("name", Text, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Index("keys_by_user", "user_pk"),
    sqlite_autoincrement=True,
)

# The users that a service's key may act for.
key_users = Table(
    "key_users",
    metadata,
    Column("key_pk", BigInteger, ForeignKey("keys.pk", ondelete="CASCADE"), primary_key=True),
    _user_key(primary_key=True),
    Index("key_users_by_user", "user_pk"),
)


def own_key(user_pk: int, id: str) -> str:  # noqa: A002
    """What tells a user's document or preference from all others."""
    return f"{user_pk}/{id}"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(moment: datetime | None) -> int | None:
    """`moment` as kept in the tables; a naive one is read as UTC."""
    if moment is None:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _MICROSECOND


def from_micros(micros: int | None) -> datetime | None:
    """The aware UTC datetime that `to_micros` was given."""
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)
