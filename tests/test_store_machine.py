"""Random lives of three users in one store, beside a model of dicts: what one does, no other sees."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import stores
from penname.errors import BadInputError, UnknownUserError
from penname.records import Authored, Document, Preference, Profile, Request, User
from penname.store import Store

USERS = st.sampled_from(["a", "b", "'"])
NAMES = st.sampled_from(["1", "2", "3"])
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5).filter(
    str.strip
)
TIMES = st.none() | st.datetimes(timezones=st.just(UTC))


@dataclass
class Life:
    """What the store should hold of a user."""

    documents: dict[str, Document] = field(default_factory=dict)
    profiles: list[Profile] = field(default_factory=list)
    preferences: dict[str, Preference] = field(default_factory=dict)


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(stores.fresh("sqlite", self.folder))
        self.lives: dict[str, Life] = {}
        self.requests: dict[tuple[str, tuple[str, ...]], Request] = {}
        self.versions: dict[tuple[str, int], dict[str, Document]] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def life(self, user: str) -> Life:
        return self.lives.setdefault(user, Life())

    @rule(user=USERS, name=NAMES, text=TEXTS, when=TIMES)
    def add(self, user: str, name: str, text: str, when: datetime | None) -> None:
        document = Document(id=name, text=text, written_at=when)
        known = user in self.lives
        old = self.life(user).documents.get(name)
        added = self.store.add([Authored(user=user, document=document)])
        assert (added.users, added.bad) == (not known, 0)
        assert (added.new, added.same, added.changed) == (
            old is None,
            old == document,
            old is not None and old != document,
        )
        self.lives[user].documents[name] = document

    @rule(user=USERS, name=NAMES)
    def remove(self, user: str, name: str) -> None:
        there = user in self.lives and name in self.lives[user].documents
        try:
            self.store.user(user).remove(name)
            assert there
            del self.lives[user].documents[name]
        except (UnknownUserError, BadInputError):
            assert not there

    @rule(user=USERS, text=TEXTS)
    def profile(self, user: str, text: str) -> None:
        kept = self.store.add_user(user).add_profile(Profile(user=user, text=text))
        self.life(user).profiles.append(kept)
        assert kept.version == len(self.lives[user].profiles)

    @rule(user=USERS, name=NAMES, text=TEXTS)
    def prefer(self, user: str, name: str, text: str) -> None:
        preference = Preference(id=name, user=user, kind="rating", completion=text, rating=0.5)
        self.store.add_user(user).prefer(preference)
        self.life(user).preferences[name] = preference

    @rule(users=st.lists(USERS, min_size=1, max_size=3, unique=True), name=NAMES, text=TEXTS)
    def request(self, users: list[str], name: str, text: str) -> None:
        request = Request(id=name, input=text, users=tuple(users))
        self.store.add([request])
        for user in users:
            self.life(user)
        self.requests[name, request.users] = request

    @rule(user=USERS)
    def erase(self, user: str) -> None:
        try:
            erased = self.store.user(user).erase()
        except UnknownUserError:
            assert user not in self.lives
            return
        life = self.lives.pop(user)
        gone = [key for key in self.requests if user in key[1]]
        for key in gone:
            del self.requests[key]
        assert (erased.documents, erased.profiles, erased.preferences, erased.requests) == (
            len(life.documents),
            len(life.profiles),
            len(life.preferences),
            len(gone),
        )

    @invariant()
    def everyone_sees_their_own(self) -> None:
        assert list(self.store.users()) == [User(id=name) for name in sorted(self.lives)]
        undated = datetime.min.replace(tzinfo=UTC)
        for name, life in self.lives.items():
            user = self.store.user(name)
            ordered = sorted(
                life.documents.values(),
                key=lambda one: (one.written_at is not None, one.written_at or undated, one.id),
            )
            assert user.documents() == ordered
            assert user.count == len(ordered)
            assert user.profiles() == life.profiles
            assert user.profile() == (life.profiles[-1] if life.profiles else None)
            assert user.preferences() == list(life.preferences.values())
            assert user.requests() == [one for one in self.requests.values() if name in one.users]

    @invariant()
    def a_history_version_means_one_history(self) -> None:
        for name, life in self.lives.items():
            key = (name, self.store.user(name).history_version)
            assert self.versions.setdefault(key, dict(life.documents)) == life.documents


Lives.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLives = Lives.TestCase
