"""Keys of the HTTP service, and the users that service keys may act for."""

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Text

revision = "0003"
down_revision = "0002"

serial = BigInteger().with_variant(Integer, "sqlite")
key = Text().with_variant(Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "keys",
        Column("pk", serial, primary_key=True),
        Column("id", key, nullable=False, unique=True),
        Column("hash", key, nullable=False, unique=True),
        Column("user_pk", BigInteger, ForeignKey("users.pk", ondelete="CASCADE")),
        Column("name", Text, nullable=False),
        Column("made_at", BigInteger, nullable=False),
        Index("keys_by_user", "user_pk"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "key_users",
        Column("key_pk", BigInteger, ForeignKey("keys.pk", ondelete="CASCADE"), primary_key=True),
        Column("user_pk", BigInteger, ForeignKey("users.pk", ondelete="CASCADE"), primary_key=True),
        Index("key_users_by_user", "user_pk"),
    )
