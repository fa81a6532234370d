"""Keys of the HTTP service: what the store keeps of them, for whom they act, and how they end."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import stores
from penname.errors import BadInputError, BadUserIdError, UnknownUserError
from penname.records import Document, User
from penname.store import Key, Store


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with Store(stores.fresh(request.param, tmp_path)) as opened:
        opened.add([User(id="ann"), User(id="bob")])
        yield opened


def test_a_users_key(store: Store) -> None:
    before = datetime.now(UTC)
    made, secret = store.create_key(user="ann", name="laptop")
    assert secret.startswith("pn-")
    assert len(secret) == 3 + 43  # 32 bytes
    assert (made.user, made.service, made.name) == ("ann", False, "laptop")
    assert before <= made.made_at <= datetime.now(UTC)
    assert store.key(secret) == made
    assert store.key_users(made.id) == ("ann",)
    assert store.key_users(made.id, ["bob"]) == ()


def test_a_services_key_acts_for_those_that_it_was_given(store: Store) -> None:
    made, secret = store.create_key(service=True, users=["bob", "ann", "bob"])
    assert (made.user, made.service) == (None, True)
    assert store.key(secret) == made
    assert store.key_users(made.id) == ("ann", "bob")
    assert store.key_users(made.id, ["bob", "carl", "'; DROP TABLE keys"]) == ("bob",)
    assert store.key_users(made.id, []) == ()


def test_a_service_adds_users_of_its_own_and_takes_none_of_others(store: Store) -> None:
    shop, _ = store.create_key(service=True, users=["bob"])
    other, _ = store.create_key(service=True)
    carl = store.add_key_user(shop.id, "carl", "Carl")
    assert (carl.id, carl.name) == ("carl", "Carl")
    assert store.add_key_user(shop.id, "carl").name == "Carl"  # again: as it is
    assert store.add_key_user(shop.id, "bob", "Bob").name == "Bob"
    for taken in ("ann", "carl"):
        with pytest.raises(UnknownUserError):
            store.add_key_user(other.id, taken, "Mine")
    assert store.key_users(shop.id) == ("bob", "carl")
    assert store.key_users(other.id) == ()
    assert [(user.id, user.name) for user in store.users()] == [("ann", ""), ("bob", "Bob"), ("carl", "Carl")]


def test_only_a_services_key_adds_users(store: Store) -> None:
    own, _ = store.create_key(user="ann")
    for wrong in (own.id, "key-none"):
        with pytest.raises(BadInputError, match="no service key"):
            store.add_key_user(wrong, "carl")
    shop, _ = store.create_key(service=True)
    for bad in ("", " ", "a\0"):
        with pytest.raises(BadUserIdError):
            store.add_key_user(shop.id, bad)
    assert store.n_users == 2


def test_keys_are_listed_in_the_order_in_which_they_came_without_secrets(store: Store) -> None:
    made = [store.create_key(user="bob"), store.create_key(service=True), store.create_key(user="ann")]
    assert store.keys() == [key for key, _ in made]
    assert not any(secret in repr(store.keys()) for _, secret in made)
    assert len({key.id for key, _ in made} | {secret for _, secret in made}) == 6


def test_a_revoked_key_is_no_key(store: Store) -> None:
    made, secret = store.create_key(service=True, users=["ann"])
    _, kept = store.create_key(user="ann")
    assert store.has_key(made.id)
    store.revoke_key(made.id)
    assert not store.has_key(made.id)
    assert store.key(secret) is None
    assert store.key_users(made.id) == ()
    assert store.key(kept) is not None
    assert store.user("ann").count == 0
    with pytest.raises(BadInputError, match="no key with this id: `penname keys list`"):
        store.revoke_key(made.id)


@pytest.mark.parametrize("secret", ["", "pn-", "ann", "pn-\0", "pn-\udc80", "' OR 1=1 --", "p" * 100_000])
def test_what_is_no_secret_finds_nothing(store: Store, secret: str) -> None:
    made, right = store.create_key(user="ann")
    assert store.key(secret) is None
    assert store.key(made.id) is None
    assert store.key(right.upper()) is None
    assert store.key(hashlib.sha256(right.encode()).hexdigest()) is None


def test_an_erase_ends_the_users_keys_and_takes_the_user_from_services(store: Store) -> None:
    _, first = store.create_key(user="ann")
    _, second = store.create_key(user="ann")
    _, bobs = store.create_key(user="bob")
    shop, secret = store.create_key(service=True, users=["ann", "bob"])
    assert store.user("ann").erase().keys == 2
    store.add_user("ann")  # a namesake gets none of it
    assert (store.key(first), store.key(second)) == (None, None)
    assert store.key(bobs) is not None
    assert store.key(secret) == shop
    assert store.key_users(shop.id) == ("bob",)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"user": "ann", "service": True},
        {"user": "ann", "users": ["bob"]},
        {"users": ["ann"]},
        {"user": "ann", "name": "n" * 201},
        {"user": "ann", "name": "\0"},
        {"user": ""},
        {"service": True, "users": ["ann", "\0"]},
    ],
)
def test_a_key_is_one_users_or_a_services(store: Store, wrong: dict[str, object]) -> None:
    with pytest.raises(BadInputError):
        store.create_key(**wrong)  # type: ignore[arg-type]
    assert store.keys() == []


def test_a_key_for_a_mistyped_user_is_not_made(store: Store) -> None:
    with pytest.raises(UnknownUserError, match="did you mean 'ann'"):
        store.create_key(user="anna")
    with pytest.raises(UnknownUserError, match="did you mean 'bob'"):
        store.create_key(service=True, users=["ann", "bobb"])
    assert store.keys() == []


def test_the_secret_is_nowhere_in_the_files(tmp_path: Path) -> None:
    with Store(stores.fresh("sqlite", tmp_path)) as store:
        store.add_user("ann").add([Document(text="words that are kept")])
        _, secret = store.create_key(user="ann")
        _, shop = store.create_key(service=True, users=["ann"])
        assert store.key(secret)
        assert store.key(shop)
        files = {
            file.name: file.read_bytes() for file in tmp_path.iterdir()
        }  # while it is open, with its log
    assert "store.db-wal" in files
    assert any(b"words that are kept" in held for held in files.values())
    for one in (secret, shop):
        assert not any(one.encode() in held or one[3:].encode() in held for held in files.values())


def test_the_hash_of_a_revoked_or_erased_key_is_gone_from_the_files(tmp_path: Path) -> None:
    with Store(stores.fresh("sqlite", tmp_path)) as store:
        store.add_user("ann")
        revoked, first = store.create_key(service=True, users=["ann"])
        _, second = store.create_key(user="ann")
        store.revoke_key(revoked.id)
        store.user("ann").erase()
        files = [file.read_bytes() for file in tmp_path.iterdir()]
    for secret in (first, second):
        hashed = hashlib.sha256(secret.encode()).hexdigest().encode()
        assert not any(hashed in held for held in files)


def test_errors_name_no_secret(store: Store) -> None:
    _, secret = store.create_key(user="ann")
    with pytest.raises(BadInputError) as caught:
        store.revoke_key(secret)
    assert secret not in str(caught.value)


def test_threads_that_add_the_same_user_at_once_let_one_service_have_it(store: Store) -> None:
    keys = [store.create_key(service=True)[0] for _ in range(4)]

    def take(key: Key) -> bool:
        with suppress(UnknownUserError):
            return store.add_key_user(key.id, "carl").id == "carl"
        return False

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(take, keys * 3))
    [owner] = {key.id for key, had in zip(keys * 3, got, strict=True) if had}
    assert [key.id for key in keys if store.key_users(key.id)] == [owner]
    assert got.count(True) == 3


USERS = st.sampled_from(["a", "b", "'"])
PLACES = st.integers(0, 5)


class Lives(RuleBasedStateMachine):
    """Random lives of keys beside a model of dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(stores.fresh("sqlite", self.folder))
        self.users: set[str] = set()
        self.secrets: dict[str, Key] = {}
        self.allowed: dict[str, set[str]] = {}  # by the key's id
        self.ended: set[str] = set()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(user=USERS)
    def add_user(self, user: str) -> None:
        self.store.add_user(user)
        self.users.add(user)

    @rule(user=USERS)
    def create_own(self, user: str) -> None:
        try:
            made, secret = self.store.create_key(user=user)
        except UnknownUserError:
            assert user not in self.users
            return
        self.secrets[secret], self.allowed[made.id] = made, {user}

    @rule(users=st.sets(USERS))
    def create_service(self, users: set[str]) -> None:
        try:
            made, secret = self.store.create_key(service=True, users=sorted(users))
        except UnknownUserError:
            assert not users <= self.users
            return
        self.secrets[secret], self.allowed[made.id] = made, set(users)

    @rule(place=PLACES, user=USERS)
    def add_through(self, place: int, user: str) -> None:
        services = [key for key in self.secrets.values() if key.service]
        if place >= len(services):
            return
        mine = self.allowed[services[place].id]
        try:
            self.store.add_key_user(services[place].id, user)
        except UnknownUserError:
            assert user in self.users - mine
            return
        assert user in mine or user not in self.users
        self.users.add(user)
        mine.add(user)

    @rule(place=PLACES)
    def revoke(self, place: int) -> None:
        if place < len(self.secrets):
            self._end(list(self.secrets)[place])
            self.store.revoke_key(self.last.id)

    @rule(user=USERS)
    def erase(self, user: str) -> None:
        if user not in self.users:
            return
        own = [secret for secret, key in self.secrets.items() if key.user == user]
        assert self.store.user(user).erase().keys == len(own)
        for secret in own:
            self._end(secret)
        for mine in self.allowed.values():
            mine.discard(user)
        self.users.discard(user)

    def _end(self, secret: str) -> None:
        self.last = self.secrets.pop(secret)
        del self.allowed[self.last.id]
        self.ended.add(secret)

    @invariant()
    def each_key_acts_for_its_users_and_no_other(self) -> None:
        assert self.store.keys() == list(self.secrets.values())
        for secret, key in self.secrets.items():
            assert self.store.key(secret) == key
            assert self.store.key_users(key.id) == tuple(sorted(self.allowed[key.id]))
        assert all(self.store.key(secret) is None for secret in self.ended)


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=15, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_services_users_are_read_page_by_page(store: Store) -> None:
    names = sorted(["ann", "Bob", "élan", "'", "🦊"])
    store.add([User(id=name) for name in names])
    service, _ = store.create_key(service=True, users=names)
    own, _ = store.create_key(user="ann")
    assert store.key_users(service.id, limit=2) == tuple(names[:2])
    assert store.key_users(service.id, after=names[1], limit=2) == tuple(names[2:4])
    assert store.key_users(service.id, ["ann", "bob"], after="'", limit=5) == ("ann",)
    assert store.key_users(service.id, after="Nobody") == tuple(names[2:])
    assert (store.key_users(own.id, limit=1), store.key_users(own.id, after="ann")) == (("ann",), ())
