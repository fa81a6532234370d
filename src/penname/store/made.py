"""What was made of a user's documents, and can be made again: vectors and gists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, delete, insert, select

from penname.errors import BadInputError
from penname.records import check_text
from penname.store.rows import Values, check_key, chunks
from penname.store.schema import documents, gists, own_key, vectors

if TYPE_CHECKING:
    import numpy as np


def vectors_of(
    connection: Connection, user_pk: int, model: str, ids: Iterable[str]
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """See `UserStore.vectors`."""
    import numpy as np

    found = {}
    for some in chunks(own_key(user_pk, name) for name in ids):
        query = (
            select(documents.c.id, vectors.c.vector)
            .join(vectors, vectors.c.document_pk == documents.c.pk)
            .where(documents.c.key.in_(some), vectors.c.model == model)
        )
        for row in connection.execute(query):
            found[row.id] = np.frombuffer(row.vector, dtype="<f4").astype(np.float32)
    return found


def vector_rows(model: str, vectors_by_id: Mapping[str, Any]) -> dict[str, bytes]:
    """The vectors as they are kept, by document id. Raises as `UserStore.put_vectors` does."""
    check_key(model, "model name")
    return {name: _blob(name, vector) for name, vector in vectors_by_id.items()}


def put_vectors(connection: Connection, user_pk: int, model: str, blobs: Mapping[str, bytes]) -> None:
    """See `UserStore.put_vectors`."""
    for some in chunks(own_key(user_pk, name) for name in blobs):
        query = select(documents.c.id, documents.c.pk).where(documents.c.key.in_(some))
        pks = {row.id: row.pk for row in connection.execute(query)}
        old = (vectors.c.document_pk.in_(pks.values()), vectors.c.model == model)
        connection.execute(delete(vectors).where(*old))
        rows = [{"document_pk": pk, "model": model, "vector": blobs[name]} for name, pk in pks.items()]
        if rows:
            connection.execute(insert(vectors), rows)


def gists_of(connection: Connection, user_pk: int, keys: Iterable[str]) -> dict[str, str]:
    """See `UserStore.gists`."""
    found = {}
    for some in chunks(check_key(key, "key") for key in keys):
        query = select(gists.c.key, gists.c.text)
        query = query.where(gists.c.user_pk == user_pk, gists.c.key.in_(some))
        found.update({row.key: row.text for row in connection.execute(query)})
    return found


def gist_rows(user_pk: int, texts: Mapping[str, str]) -> list[Values]:
    """The gists as they are kept. Raises as `UserStore.put_gists` does."""
    return [
        {"user_pk": user_pk, "key": check_key(key, "key"), "text": check_text(text)}
        for key, text in texts.items()
    ]


def put_gists(connection: Connection, user_pk: int, rows: Sequence[Values]) -> None:
    """See `UserStore.put_gists`."""
    for some in chunks(rows):
        keys = [row["key"] for row in some]
        connection.execute(delete(gists).where(gists.c.user_pk == user_pk, gists.c.key.in_(keys)))
        connection.execute(insert(gists), some)


def _blob(name: str, vector: Any) -> bytes:
    import numpy as np

    array = np.asarray(vector, dtype="<f4")
    if array.ndim != 1:
        raise BadInputError(f"the vector of document {name!r} has {array.ndim} dimensions, not one")
    return array.tobytes()
