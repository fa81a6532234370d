"""Which ways of writing a run compares: methods, for one author or for all, each with its controls.

A control takes something personal away and leaves the rest: what a method gains under it as well is not
personalisation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from penname.errors import BadInputError, UnknownControlError, UnknownMethodError
from penname.evaluate.results import Arm
from penname.methods.stages import STAGES, reads_history, run_folder, stages
from penname.records import Document, Hit, Request
from penname.store import Store
from penname.tasks import Task
from penname.writer import Material

IN_CONTEXT = "in-context"
"""Examples of the task by other writers: what showing the task gains, and nobody's own material."""

CONTROLS = {
    "swap-user": "another user's material in the place of each author's, of about as long a history",
    "random-profile": "the profile of somebody drawn by chance; documents stay the author's own",
    "shuffle-authors": "the same authors in another order",
    "history=N": "the newest N documents of each author only",
    "swap-vector": "another user's trained vector; documents and profile stay the author's own",
}
USERS = {"one": "the first author who has a history", "all": "all authors who have one, in their order"}
T = TypeVar("T")

_DRAWN = 5  # strangers drawn, of whom the one with the most similar history stands in
_POOL = 20_000  # documents that examples by others are chosen from at most: bounds memory


def plan(methods: Sequence[str], users: Sequence[str], controls: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of a run: the first method is the baseline; each arm's controls follow it.

    An arm is called after its method, with " · one" for the first author alone and then the control.

    Raises:
        UnknownMethodError, UnknownRetrieverError, UnknownControlError: a name that is not there.
        BadInputError: no method, or a control that nothing in the run is subject to.
    """
    if not methods:
        raise BadInputError("no method to evaluate: name one with --method")
    for control in controls:
        check_control(control)
    for who in users or ("",):
        if who not in USERS:
            raise BadInputError(f"users {who!r}: give {' or '.join(USERS)}")
    arms: list[Arm] = []
    for method in dict.fromkeys(methods):
        if not personal(method):
            arms.append(Arm(method, method))
            continue
        for who in dict.fromkeys(users):
            arm = Arm(method if who == "all" else f"{method} · {who}", method, who)
            arms.append(arm)
            arms += [
                Arm(f"{arm.name} · {control}", method, who, control, arm.name)
                for control in dict.fromkeys(controls)
                if _subject(arm, control)
            ]
    for control in controls:
        if not any(arm.control == control for arm in arms):
            raise BadInputError(f"the control {control!r} changes nothing here: {_WHY_NOT[_kind(control)]}")
    return tuple(arms)


_WHY_NOT = {
    "swap-user": "no method of this run uses anything of a user",
    "history=N": "no method of this run uses anything of a user's history",
    "random-profile": "no method of this run uses a profile",
    "shuffle-authors": "no method of this run writes from histories for all authors (--users all)",
    "swap-vector": "no method of this run uses a trained vector",
}


def check_control(control: str) -> None:
    """Refuse what is no control.

    Raises:
        UnknownControlError: no such control.
        BadInputError: `history=` without a number of 1 or more.
    """
    if _kind(control) not in CONTROLS:
        raise UnknownControlError(control, CONTROLS)
    if control.startswith("history="):
        number = control.removeprefix("history=")
        if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) >= 1):
            raise BadInputError(f"control {control!r}: give a number of documents, such as history=5")


def personal(method: str) -> bool:
    """Whether the method uses anything of a user. Raises as `stages` and `has_users` do."""
    try:
        return method != IN_CONTEXT and (
            reads_history(method) or shows_profiles(method) or has_vectors(method)
        )
    except UnknownMethodError as error:
        raise UnknownMethodError(error.name, [*STAGES, IN_CONTEXT]) from None


def shows_profiles(method: str) -> bool:
    """Whether a profile decides what the method writes. Raises as `stages` does."""
    return not stages(method).keys().isdisjoint(("step-back", "pit"))


def has_vectors(method: str) -> bool:
    """Whether the method uses trained vectors of users: not so with a run that was trained without users.

    Raises:
        TrainedError: the method's run is not there.
    """
    found = stages(method)
    if "p-rm" in found or "p-dpo" not in found:
        return "p-rm" in found
    from penname.methods.prlhf.method import has_users

    return has_users(run_folder("p-dpo", found["p-dpo"]))


def _kind(control: str) -> str:
    return "history=N" if control.startswith("history=") else control


def _subject(arm: Arm, control: str) -> bool:
    return {
        "swap-user": True,
        "history=N": reads_history(arm.method),
        "random-profile": shows_profiles(arm.method),
        "shuffle-authors": arm.users == "all" and reads_history(arm.method),
        "swap-vector": has_vectors(arm.method),
    }[_kind(control)]


@dataclass(frozen=True)
class _Dates:
    """When a user's documents were written, by id, newest first; undated ones last."""

    by_id: dict[str, datetime | None]

    def usable(self, before: datetime | None, exclude: Collection[str]) -> list[str]:
        return [
            name
            for name, when in self.by_id.items()
            if name not in exclude and (before is None or (when is not None and when < before))
        ]


class Cast:
    """Who stands in for whom: chosen by lot from the users of a run's examples, the same with each seed.

    Args:
        examples: of the whole run: the users of those of a task may stand in for one another.
        k: examples by others that `in-context` shows.
    """

    def __init__(self, store: Store, examples: Sequence[Request], k: int, seed: int) -> None:
        self._store = store
        self._users: dict[str, dict[str, None]] = {}  # by task, in the order of the examples
        for one in examples:
            self._users.setdefault(one.task, {}).update(dict.fromkeys(one.users))
        self._k = k
        self._seed = seed
        self._dates: dict[str, _Dates] = {}
        self._pools: dict[str, list[tuple[str, Document]]] = {}
        # By method: both may read the card of a trained run, which is not to be done for every example.
        self._personal: dict[str, bool] = {}
        self._reads: dict[str, bool] = {}

    def history(self, user: str, request: Request) -> list[str]:
        """The ids of the user's documents that may be used for the request, newest first."""
        return self._dated(user).usable(request.before, request.exclude)

    def _dated(self, user: str) -> _Dates:
        if user not in self._dates:
            documents = reversed(self._store.user(user).documents())
            self._dates[user] = _Dates({one.id: one.written_at for one in documents})
        return self._dates[user]

    def authors(self, request: Request) -> tuple[str, ...]:
        """Those of the request's users who have a history."""
        return tuple(user for user in request.users if self.history(user, request))

    def asked(
        self, arm: Arm, request: Request, task: Task, knows: Callable[[str], bool] = lambda _: False
    ) -> tuple[Request, Material] | None:
        """What the arm makes of a request; None where the arm has nothing to say of it.

        That is so where a method that reads histories finds none, nobody can stand in for the authors, there
        is only one author to be put in another order, or none with a trained vector to be swapped.

        Args:
            knows: whether the arm's trained run has a vector of a user's own.
        """
        if arm.method == IN_CONTEXT:
            examples = self._examples(request, task)
            return (request, Material(examples=tuple(examples))) if examples else None
        if arm.method not in self._personal:
            self._personal[arm.method] = personal(arm.method)
            self._reads[arm.method] = reads_history(arm.method)
        if not self._personal[arm.method]:
            return request, Material()
        authors = self.authors(request) if self._reads[arm.method] else request.users
        authors = authors[: 1 if arm.users == "one" else None]
        if not authors:
            return None
        own = request.model_copy(update={"users": authors})
        if not arm.control:
            return own, Material()
        return self._controlled(arm, own, request, knows)

    def _controlled(
        self, arm: Arm, own: Request, request: Request, knows: Callable[[str], bool]
    ) -> tuple[Request, Material] | None:
        """What the arm's control makes of the request for the arm's own authors."""
        kind, authors = _kind(arm.control), own.users
        if kind == "history=N":
            return _cut(own, [self.history(user, own) for user in authors], arm.control), Material()
        chance = random.Random(f"{self._seed} {arm.control} {request.id}")  # noqa: S311 - a lot, no secret
        if kind == "shuffle-authors":
            if len(authors) < 2:
                return None
            return request.model_copy(update={"users": _reordered(authors, chance)}), Material()
        if kind == "swap-vector":
            known = any(map(knows, authors))
            strangers = self._strangers(request, authors, chance, knows) if known else None
            return (own, Material(vectors_of=strangers)) if strangers else None
        reads = self._reads[arm.method]

        def usable(user: str) -> bool:
            return not reads or bool(self.history(user, request))

        strangers = self._strangers(request, authors, chance, usable, alike=kind == "swap-user")
        if strangers is None:
            return None
        if kind == "swap-user":
            return request.model_copy(update={"users": strangers}), Material()
        return own, Material(profiles_of=strangers)

    def _strangers(
        self,
        request: Request,
        authors: Sequence[str],
        chance: random.Random,
        usable: Callable[[str], bool],
        *,
        alike: bool = False,
    ) -> tuple[str, ...] | None:
        """A usable user with no part in the text for each author; None where there are too few."""
        everybody = list(self._users[request.task])
        found: list[str] = []
        for author in authors:
            size = len(self.history(author, request))
            drawn: list[str] = []
            for user in _lot(everybody, chance):
                if user not in request.users and user not in found and usable(user):
                    drawn.append(user)
                if len(drawn) == (_DRAWN if alike else 1):
                    break
            if not drawn:
                return None
            found.append(min(drawn, key=lambda user: abs(len(self.history(user, request)) - size)))
        return tuple(found)

    def _examples(self, request: Request, task: Task) -> list[Hit]:
        """The newest k examples of the task by other writers, strictly earlier; by lot without a date."""
        usable = (
            (user, one)
            for user, one in self._in_order(request, self._pool(task))
            if one.id not in request.exclude
            and (request.before is None or (one.written_at is not None and one.written_at < request.before))
            and task.example(one) is not None
            and not any(user == author or self._wrote(author, one) for author in request.users)
        )
        hits: dict[str, Hit] = {}
        for user, one in usable:
            hits.setdefault(one.id, Hit(user=user, document=one, score=0.0))
            if len(hits) == self._k:
                break
        return list(hits.values())

    def _wrote(self, user: str, document: Document) -> bool:
        """Whether the document of another is the user's as well: they wrote it together."""
        if document.id not in self._dated(user).by_id:
            return False
        return self._store.user(user).document(document.id).text == document.text

    def _in_order(
        self, request: Request, pool: Sequence[tuple[str, Document]]
    ) -> Iterable[tuple[str, Document]]:
        if request.before is not None:
            return pool
        return _lot(pool, random.Random(f"{self._seed} {request.id}"))  # noqa: S311 - a lot, no secret

    def _pool(self, task: Task) -> list[tuple[str, Document]]:
        """Documents of the store's users, the newest first; of the task's users alone where each user of a
        benchmark has one task (LaMP, LongLaMP)."""
        name = task.name if task.item else ""
        if name not in self._pools:
            users = self._users[name] if name else [user.id for user in self._store.users()]
            self._pools[name] = self._newest(users)
        return self._pools[name]

    def _newest(self, users: Iterable[str]) -> list[tuple[str, Document]]:
        found: list[tuple[str, Document]] = []
        for user in users:
            found += [(user, document) for document in self._store.user(user).documents()]
            if len(found) >= _POOL:
                break
        dated = [(user, one) for user, one in found if one.written_at is not None]
        undated = [(user, one) for user, one in found if one.written_at is None]
        dated.sort(key=lambda pair: (pair[1].written_at, pair[1].id), reverse=True)
        return dated + undated


def _cut(request: Request, histories: Sequence[Sequence[str]], control: str) -> Request:
    """The request without all but the newest documents of each author; what one author may show, all may."""
    number = int(control.removeprefix("history="))
    kept = {name for history in histories for name in history[:number]}
    older = {name for history in histories for name in history[number:]} - kept
    return request.model_copy(update={"exclude": (*request.exclude, *sorted(older))})


def _reordered(authors: Sequence[str], chance: random.Random) -> tuple[str, ...]:
    while (order := tuple(chance.sample(authors, len(authors)))) == tuple(authors):
        pass
    return order


def _lot(population: Sequence[T], chance: random.Random) -> Iterator[T]:
    """All of `population` in an order of chance, drawn as far as it is asked for."""
    seen: set[int] = set()
    while len(seen) < len(population):
        place = chance.randrange(len(population))
        if place not in seen:
            seen.add(place)
            yield population[place]
