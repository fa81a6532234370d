"""Where users live: one class over SQLAlchemy, SQLite by default, PostgreSQL by URL.

    with Store("penname.db") as store:                      # or "postgresql://host/database"
        store.add(items)                                    # in bulk, for any users
        alice = store.user("alice")                         # sees alice and nobody else
        alice.add([Document(text="…")])
        alice.documents(before=moment)
        alice.erase()

**What is kept.** Documents with their vectors, gists of histories, profiles, preferences and requests, all by
user. A document of several authors is kept once for each, with the author's place and the number of authors,
never the others' names: so erasing and exporting a user touches that user only. A request names its users; it
goes when any of them is erased.

**Isolation.** Everything of a user is reached through `store.user(id)`, whose queries all carry that user's
key. Only `users()`, `groups()` and `add()` of `Store` walk over several, for administration.

**Durability.** What a call has returned, or `on_batch` has reported, survives a kill and a power cut: SQLite
runs in WAL mode with full synchronous. One call is one transaction; a bulk add is one a batch.

**Several processes** may use one store at once. SQLite lets one write at a time; the others wait for
`busy_timeout` seconds, then get a StoreBusyError. On PostgreSQL writers wait only for writers of the same
user. A Store may be shared between threads. Keep a SQLite file on a local disk, not on a network file system.

**Erasing.** `UserStore.erase` deletes the rows and returns their counts. On SQLite it then rewrites the file
and empties the log, so that no byte of them remains in `FILE`, `FILE-wal` or `FILE-shm`; this takes time and
free disk in proportion to the file. Where that cannot be finished (another process is reading, the disk is
full, a kill) the store remembers it: the next opening tries again, and so does `Store.compact`. On PostgreSQL
`Store.compact` rewrites the tables (VACUUM FULL, which locks them); the server's own log, replicas and
backups are its administrator's. Documents that are removed or replaced one by one are overwritten in place;
copies in free pages go with the next erase or compact.

**What was trained** from a store is noted in it by folder (`add_trained`, `trained`), so that an erase knows
where else the user has left something. The store itself opens no such folder.

**Keys** of the HTTP service (`create_key`, `key`, `revoke_key`) stand by the SHA-256 of their secret, which
is told once and kept nowhere. A user's keys go with the user, as do services' rights to act for the user.

**Schema.** Numbered Alembic migrations in `migrations/versions`. A SQLite file is made and brought up to date
on opening; on PostgreSQL that is `penname db upgrade`'s work (`Store(url, check=False).upgrade()`). A store
made by a newer penname is refused.

**Where.** A path, or a URL: `sqlite:///FILE`, `postgresql://user:password@host/database` (options as
SQLAlchemy has them). A new SQLite file can be read by its owner only. PostgreSQL needs
`pip install 'penname[postgresql]'`, and a database or a schema (`?options=-csearch_path%3DNAME`) of its own.
"""

from penname.store.results import Added, Erased, Group, Key, Schema, Span, TrainedFolder
from penname.store.store import Store
from penname.store.user import UserStore

__all__ = ["Added", "Erased", "Group", "Key", "Schema", "Span", "Store", "TrainedFolder", "UserStore"]
