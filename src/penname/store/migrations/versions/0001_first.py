"""The first schema.

A migration is history: it spells its tables out, so that later changes of `schema.py` do not change it.
"""

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Text

revision = "0001"
down_revision = None

serial = BigInteger().with_variant(Integer, "sqlite")
key = Text().with_variant(Text(collation="C"), "postgresql")


def _user_key(primary_key: bool = False) -> Column[int]:
    users_pk = ForeignKey("users.pk", ondelete="CASCADE")
    return Column("user_pk", BigInteger, users_pk, primary_key=primary_key, nullable=False)


def upgrade() -> None:
    op.create_table(
        "users",
        Column("pk", serial, primary_key=True),
        Column("id", key, nullable=False, unique=True),
        Column("name", Text, nullable=False),
        Column("history_version", BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "documents",
        Column("pk", serial, primary_key=True),
        _user_key(),
        Column("key", key, nullable=False, unique=True),
        Column("id", key, nullable=False),
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
    op.create_table(
        "vectors",
        Column("document_pk", BigInteger, ForeignKey("documents.pk", ondelete="CASCADE"), primary_key=True),
        Column("model", key, primary_key=True),
        Column("vector", LargeBinary, nullable=False),
    )
    op.create_table(
        "gists",
        _user_key(primary_key=True),
        Column("key", key, primary_key=True),
        Column("text", Text, nullable=False),
    )
    op.create_table(
        "profiles",
        _user_key(primary_key=True),
        Column("version", Integer, primary_key=True, autoincrement=False),
        Column("fingerprint", key, nullable=False),
        Column("before", BigInteger),
        Column("content_hash", Text, nullable=False),
        Column("content", Text, nullable=False),
    )
    op.create_table(
        "preferences",
        Column("pk", serial, primary_key=True),
        _user_key(),
        Column("key", key, nullable=False, unique=True),
        Column("id", key, nullable=False),
        Column("content", Text, nullable=False),
        Index("preferences_by_user", "user_pk"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "requests",
        Column("pk", serial, primary_key=True),
        Column("key", key, nullable=False, unique=True),
        Column("content", Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "request_users",
        Column("request_pk", BigInteger, ForeignKey("requests.pk", ondelete="CASCADE"), primary_key=True),
        Column("position", Integer, primary_key=True, autoincrement=False),
        _user_key(),
        Index("request_users_by_user", "user_pk"),
    )
    op.create_table("erasures", Column("pk", serial, primary_key=True), sqlite_autoincrement=True)
