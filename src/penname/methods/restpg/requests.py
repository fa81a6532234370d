"""What a store holds that a model may learn to write: requests of a task, each with its real text."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from penname.errors import BadInputError
from penname.records import Document, Request, digest
from penname.store import Store
from penname.tasks import Task

_FIRST = datetime.min.replace(tzinfo=UTC)  # where what has no date stands among what has


def requests_to_learn(
    store: Store,
    task: Task,
    *,
    least: int = 1,
    before: datetime | None = None,
    users: Sequence[str] | None = None,
) -> tuple[list[Request], dict[str, int]]:
    """Requests of a task with their real texts, by date and id, and how many were left out by reason.

    The imported requests of the task that have a real text; where there are none, one for each document that
    shows the task done, to be written anew by its authors from what they wrote before it. A document that
    stands in several authors' histories is one request.

    Args:
        least: documents that show the task done, and that may be used for the request (earlier ones; for a
            request without a date all others), which at least one of its authors must have.
        before: only what is dated earlier: the split. A naive time is read as UTC.
        users: only these users' requests and documents; the others are as if they were not in the store.

    Raises:
        UnknownUserError: one of `users` is not in the store.
        BadInputError: the task's requests cannot be made of documents, and none were imported.
    """
    if before is not None and before.tzinfo is None:
        before = before.replace(tzinfo=UTC)
    names = list(dict.fromkeys(users)) if users is not None else [user.id for user in store.users()]
    left_out: Counter[str] = Counter()
    histories = _Histories(store, task, {})
    found = _imported(store, task, names, left_out)
    if not found:
        if task.item:
            raise BadInputError(
                f"the requests of {task.name} hold their own instruction and cannot be made of documents: "
                "import some with `penname import`"
            )
        found = _made(histories, names, left_out)
    kept = []
    for request in found:
        if before is not None and request.before is None:
            why = "requests left out: without a date"
        elif before is not None and request.before is not None and request.before >= before:
            why = f"requests left out: dated {before.date()} or later"
        elif max(histories.usable(user, request) for user in request.users) < least:
            why = f"requests left out: no author has {least} documents to learn from"
        else:
            kept.append(request)
            continue
        left_out[why] += 1
    kept.sort(key=lambda one: (one.before or _FIRST, one.id))
    return kept, dict(left_out)


def _imported(store: Store, task: Task, names: Sequence[str], left_out: Counter[str]) -> list[Request]:
    """The imported requests of the task with a real text, each once."""
    allowed = set(names)
    asked = {
        (request.id, request.users): request
        for name in names
        for request in store.user(name).requests()
        if request.task == task.name
    }
    found: dict[str, Request] = {}
    for request in asked.values():
        if request.gold is None or not request.gold.strip():
            why = "requests left out: without a real text"
        elif not allowed.issuperset(request.users):
            why = "requests left out: also of users who are not to be learnt from"
        elif request.id in found:
            why = "requests left out: a second one of the same id"
        else:
            found[request.id] = request
            continue
        left_out[why] += 1
    return list(found.values())


@dataclass(frozen=True)
class _Shown:
    """The documents of one user that show the task done."""

    whens: dict[str, datetime | None]  # by id
    dates: list[datetime]  # of those that have one, ascending


@dataclass(frozen=True)
class _Histories:
    """What may be used of each user's history; nothing of a document is kept but id and date."""

    store: Store
    task: Task
    read: dict[str, _Shown]

    def usable(self, user: str, request: Request) -> int:
        """How many documents of `user` show the task done and may be used for `request`."""
        if user not in self.read:
            self.keep(user, self.store.user(user).documents())
        shown, before = self.read[user], request.before
        out = [shown.whens[name] for name in set(request.exclude) if name in shown.whens]
        if before is None:
            return len(shown.whens) - len(out)
        return bisect_left(shown.dates, before) - sum(when is not None and when < before for when in out)

    def keep(self, user: str, documents: Sequence[Document]) -> None:
        """Note what `user` wrote."""
        whens = {one.id: one.written_at for one in documents if self.task.example(one)}
        self.read[user] = _Shown(whens, sorted(when for when in whens.values() if when is not None))


def _made(histories: _Histories, names: Sequence[str], left_out: Counter[str]) -> list[Request]:
    """A request for each document that shows the task done."""
    authors: dict[str, list[tuple[int, str]]] = {}
    first: dict[str, Document] = {}
    for key, name, document in _documents(histories, names):
        first.setdefault(key, document)
        authors.setdefault(key, []).append((document.position, name))
    found = []
    for key, document in first.items():
        example = histories.task.example(document)
        if example is None:
            left_out["documents left out: they do not show the task done"] += 1
        elif not example[0].strip():
            left_out["documents left out: they do not show what was asked"] += 1
        else:
            users = tuple(name for _, name in sorted(authors[key]))
            request = Request(
                id=digest([document.id, users]),
                task=histories.task.name,
                input=example[0],
                users=users,
                before=document.written_at,
                exclude=(document.id,),
                gold=example[1],
            )
            found.append(request)
    return found


def _documents(histories: _Histories, names: Sequence[str]) -> Iterator[tuple[str, str, Document]]:
    """(key, user, document): the same key for what several users wrote together.

    Ids are the users' own: two documents of one id are the same where both have several authors, and all of
    their content but whose place it is, in common. Else one user's text would be put to another's name.
    """
    for name in names:
        documents = histories.store.user(name).documents()
        histories.keep(name, documents)
        for one in documents:
            if one.n_authors > 1:
                same = one.model_copy(update={"position": 0}).content_hash
                yield digest([one.id, same]), name, one
            else:
                yield digest([one.id, "of", name]), name, one
