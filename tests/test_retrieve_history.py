"""What a retriever may see: nothing later, nothing excluded, nothing stale, nothing of anyone else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from penname.errors import UnknownUserError
from penname.records import Document, Hit
from penname.retrieve import RETRIEVERS, retriever
from penname.retrieve.base import Retriever
from penname.retrieve.history import Histories
from penname.store import Store, UserStore
from retrieve_helpers import START, WordEmbedder, document, few, fresh_user, histories, moment, words


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("store") / "penname.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def second_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("second") / "penname.db") as opened:
        yield opened


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The user's id for each time that documents were read from the store."""
    read: list[str] = []
    documents = UserStore.documents

    def spied(self: UserStore, *args: object, **kwargs: object) -> list[Document]:
        read.append(self.id)
        return documents(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(UserStore, "documents", spied)
    return read


def found(hits: list[Hit]) -> list[tuple[str, float]]:
    return [(h.document.id, h.score) for h in hits]


def all_retrievers() -> list[Retriever]:
    return [retriever(name, seed=1, embedder=WordEmbedder()) for name in RETRIEVERS]


@few
@given(
    history=histories(),
    query=words,
    before=st.none() | st.integers(0, 5),
    exclude=st.sets(st.sampled_from(["d0", "d1", "d2", "d5", "nobody's"])),
    k=st.integers(1, 9),
)
def test_the_answer_is_that_of_a_history_without_what_may_not_be_used(
    store: Store,
    second_store: Store,
    history: list[Document],
    query: str,
    before: int | None,
    exclude: set[str],
    k: int,
) -> None:
    usable = [
        d
        for d in history
        if d.id not in exclude
        and (before is None or (d.written_at is not None and d.written_at < moment(before)))
    ]
    user = fresh_user(store, history)
    without = second_store.add_user(user.id)  # the same id: "random" draws by it
    without.add(usable)
    limit = None if before is None else moment(before)
    for one, other in zip(all_retrievers(), all_retrievers(), strict=True):
        one.top(user, query, k)  # warm, with everything
        answer = one.top(user, query, k, before=limit, exclude=exclude)
        assert found(answer) == found(other.top(without, query, k)), one.name


def test_before_is_strict_to_the_microsecond_and_in_any_zone(store: Store) -> None:
    user = fresh_user(store, [document("a", day=1), document("undated")])
    east = timezone(timedelta(hours=5))
    for one in all_retrievers():
        assert one.top(user, "text", 5, before=moment(1)) == []
        assert one.top(user, "text", 5, before=moment(1).astimezone(east)) == []
        assert one.top(user, "text", 5, before=moment(1).replace(tzinfo=None)) == []
        later = moment(1) + timedelta(microseconds=1)
        for limit in (later, later.astimezone(east), later.replace(tzinfo=None)):
            assert [h.document.id for h in one.top(user, "text", 5, before=limit)] == ["a"]


def test_a_warm_request_reads_no_documents(store: Store, reads: list[str]) -> None:
    user = fresh_user(store, [document(f"d{i}", f"text {i}", day=i) for i in range(5)])
    embedder = WordEmbedder()
    for name in RETRIEVERS:
        one = retriever(name, embedder=embedder)
        one.top(user, "text", 2)
        reads.clear()
        for i in range(5):
            one.top(store.user(user.id), f"text {i}", 2)
            one.top(user, "text", 2, before=moment(3), exclude=["d1"])
        assert reads == [], name


def test_documents_are_embedded_once(store: Store) -> None:
    user = fresh_user(store, [document(f"d{i}", f"text {i}", day=i) for i in range(3)])
    first = WordEmbedder()
    retriever("dense", embedder=first).top(user, "query", 2, before=moment(1))
    assert first.embedded == ["text 0", "text 1", "text 2", "query"]

    second = WordEmbedder()  # another process, say: the store has the vectors
    dense = retriever("dense", embedder=second)
    dense.top(user, "query", 2)
    user.add([document("d3", "new", day=3), document("d1", "changed", day=1)])
    dense.top(user, "query", 2)
    assert sorted(second.embedded) == ["changed", "new", "query", "query"]

    other = WordEmbedder("words-2")  # another model's vectors are not these
    retriever("dense", embedder=other).top(user, "query", 2)
    assert len(other.embedded) == 5


def test_a_change_counts_at_the_next_request(store: Store) -> None:
    user = fresh_user(store, [document("a", "owl", day=1)])
    retrievers = all_retrievers()

    def ids() -> list[set[str]]:
        return [{h.document.id for h in one.top(user, "owl", 9)} for one in retrievers]

    assert ids() == [{"a"}] * 5
    user.add([document("b", "owl fox", day=2)])
    assert ids() == [{"a", "b"}] * 5
    user.remove("a")
    assert ids() == [{"b"}] * 5
    user.add([document("b", "fox", day=2)])
    assert {h.document.text for one in retrievers for h in one.top(user, "owl", 9)} == {"fox"}


def test_erased_is_gone_and_a_namesake_starts_anew(store: Store) -> None:
    user = fresh_user(store, [document("a", "owl")])
    retrievers = all_retrievers()
    for one in retrievers:
        one.top(user, "owl", 9)
    user.erase()
    for one in retrievers:
        with pytest.raises(UnknownUserError):
            one.top(user, "owl", 9)
    namesake = store.add_user(user.id)
    for one in retrievers:
        assert one.top(namesake, "owl", 9) == []
    namesake.add([document("z", "fox")])
    for one in retrievers:
        assert [h.document.id for h in one.top(namesake, "owl", 9)] == ["z"]


def test_the_same_id_in_two_stores_is_two_people(tmp_path: Path) -> None:
    with Store(tmp_path / "one.db") as one, Store(tmp_path / "two.db") as two:
        users = [s.add_user("alice") for s in (one, two)]
        for user, name in zip(users, "ab", strict=True):
            user.add([document(name)])
        for shared in all_retrievers():
            for _ in range(2):
                assert [[h.document.id for h in shared.top(u, "text", 5)] for u in users] == [["a"], ["b"]]


@few
@given(st.lists(histories(), min_size=2, max_size=4), words)
def test_nothing_of_one_user_reaches_another(store: Store, people: list[list[Document]], query: str) -> None:
    # The same ids in every history: only the titles say whose it is.
    owned = [[d.model_copy(update={"title": f"of {i}"}) for d in history] for i, history in enumerate(people)]
    users = [fresh_user(store, history) for history in owned]
    for shared in all_retrievers():
        for _ in range(2):  # cold, then warm
            for i, user in enumerate(users):
                hits = shared.top(user, query, k=100)
                assert {h.user for h in hits} <= {user.id}
                assert {h.document.title for h in hits} <= {f"of {i}"}
                assert len(hits) == len(owned[i])


def test_memory_is_bounded(store: Store, reads: list[str]) -> None:
    histories = Histories(limit=30_000)  # about ten documents
    one = retriever("lexical")
    one._histories = histories
    users = [fresh_user(store, [document(f"d{i}", "owl fox") for i in range(3)]) for _ in range(20)]
    for user in users:
        one.top(user, "owl", 2)
    reads.clear()
    one.top(users[-1], "owl", 2)
    assert reads == []
    one.top(users[0], "owl", 2)
    assert reads == [users[0].id]
    # One history beyond the limit, with many dates: kept alone, its indices bounded.
    big = fresh_user(store, [document(f"d{i}", "owl fox " * 200, day=i) for i in range(40)])
    for day in range(1, 40):
        one.top(big, "owl", 2, before=moment(day))
    assert list(histories._kept.values()) == [histories._history(big)]
    (kept,) = histories._kept.values()
    assert histories._total == kept.bytes
    assert len(kept._parts) == 8
    one.forget(big)
    assert (histories._total, len(histories._kept)) == (0, 0)


def test_threads_get_what_one_thread_gets(store: Store) -> None:
    rng = np.random.default_rng(0)
    users = [
        fresh_user(
            store, [document(f"d{i}", " ".join(rng.choice(list("abcdef"), 5)), day=i) for i in range(30)]
        )
        for _ in range(4)
    ]
    asked = [(u, q, d) for u in users for q in ("a", "b c", "e f") for d in (5, 20, 40)]

    def ask(one: Retriever, question: tuple[UserStore, str, int]) -> list[tuple[str, float]]:
        user, query, day = question
        return found(one.top(user, query, 5, before=moment(day)))

    for alone, shared in zip(all_retrievers(), all_retrievers(), strict=True):
        expected = [ask(alone, question) for question in asked]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(partial(ask, shared), asked * 4)) == expected * 4


def test_threads_see_a_change_that_was_acknowledged_before_they_asked(store: Store) -> None:
    user = fresh_user(store, [document("d0", day=0)])
    shared = retriever("lexical")
    acknowledged, done = [1], threading.Event()

    def ask() -> None:
        while not done.is_set():
            least = acknowledged[0]
            assert len(shared.top(store.user(user.id), "text", 100)) >= least

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        for i in range(1, 20):
            user.add([document(f"d{i}", day=i)])
            acknowledged[0] = i + 1
        done.set()
        for one in asking:
            one.result()


class Cached(RuleBasedStateMachine):
    """A retriever that lives through any changes answers as a new one does."""

    store: Store

    @initialize()
    def start(self) -> None:
        self.user = fresh_user(self.store, [])
        self.old = all_retrievers()

    @rule(name=st.sampled_from("abcd"), text=words, day=st.none() | st.integers(0, 4))
    def add(self, name: str, text: str, day: int | None) -> None:
        self.user.add([document(name, text or "?", day)])

    @rule(name=st.sampled_from("abcd"))
    def remove(self, name: str) -> None:
        if name in {d.id for d in self.user.documents()}:
            self.user.remove(name)

    @rule()
    def erase_and_come_back(self) -> None:
        self.user.erase()
        self.user = self.store.add_user(self.user.id)

    @rule(query=words, before=st.none() | st.integers(0, 5))
    def ask(self, query: str, before: int | None) -> None:
        limit: datetime | None = None if before is None else START + timedelta(days=before)
        for old, new in zip(self.old, all_retrievers(), strict=True):
            assert found(old.top(self.user, query, 3, limit)) == found(new.top(self.user, query, 3, limit))

    @invariant()
    def holds_what_the_store_holds(self) -> None:
        hits = self.old[0].top(self.user, "red", 9)
        assert sorted(h.document.id for h in hits) == sorted(d.id for d in self.user.documents())


def test_a_retriever_follows_any_changes(store: Store) -> None:
    machine = type("Cached", (Cached,), {"store": store})
    run_state_machine_as_test(machine, settings=settings(max_examples=10, stateful_step_count=15))
