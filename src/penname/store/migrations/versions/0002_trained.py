"""The folders of what was trained from this store."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "trained",
        Column("pk", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        Column("path", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False, unique=True),
        Column("method", Text, nullable=False),
        Column("added_at", BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
