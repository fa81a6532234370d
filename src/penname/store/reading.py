"""Lists of what is one user's: their queries, where in them a page begins, and all of it for an export.

Every query here is given the user's key, and finds nothing of anybody else's.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, Select, and_, or_, select

from penname.records import Profile, Record, Request, User
from penname.store.rows import document_of, preference_of, profile_of, request_of
from penname.store.schema import documents, own_key, preferences, profiles, request_users, requests, users


def history(user_pk: int) -> Select[Any]:
    """The documents, oldest first, those without a date before all others."""
    order = (documents.c.written_at.asc().nulls_first(), documents.c.id)
    return select(documents).where(documents.c.user_pk == user_pk).order_by(*order)


def behind(connection: Connection, user_pk: int, id: str) -> ColumnElement[bool] | None:  # noqa: A002
    """What holds for documents that come after this one in `history`; None where the user has it not."""
    query = select(documents.c.written_at).where(documents.c.key == own_key(user_pk, id))
    row = connection.execute(query).first()
    if row is None:
        return None
    date = documents.c.written_at
    if row.written_at is None:
        return or_(date.is_not(None), documents.c.id > id)
    # The first half says what the second one does, in a way that an index can be searched for.
    return and_(date >= row.written_at, or_(date > row.written_at, documents.c.id > id))


def described(user_pk: int | BindParameter[int]) -> Select[int, str]:
    """The profiles, in no order yet."""
    query = select(profiles.c.version, profiles.c.content)
    return query.where(profiles.c.user_pk == user_pk)


def all_profiles(connection: Connection, user_pk: int, user: str) -> list[Profile]:
    """All versions, oldest first."""
    rows = connection.execute(described(user_pk).order_by(profiles.c.version))
    return [profile_of(user, row.version, row.content) for row in rows]


def preferred(user_pk: int) -> Select[str]:
    """The preferences, in the order in which they came."""
    query = select(preferences.c.content).where(preferences.c.user_pk == user_pk)
    return query.order_by(preferences.c.pk)


def later(connection: Connection, user_pk: int, id: str) -> ColumnElement[bool] | None:  # noqa: A002
    """What holds for preferences that came after this one; None where the user has it not."""
    query = select(preferences.c.pk).where(preferences.c.key == own_key(user_pk, id))
    pk = connection.scalar(query)
    return None if pk is None else preferences.c.pk > pk


def all_requests(connection: Connection, user_pk: int) -> list[Request]:
    """The requests that name the user, in the order in which they came."""
    mine = select(request_users.c.request_pk).where(request_users.c.user_pk == user_pk)
    query = (
        select(requests.c.pk, requests.c.content, users.c.id)
        .join(request_users, request_users.c.request_pk == requests.c.pk)
        .join(users, users.c.pk == request_users.c.user_pk)
        .where(requests.c.pk.in_(mine))
        .order_by(requests.c.pk, request_users.c.position)
    )
    named: dict[int, tuple[str, list[str]]] = {}
    for row in connection.execute(query):
        named.setdefault(row.pk, (row.content, []))[1].append(row.id)
    return [request_of(names, content) for content, names in named.values()]


def everything(connection: Connection, user_pk: int, user: User) -> list[tuple[str, Record]]:
    """What `UserStore.export` gives, each with its kind. A request is its first user's."""
    written = [document_of(row) for row in connection.execute(history(user_pk))]
    liked = [preference_of(user.id, content) for content in connection.scalars(preferred(user_pk))]
    asked = [one for one in all_requests(connection, user_pk) if one.users[0] == user.id]
    return [
        ("user", user),
        *(("document", one) for one in written),
        *(("profile", one) for one in all_profiles(connection, user_pk, user.id)),
        *(("preference", one) for one in liked),
        *(("request", one) for one in asked),
    ]
