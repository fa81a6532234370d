"""What a store holds that a model may learn to write: of requests, of documents, and nothing of later."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penname.errors import BadInputError, UnknownUserError
from penname.methods.restpg.requests import requests_to_learn
from penname.records import Authored, Document, Request
from penname.store import Store
from penname.tasks import task
from stores import fresh

ABSTRACT = task("abstract")


def on(day: int) -> datetime:
    return datetime(2025, 1, day, tzinfo=UTC)


def document(name: str, day: int | None, **given: object) -> Document:
    values = {"title": f"T {name}", "text": f"Text of {name}.", "written_at": day and on(day), **given}
    return Document(id=name, **values)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(fresh("sqlite", tmp_path)) as opened:
        yield opened


def put(store: Store, user: str, *documents: Document) -> None:
    store.add_user(user).add(documents)


def test_each_document_is_a_request_of_what_came_before_it(store: Store) -> None:
    put(store, "ann", *(document(f"d{day}", day) for day in (3, 1, 2)))
    found, left_out = requests_to_learn(store, ABSTRACT)
    assert [(r.input, r.gold, r.users, r.before, r.exclude) for r in found] == [
        (f"T d{day}", f"Text of d{day}.", ("ann",), on(day), (f"d{day}",)) for day in (2, 3)
    ]
    assert all(request.task == "abstract" for request in found)
    assert left_out == {"requests left out: no author has 1 documents to learn from": 1}


def test_least_counts_documents_that_show_the_task(store: Store) -> None:
    put(store, "ann", document("a", 1), document("b", 2, title=""), document("c", 3), document("d", 4))
    found, left_out = requests_to_learn(store, ABSTRACT, least=2)
    assert [request.gold for request in found] == ["Text of d."]
    assert left_out == {
        "documents left out: they do not show the task done": 1,
        "requests left out: no author has 2 documents to learn from": 2,
    }


def test_a_document_of_several_is_one_request_in_their_order(store: Store) -> None:
    put(store, "ann", document("a", 1), document("x", 5, position=1, n_authors=3))
    put(store, "bob", document("x", 5, position=0, n_authors=3))
    found, _ = requests_to_learn(store, ABSTRACT)
    assert [(r.users, r.exclude) for r in found] == [
        (("bob", "ann"), ("x",))
    ]  # the third is not in the store
    one_author_is_enough, _ = requests_to_learn(store, ABSTRACT, users=["ann"])
    assert [request.users for request in one_author_is_enough] == [("ann",)]
    assert requests_to_learn(store, ABSTRACT, users=["bob"])[0] == []  # bob wrote nothing before


@pytest.mark.parametrize(
    "other",
    [document("x", 5, text="Mine alone."), document("x", 5, text="Another text.", position=1, n_authors=2)],
)
def test_an_id_in_two_histories_does_not_make_one_text_of_two(store: Store, other: Document) -> None:
    put(store, "ann", document("a", 1), document("x", 5, n_authors=other.n_authors))
    put(store, "bob", document("b", 1), other)
    found, _ = requests_to_learn(store, ABSTRACT)
    assert {(r.users, r.gold) for r in found} == {(("ann",), "Text of x."), (("bob",), other.text)}
    assert len({request.id for request in found}) == 2


def test_undated_documents_serve_no_dated_request(store: Store) -> None:
    put(store, "ann", document("u", None), document("a", 5))
    found, _ = requests_to_learn(store, ABSTRACT)
    assert [request.gold for request in found] == ["Text of u."]  # an undated request may use any other
    assert found[0].before is None
    found, left_out = requests_to_learn(store, ABSTRACT, before=on(9))
    assert found == []
    assert left_out == {
        "requests left out: without a date": 1,
        "requests left out: no author has 1 documents to learn from": 1,
    }


def test_the_split_drops_what_is_dated_at_or_after_it(store: Store) -> None:
    put(store, "ann", *(document(f"d{day}", day) for day in range(1, 6)))
    found, left_out = requests_to_learn(store, ABSTRACT, before=datetime(2025, 1, 4))  # noqa: DTZ001
    assert [request.gold for request in found] == ["Text of d2.", "Text of d3."]
    assert left_out["requests left out: dated 2025-01-04 or later"] == 2


def test_what_was_asked_must_be_shown(store: Store) -> None:
    put(store, "ann", document("a", 1), document("b", 2))
    found, left_out = requests_to_learn(store, task("P-1"))  # from what it builds on, which no document says
    assert (found, left_out) == ([], {"documents left out: they do not show what was asked": 2})


def test_imported_requests_come_before_documents(store: Store) -> None:
    put(store, "ann", document("a", 1), document("b", 2))
    put(store, "bob", document("c", 1))

    def ask(name: str, *users: str, gold: str | None = "G", day: int | None = 3) -> Request:
        one = Request(
            id=name,
            task="abstract",
            input="I",
            users=users,
            before=day and on(day),
            exclude=("a",),
            gold=gold,
        )
        return store.user(users[0]).add_request(one)

    late = ask("late", "ann", day=8)
    both = ask("both", "ann", "bob")
    ask("none", "ann", gold=None)
    ask("blank", "bob", gold=" ")
    ask("both", "bob")
    store.user("ann").add_request(Request(task="email", input="I", users=("ann",), gold="G"))
    found, left_out = requests_to_learn(store, ABSTRACT)
    assert found == [both, late]
    assert left_out == {
        "requests left out: without a real text": 2,
        "requests left out: a second one of the same id": 1,
    }
    found, left_out = requests_to_learn(store, ABSTRACT, least=2, before=on(8))
    assert found == []  # "a" is excluded, so that "b" is all that ann has, and "c" all of bob
    assert left_out["requests left out: no author has 2 documents to learn from"] == 1
    found, left_out = requests_to_learn(store, ABSTRACT, users=["ann"])
    assert found == [late]
    assert left_out["requests left out: also of users who are not to be learnt from"] == 1


def test_requests_that_hold_their_instruction_are_not_made_of_documents(store: Store) -> None:
    put(store, "ann", document("a", 1), document("b", 2))
    with pytest.raises(BadInputError, match="import"):
        requests_to_learn(store, task("LaMP-4"))


def test_an_unknown_user_is_an_error(store: Store) -> None:
    with pytest.raises(UnknownUserError):
        requests_to_learn(store, ABSTRACT, users=["nobody"])


@settings(max_examples=30)  # each opens a store
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(1, 6), st.booleans()), max_size=12),
    st.integers(0, 3),
    st.none() | st.integers(1, 7),
)
def test_as_the_store_itself_counts(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[str, int | None, bool]],
    least: int,
    before: int | None,
) -> None:
    with Store(fresh("sqlite", tmp_path_factory.mktemp("store"))) as store:
        documents = [
            Authored(user=user, document=document(f"d{i}", day, title="T" if titled else ""))
            for i, (user, day, titled) in enumerate(written)
        ]
        store.add(documents)
        found, left_out = requests_to_learn(store, ABSTRACT, least=least, before=before and on(before))
        wanted = set()
        for user, one in ((item.user, item.document) for item in documents):
            earlier = store.user(user).documents(one.written_at, (one.id,))
            in_split = before is None or (one.written_at is not None and one.written_at < on(before))
            if one.title and in_split and sum(bool(each.title) for each in earlier) >= least:
                wanted.add((user, one.id))
    assert {(request.users[0], request.exclude[0]) for request in found} == wanted
    assert len(found) == len(wanted)
    assert len(found) + sum(left_out.values()) == len(written)
    dates = [request.before for request in found if request.before]
    assert dates == sorted(dates)
