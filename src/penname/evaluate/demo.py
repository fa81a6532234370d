"""What `penname demo` compares: a few held-out requests of each user and group, written in a few ways.

The ways are `ARMS`: without anything of a user, for the first author, and for all authors; and the last two
with somebody else's material, the control. What the control gains too is not personalisation.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from penname.errors import BadInputError
from penname.evaluate.arms import plan
from penname.evaluate.benchmarks import Loaded, load
from penname.records import Request, digest
from penname.store import Store
from penname.writer import DEFAULT_METHOD

ARMS = plan(("none", DEFAULT_METHOD), ("one", "all"), ("swap-user",))
LEAST = 3  # documents that a user must have beside the held-out one
PER_USER = 2  # requests of each user or group: what two cores do in a few minutes
DEMO_K = 3  # documents of each author in a prompt, and
DEMO_TOKENS = 160  # tokens of a draft at most: for the same reason


def load_demo(store: Store, task: str, limit: int, *, sample: bool) -> Loaded:
    """The held-out requests (see `held_out`) as `evaluate` takes them.

    With `sample` the built-in sample is imported first. Raises as `held_out` does.
    """
    if sample:
        return replace(load_sample(store), requests=tuple(held_out(store, task, limit)))
    requests = held_out(store, task, limit)
    version = digest([request.model_dump(mode="json") for request in requests])[:12]
    return Loaded("store", version, "", tuple(requests))


def load_sample(store: Store) -> Loaded:
    """Import the built-in sample into `store`; what is there already is left as it is."""
    return load("sample", store)


def held_out(store: Store, task: str, limit: int) -> list[Request]:
    """Requests with a known real text: two at most of each of `limit` users and `limit` groups.

    Those that were imported, if there are any (those of groups that one of these users leads); else one for
    each user with enough documents, and for each group that wrote together: the latest titled document, to be
    written anew from its title by those who wrote it, and from nothing that is not earlier.

    Raises:
        BadInputError: there is no such request.
    """
    found: dict[tuple[str, ...], list[Request]] = {}
    for user in store.users():
        for request in store.user(user.id).requests():
            if request.gold and request.users[0] == user.id:
                found.setdefault(request.users, []).append(request)
        if sum(len(users) == 1 for users in found) >= limit:
            break
    if not found:
        found = {request.users: [request] for request in _latest(store, task, limit)}
    if not found:
        raise BadInputError(
            f"there is nothing to hold out: no requests with a real text, and no user with more than {LEAST} "
            "titled documents; import some with `penname import`"
        )
    alone = [requests for users, requests in found.items() if len(users) == 1]
    together = [requests for users, requests in found.items() if len(users) > 1]
    return [request for requests in alone[:limit] + together[:limit] for request in requests[:PER_USER]]


def _latest(store: Store, task: str, limit: int) -> list[Request]:
    """The held-out requests that are made of documents: first of single users, then of groups."""
    alone = (_hold_out(store, (user.id,), task) for user in store.users())
    together = (_hold_out(store, group.users, task) for group in store.groups())
    return [
        *islice((request for request in alone if request), limit),
        *islice((request for request in together if request), limit),
    ]


def _hold_out(store: Store, users: tuple[str, ...], task: str) -> Request | None:
    """The latest titled document that exactly these users wrote, as a request; None without a history."""
    histories = [store.user(user).documents() for user in users]
    shared = set.intersection(*({document.id for document in history} for history in histories))
    theirs = [d for d in histories[0] if d.id in shared and d.title and d.n_authors == len(users)]
    if not theirs:
        return None
    latest = theirs[-1]
    request = Request(
        id=digest([latest.id, users]),
        task=task,
        input=latest.title,
        users=users,
        before=latest.written_at,
        exclude=(latest.id,),
        gold=latest.text,
    )
    earlier = store.user(users[0]).documents(request.before, request.exclude)
    return request if len(earlier) >= LEAST else None
