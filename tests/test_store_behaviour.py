"""What the store promises on every database: SQLite and a real PostgreSQL server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stores
from penname.errors import (
    BadInputError,
    BadUserIdError,
    StoreFullError,
    UnknownUserError,
)
from penname.records import (
    Authored,
    BadRow,
    Document,
    Item,
    Preference,
    Profile,
    Request,
    StyleFacts,
    User,
)
from penname.sources import read
from penname.store import Added, Erased, Group, Schema, Store
from penname.store.schema import HEAD

ODD_IDS = [
    "../../etc/passwd",
    "o'brien",
    '"; DROP TABLE users;--',
    "'; DROP TABLE users;--",
    "a\\b",
    "ünï",
    "🦊",
]
ODD_IDS += ["%", "_", "a b", "alice@example.org", "x" * 256, "NULL", "0", "🦊" * 256]


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return stores.fresh(request.param, tmp_path)


@pytest.fixture
def store(location: str) -> Iterator[Store]:
    with Store(location, busy_timeout=5) as store:
        yield store


def doc(name: str, text: str = "words", **more: Any) -> Document:
    return Document(id=name, text=text, **more)


def ids(documents: Iterable[Document]) -> list[str]:
    return [document.id for document in documents]


def pick(user: str, name: str = "p", chosen: str = "yes") -> Preference:
    return Preference(id=name, user=user, kind="choice", prompt="?", chosen=chosen, rejected="no")


def everything(user: str, others: tuple[str, ...] = ()) -> list[Item]:
    """One or two of each kind of item for a user."""
    return [
        User(id=user, name=f"Name of {user}"),
        Authored(user=user, document=doc("1", f"first of {user}", written_at=date(2020, 1, 1))),
        Authored(
            user=user,
            document=doc(
                "2", "second", title="T", position=1, n_authors=3, fields={"a": [1, None, "ü"], "b": 0.1}
            ),
        ),
        Profile(user=user, version=1, text="v1", topics=("a", "b"), facts=StyleFacts(words=1 / 3)),
        Profile(user=user, version=2, text="v2", before=datetime(2021, 1, 1, tzinfo=UTC), fingerprint="f"),
        pick(user, "p1"),
        Preference(id="p2", user=user, kind="rating", completion="x", rating=-0.25, made_at=date(2020, 2, 2)),
        Request(
            id="r1", input="write", users=(user, *others), gold="g", before=date(2022, 1, 1), exclude=("2",)
        ),
    ]


def exports(store: Store) -> list[dict[str, object]]:
    return [row for user in store.users() for row in store.user(user.id).export()]


# --- users


def test_users_are_made_once_found_and_ordered(store: Store) -> None:
    assert store.n_users == 0
    assert list(store.users()) == []
    store.add_user("bob")
    assert store.add_user("alice", "Alice").name == "Alice"
    assert store.add_user("alice").name == "Alice"
    assert store.add_user("alice", "A.").name == "A."
    assert store.n_users == 2
    assert list(store.users()) == [User(id="alice", name="A."), User(id="bob")]


def test_an_unknown_user_is_an_error_with_near_names(store: Store) -> None:
    store.add(User(id=name) for name in ("alice", "bob"))
    with pytest.raises(UnknownUserError, match=r"unknown user 'alise' \(did you mean 'alice'\?\)"):
        store.user("alise")
    with pytest.raises(UnknownUserError, match="did you mean 'bob'"):
        store.user("bobb")
    assert store.n_users == 2


@pytest.mark.parametrize("bad", ["", " a", "a\n", "\x00", "\ud800", "x" * 257])
def test_an_impossible_user_id_is_refused(store: Store, bad: str) -> None:
    for call in (store.user, store.add_user):
        with pytest.raises(BadUserIdError):
            call(bad)


def test_odd_ids_are_only_ids(store: Store) -> None:
    store.add(item for name in ODD_IDS for item in everything(name))
    assert [user.id for user in store.users()] == sorted(ODD_IDS)
    for name in ODD_IDS:
        user = store.user(name)
        assert user.document("1").text == f"first of {name}"
        assert [r.users for r in user.requests()] == [(name,)]
    store.user(ODD_IDS[2]).erase()
    assert store.n_users == len(ODD_IDS) - 1


def test_many_users_are_walked_over_while_they_are_erased(store: Store) -> None:
    names = [f"u{n:04}" for n in range(1003)]
    store.add(User(id=name) for name in names)
    seen = []
    for user in store.users():
        seen.append(user.id)
        if user.id in ("u0000", "u0999"):
            store.user(user.id).erase()
    assert seen == names
    assert store.n_users == 1001


# --- documents


def test_adding_again_changes_nothing_and_other_content_replaces(store: Store) -> None:
    alice = store.add_user("alice")
    assert alice.add([doc("1"), doc("2")]) == Added(new=2)
    version = alice.history_version
    assert alice.add([doc("1"), doc("2")]) == Added(same=2)
    assert alice.history_version == version
    alice.put_vectors("m", {"1": [1, 2], "2": [3, 4]})
    assert alice.add([doc("1", "other"), doc("2"), doc("3")]) == Added(new=1, same=1, changed=1)
    assert alice.history_version > version
    assert alice.document("1").text == "other"
    assert alice.vectors("m", ["1", "2", "3"]).keys() == {"2"}
    assert alice.count == 3


def test_one_batch_may_hold_a_document_several_times(store: Store) -> None:
    alice = store.add_user("alice")
    added = alice.add([doc("1", "a"), doc("1", "a"), doc("1", "b"), doc("1", "c"), doc("1", "c")])
    assert added == Added(new=1, same=2, changed=2)
    assert alice.documents() == [doc("1", "c")]
    assert alice.add([doc("1", "d"), doc("1", "c")]) == Added(changed=2)
    assert alice.documents() == [doc("1", "c")]


def test_every_field_comes_back(store: Store) -> None:
    given = [
        doc(
            "1", "täxt\n🦊 %s :x ?", title="T", written_at="1904-05-06T07:08:09.123456+02:00", fields={"a": 1}
        ),
        doc(
            "2",
            written_at=datetime.max.replace(tzinfo=UTC),
            position=2,
            n_authors=3,
            fields={"\\u0000": "\\"},
        ),
        doc(
            "3", written_at=datetime.min.replace(tzinfo=UTC), fields={"n": {"x": [True, None, 1e300, 2**70]}}
        ),
        Document(text="no id"),
    ]
    alice = store.add_user("alice")
    alice.add(given)
    by_id = {one.id: one for one in alice.documents()}
    assert by_id == {one.id: one for one in given}
    assert all(by_id[one.id].content_hash == one.content_hash for one in given)
    assert by_id["1"].written_at is not None
    assert by_id["1"].written_at.tzinfo is UTC


def test_history_is_oldest_first_and_strictly_before(store: Store) -> None:
    moment = datetime(2024, 3, 1, 12, tzinfo=UTC)
    tick = timedelta(microseconds=1)
    alice = store.add_user("alice")
    alice.add(
        [
            doc("after", written_at=moment + tick),
            doc("z-at", written_at=moment),
            doc("B-at", written_at=moment),
            doc("undated"),
            doc("before", written_at=moment - tick),
            doc("old", written_at=date(1950, 1, 1)),
        ]
    )
    assert ids(alice.documents()) == ["undated", "old", "before", "B-at", "z-at", "after"]
    assert ids(alice.documents(before=moment)) == ["old", "before"]
    assert ids(alice.documents(before=moment.replace(tzinfo=None))) == ["old", "before"]
    assert ids(alice.documents(before=moment + tick, exclude={"old", "z-at"})) == ["before", "B-at"]
    for before, exclude in ((None, ()), (moment, ()), (moment + tick, {"old", "z-at"}), (None, {"old"})):
        found = alice.documents(before, exclude)
        assert list(alice.contents(before, exclude).items()) == [(one.id, one.content_hash) for one in found]


def test_a_document_is_removed_with_what_was_made_of_it(store: Store) -> None:
    alice = store.add_user("alice")
    alice.add([doc("1"), doc("2")])
    alice.put_vectors("m", {"1": [1.0]})
    alice.put_gists({"k": "tells of 1"})
    version = alice.history_version
    alice.remove("1")
    assert ids(alice.documents()) == ["2"]
    assert alice.history_version > version
    assert alice.gists(["k"]) == {}
    for call in (alice.remove, alice.document):
        with pytest.raises(BadInputError, match="user 'alice' has no document '1'"):
            call("1")
    alice.add([doc("1")])
    assert alice.vectors("m", ["1"]) == {}


def test_history_versions_never_come_back_after_an_erase(store: Store) -> None:
    seen = set()
    for _ in range(5):
        alice = store.add_user("alice")
        seen.add(alice.history_version)
        alice.add([doc("1")])
        seen.add(alice.history_version)
        alice.erase()
    assert len(seen) == 10


def test_what_cannot_be_kept_is_refused(store: Store) -> None:
    alice = store.add_user("alice")
    bad = [doc("x" * 513), doc("1", fields={"a": float("nan")}), doc("1", fields={"a": {1, 2}})]
    bad += [doc("1", fields={"a": "\x00"}), doc("1", fields={"a": "\ud800"})]
    for document in bad:
        with pytest.raises(BadInputError):
            alice.add([document])
    seen: list[BadRow] = []
    rows: list[Item] = [Authored(user="alice", document=one) for one in bad]
    rows[2:2] = [BadRow(file="f", line=3, why="w"), Authored(user="bob", document=doc("1"))]
    assert store.add(rows, on_bad=seen.append) == Added(users=1, new=1, bad=6)
    assert len(seen) == 6
    assert str(seen[2]) == "f:3: w"
    assert "'alice'" in str(seen[0])
    assert alice.count == 0


# --- vectors and gists


def test_vectors_are_float32_by_model(store: Store) -> None:
    alice, bob = store.add_user("alice"), store.add_user("bob")
    for user in (alice, bob):
        user.add([doc("1"), doc("2")])
    given = np.arange(4) / 3
    alice.put_vectors("m", {"1": given, "gone": given})
    alice.put_vectors("n", {"1": -given})
    alice.put_vectors("m", {"1": given * 2})
    found = alice.vectors("m", ["1", "2", "gone"])
    assert found.keys() == {"1"}
    assert found["1"].dtype == np.float32
    np.testing.assert_array_equal(found["1"], (given * 2).astype(np.float32))
    found["1"][0] = 1  # is the caller's own
    assert bob.vectors("m", ["1", "2"]) == {}
    with pytest.raises(BadInputError, match="2 dimensions"):
        alice.put_vectors("m", {"1": np.zeros((1, 2))})


def test_vectors_of_a_history_that_has_moved_on_are_not_kept(store: Store) -> None:
    alice = store.add_user("alice")
    alice.add([doc("1", "old")])
    version = alice.history_version
    alice.put_vectors("m", {"1": [1.0]}, history_version=version)
    assert "1" in alice.vectors("m", ["1"])
    alice.add([doc("1", "new")])
    alice.put_vectors("m", {"1": [1.0]}, history_version=version)
    assert alice.vectors("m", ["1"]) == {}


def test_gists_are_kept_by_key_and_user(store: Store) -> None:
    alice, bob = store.add_user("alice"), store.add_user("bob")
    alice.put_gists({"k": "one"})
    alice.put_gists({"k": "two"})
    assert alice.gists(["k", "other"]) == {"k": "two"}
    assert bob.gists(["k"]) == {}


# --- profiles, preferences, requests


def test_profiles_are_versioned(store: Store) -> None:
    alice = store.add_user("alice")
    assert alice.profile() is None
    first = alice.add_profile(Profile(user="alice", text="one", fingerprint="f"))
    early = alice.add_profile(Profile(user="alice", text="early", fingerprint="f", before=date(2020, 1, 1)))
    assert (first.version, early.version) == (1, 2)
    assert alice.profile() == first
    assert alice.profile("f") == early
    assert alice.profile("g") is None
    back = alice.add_profile(Profile(user="alice", text="one", fingerprint="f"))
    assert back.version == 3
    assert alice.profiles() == [first, early, back]
    assert store.add_user("bob").profiles() == []
    with pytest.raises(BadInputError, match="is of the user 'bob'"):
        alice.add_profile(Profile(user="bob", text="t"))


def test_an_imported_profile_keeps_its_version_or_gets_the_next(store: Store) -> None:
    mine = Profile(user="alice", version=1, text="mine")
    theirs = Profile(user="alice", version=1, text="theirs")
    by_hand = Profile(user="alice", text="by hand")
    assert store.add([mine]).profiles == 1
    assert store.add([mine, theirs, by_hand]).profiles == 2
    assert store.add([mine, theirs, by_hand]).profiles == 0
    texts = [(one.version, one.text) for one in store.user("alice").profiles()]
    assert texts == [(1, "mine"), (2, "theirs"), (3, "by hand")]


def test_preferences_keep_their_order_and_replace_by_id(store: Store) -> None:
    alice = store.add_user("alice")
    for name in ("b", "a"):
        assert alice.prefer(pick("alice", name)) == pick("alice", name)
    alice.prefer(pick("alice", "b", "changed"))
    assert alice.preferences() == [pick("alice", "b", "changed"), pick("alice", "a")]
    assert store.add([pick("alice", "a"), pick("alice", "b"), pick("bob", "b")]).preferences == 2
    with pytest.raises(BadInputError, match="is of the user 'bob'"):
        alice.prefer(pick("bob"))


def test_requests_belong_to_all_their_users(store: Store) -> None:
    alice, bob = store.add_user("alice"), store.add_user("bob")
    both = Request(id="0", input="x", users=("bob", "alice"), before=date(2020, 1, 1))
    alice.add_request(both)
    own = bob.add_request(Request(id="0", input="own", users=("bob",)))
    assert alice.requests() == [both]
    assert bob.requests() == [both, own]
    newer = both.model_copy(update={"input": "y"})
    bob.add_request(newer)
    assert alice.requests() == [newer]
    with pytest.raises(BadInputError, match="does not name"):
        alice.add_request(own)
    with pytest.raises(UnknownUserError, match="'bobb'"):
        alice.add_request(Request(input="x", users=("alice", "bobb")))


def test_groups_are_found_by_shared_documents(store: Store) -> None:
    def together(shared: str, *authors: str) -> list[Item]:
        return [
            Authored(user=name, document=doc(shared, position=place, n_authors=len(authors)))
            for place, name in enumerate(authors)
        ]

    items = [*together("1", "b", "a"), *together("2", "b", "a"), *together("3", "a", "b", "c")]
    items += [Authored(user=name, document=doc("4")) for name in "abc"]  # the same id alone says nothing
    store.add([*items, *together("5", "d", "e")[:1]])
    assert store.groups() == [Group(("b", "a"), 2), Group(("a", "b", "c"), 1)]
    assert store.groups(min_documents=2) == [Group(("b", "a"), 2)]


# --- bulk


def test_bulk_add_counts_streams_and_reports_each_batch(store: Store) -> None:
    taken = 0

    def items() -> Iterator[Item]:
        nonlocal taken
        for n in range(25):
            taken += 1
            yield Authored(user=f"u{n % 3}", document=doc(f"{n}"))

    reports: list[tuple[int, Added]] = []
    total = store.add(items(), batch=10, on_batch=lambda added: reports.append((taken, added)))
    assert [(n, added.new) for n, added in reports] == [(10, 10), (20, 20), (25, 25)]
    assert total == reports[-1][1] == Added(users=3, new=25)
    assert store.add(items()) == Added(same=25)


def test_long_documents_make_small_batches(store: Store) -> None:
    reports: list[int] = []
    items = (Authored(user="a", document=doc(f"{n}", "x" * 999_999)) for n in range(20))
    store.add(items, on_batch=lambda added: reports.append(added.new))
    assert reports == [17, 20]


def test_every_kind_is_added_and_added_again_without_effect(store: Store) -> None:
    items = [*everything("alice", ("bob",)), *everything("bob", ("carol",))]
    assert store.add(items) == Added(users=3, new=4, requests=2, preferences=4, profiles=4)
    before = exports(store)
    assert store.add(items) == Added(same=4)
    assert exports(store) == before


# --- erase and export


def test_erase_counts_and_leaves_the_others_alone(store: Store) -> None:
    store.add([*everything("alice", ("bob",)), *everything("bob"), *everything("carol", ("alice",))])
    alice, bob = store.user("alice"), store.user("bob")
    alice.put_vectors("m", {"1": [1.0], "2": [1.0]})
    alice.put_gists({"k": "g"})
    kept = list(bob.export())
    gone = alice.erase()
    assert gone == Erased(documents=2, vectors=2, gists=1, profiles=2, preferences=2, requests=2)
    assert list(bob.export()) == kept
    assert store.user("carol").requests() == []
    with pytest.raises(UnknownUserError):
        store.user("alice")


def test_an_erased_users_object_reaches_no_namesake(store: Store) -> None:
    old = store.add_user("alice")
    old.erase()
    store.add(everything("alice"))
    assert old.documents() == old.profiles() == old.preferences() == old.requests() == []
    for call in (
        old.erase,
        lambda: old.add([doc("1")]),
        lambda: old.prefer(pick("alice")),
        lambda: old.put_gists({"k": "t"}),
        lambda: old.add_profile(Profile(user="alice", text="t")),
        lambda: list(old.export()),
        lambda: old.history_version,
    ):
        with pytest.raises(UnknownUserError):
            call()


def test_an_export_read_back_gives_the_same_export(store: Store, tmp_path: Path) -> None:
    store.add([*everything("alice", ("bob", "carol")), *everything("bob", ("alice",)), *everything("🦊")])
    alice = store.user("alice")
    alice.add_profile(alice.profiles()[0])
    before = exports(store)
    file = tmp_path / "export.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in before), encoding="utf-8")
    (tmp_path / "other").mkdir()
    with Store(stores.fresh("sqlite", tmp_path / "other")) as other:
        assert other.add(read("jsonl", file)).bad == 0
        assert exports(other) == before
    assert [row["penname"] for row in alice.export()].count("request") == 1


# --- at the same time


def test_threads_may_share_a_store(store: Store) -> None:
    def work(me: int) -> None:
        for n in range(5):
            items = [Authored(user=f"u{k}", document=doc(f"{me}-{n}")) for k in (0, 1, 2)]
            store.add(reversed(items) if me % 2 else items)
            store.user("u1").documents()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert [store.user(f"u{k}").count for k in range(3)] == [20, 20, 20]


def test_an_error_in_the_source_keeps_the_batches_before(store: Store) -> None:
    def items() -> Iterator[Item]:
        yield from (Authored(user="a", document=doc(f"{n}")) for n in range(15))
        raise StoreFullError("from the source")

    with pytest.raises(StoreFullError):
        store.add(items(), batch=10)
    assert store.user("a").count == 10


def test_the_schema_is_current_and_upgrading_again_is_harmless(store: Store) -> None:
    store.add(everything("alice"))
    before = exports(store)
    assert store.upgrade() == store.schema == Schema(HEAD, HEAD)
    store.compact()
    assert exports(store) == before


def test_documents_are_read_page_by_page(store: Store) -> None:
    user = store.add_user("alice")
    store.add_user("bob").add([doc("b0"), doc("theirs")])
    days = [datetime(2024, 3, day, tzinfo=UTC) for day in (1, 2)]
    dates = [None, None, None, days[1], days[0], days[0], days[1]]
    user.add([doc(f"{'xbacgfe'[number]}", written_at=when) for number, when in enumerate(dates)])
    whole = [one.id for one in user.documents()]
    assert whole == ["a", "b", "x", "f", "g", "c", "e"]
    for limit in (1, 2, 3, 7, 9):
        read: list[str] = []
        while page := user.documents(after=read[-1] if read else None, limit=limit):
            assert len(page) <= limit
            read += [one.id for one in page]
        assert read == whole
    assert [one.id for one in user.documents(days[1], ("x", "f"), after="b", limit=1)] == ["g"]
    assert [one.id for one in user.documents(exclude=whole[:3], limit=2)] == ["f", "g"]
    for unknown in ("theirs", "b'; --"):
        with pytest.raises(BadInputError, match="no document"):
            user.documents(after=unknown)


def test_preferences_are_read_page_by_page(store: Store) -> None:
    user = store.add_user("alice")
    store.add_user("bob").prefer(rating("theirs", "bob"))
    ids = ["3", "1", "2", "9"]
    for name in ids:
        user.prefer(rating(name, "alice"))
    assert [one.id for one in user.preferences(limit=3)] == ids[:3]
    assert [one.id for one in user.preferences(after="1")] == ids[2:]
    assert user.preferences(after="9", limit=2) == []
    with pytest.raises(BadInputError, match="no preference"):
        user.preferences(after="theirs")


def rating(name: str, user: str) -> Preference:
    return Preference(id=name, user=user, kind="rating", prompt="p", completion="c", rating=0.5)


def test_a_namesake_has_another_number(store: Store) -> None:
    first, other = store.add_user("alice"), store.add_user("bob")
    assert store.numbers(["alice", "bob", "eve"]) == {"alice": first.number, "bob": other.number}
    first.erase()
    assert store.numbers(["alice"]) == {}
    again = store.add_user("alice")
    assert again.number not in (first.number, other.number)
    assert store.numbers(["alice"]) == {"alice": again.number}
