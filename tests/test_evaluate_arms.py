"""Which arms a run has, and who stands in for whom under a control."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluate_helpers import CLUB, EXAMPLES, club, day, document, request
from models import ToldModel, flat
from penname.errors import (
    BadInputError,
    UnknownControlError,
    UnknownMethodError,
    UnknownRetrieverError,
)
from penname.evaluate.arms import CONTROLS, Cast, plan
from penname.evaluate.benchmarks import stored_requests
from penname.evaluate.results import Arm
from penname.records import Request
from penname.store import Store
from penname.tasks import task
from penname.writer import Material, Writer
from stores import fresh

SWAP = Arm("retrieval · swap-user", "retrieval", "all", "swap-user", "retrieval")
PROFILE = Arm("step-back · random-profile", "step-back", "all", "random-profile", "step-back")
SHUFFLED = Arm("retrieval · shuffle-authors", "retrieval", "all", "shuffle-authors", "retrieval")
IN_CONTEXT = Arm("in-context", "in-context")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(fresh("sqlite", tmp_path)) as opened:
        club(opened)
        opened.add_user("new")
        yield opened


def cast(store: Store, *more: Request, seed: int = 0, k: int = 2) -> Cast:
    return Cast(store, [*EXAMPLES, *more], k, seed)


def cut(number: int) -> Arm:
    return Arm(f"retrieval · history={number}", "retrieval", "all", f"history={number}", "retrieval")


# --- the arms of a run


def test_the_first_method_is_the_baseline_and_controls_follow_their_arm() -> None:
    arms = plan(
        ["none", "in-context", "retrieval", "step-back"],
        ["one", "all"],
        ["swap-user", "random-profile", "shuffle-authors"],
    )
    assert [arm.name for arm in arms] == [
        "none",
        "in-context",
        "retrieval · one",
        "retrieval · one · swap-user",
        "retrieval",
        "retrieval · swap-user",
        "retrieval · shuffle-authors",
        "step-back · one",
        "step-back · one · swap-user",
        "step-back · one · random-profile",
        "step-back",
        "step-back · swap-user",
        "step-back · random-profile",
        "step-back · shuffle-authors",
    ]
    names = [arm.name for arm in arms]
    for arm in arms:
        assert bool(arm.control) == bool(arm.of)
        if arm.of:
            [own] = [one for one in arms if one.name == arm.of]
            assert (own.method, own.users) == (arm.method, arm.users)
            assert names.index(arm.of) < names.index(arm.name)


def test_what_is_named_twice_is_planned_once() -> None:
    assert plan(["retrieval", "retrieval"], ["all", "all"], ["history=3", "history=3"]) == (
        Arm("retrieval", "retrieval", "all"),
        Arm("retrieval · history=3", "retrieval", "all", "history=3", "retrieval"),
    )


@pytest.mark.parametrize(
    ("methods", "users", "control", "why"),
    [
        (["none", "in-context"], ["all"], "swap-user", "uses anything of a user"),
        (["none"], ["all"], "history=5", "uses anything of a user"),
        (["retrieval"], ["all"], "random-profile", "uses a profile"),
        (["step-back"], ["one"], "shuffle-authors", "for all authors"),
        (["step-back"], ["all"], "swap-vector", "a trained vector"),
    ],
)
def test_a_control_that_changes_nothing_is_refused(
    methods: list[str], users: list[str], control: str, why: str
) -> None:
    with pytest.raises(BadInputError, match=f"{control}' changes nothing here: .*{why}"):
        plan(methods, users, [control])


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownMethodError, match="did you mean 'step-back'"):
        plan(["stepback"], ["all"], [])
    with pytest.raises(UnknownMethodError, match="did you mean 'in-context'"):
        plan(["in_context"], ["all"], [])
    with pytest.raises(UnknownRetrieverError, match="did you mean 'dense'"):
        plan(["retrieval:dence"], ["all"], [])
    with pytest.raises(UnknownControlError, match="did you mean 'swap-user'"):
        plan(["retrieval"], ["all"], ["swap-users"])
    for users in (["both"], []):
        with pytest.raises(BadInputError, match="give one or all"):
            plan(["retrieval"], users, [])
    with pytest.raises(BadInputError, match="no method to evaluate"):
        plan([], ["all"], [])


@pytest.mark.parametrize("number", ["", "0", "-1", "3.5", "five", "²"])
def test_a_history_is_cut_to_a_number(number: str) -> None:
    with pytest.raises(BadInputError, match="such as history=5"):
        plan(["retrieval"], ["all"], [f"history={number}"])


def test_every_control_is_told_of() -> None:
    assert all(CONTROLS.values())


# --- who stands in


def test_swapped_users_are_strangers_with_a_history(store: Store) -> None:
    seen = set[str]()
    for seed in range(20):
        for example in EXAMPLES:
            made = cast(store, request("e5", "new", "ann"), seed=seed).asked(SWAP, example, task("title"))
            assert made is not None
            strangers = made[0].users
            seen.update(strangers)
            assert len(strangers) == len(set(strangers)) == len(example.users)
            assert not set(strangers) & {*example.users, "new"}
            assert (made[0].before, made[0].input, made[0].id) == (example.before, example.input, example.id)
            assert made == cast(store, request("e5", "new", "ann"), seed=seed).asked(
                SWAP, example, task("title")
            )
    assert seen == set(CLUB)


def test_an_author_without_a_history_needs_no_stranger(store: Store) -> None:
    example = request("e5", "new", "ann")
    made = cast(store, example).asked(SWAP, example, task("title"))
    assert made is not None
    assert len(made[0].users) == 1


def test_a_stranger_has_about_as_long_a_history(store: Store) -> None:
    for user, days in (("short", 2), ("long", 29), ("longer", 28)):
        store.add_user(user).add(document(user, number) for number in range(1, days + 1))
    others = [request("e5", "short"), request("e6", "longer")]
    example = request("e7", "long")
    for seed in range(10):  # six others: at most one of them is not among those drawn
        made = Cast(store, [*EXAMPLES, *others, example], 2, seed).asked(SWAP, example, task("title"))
        assert made is not None
        assert made[0].users in (("longer",), ("ann",), ("ben",))
    made = Cast(store, [*others, example], 2, 0).asked(SWAP, example, task("title"))
    assert made is not None
    assert made[0].users == ("longer",)


def test_a_stranger_has_the_same_task(store: Store) -> None:
    store.add_user("eve").add(document("eve", number) for number in range(1, 7))
    others = [request("p1", "eve", task="post"), request("p2", "dot", task="post")]
    for seed in range(20):
        made = cast(store, *others, seed=seed).asked(SWAP, others[0], task("post"))
        assert made is not None
        assert made[0].users == ("dot",)
        made = cast(store, *others, seed=seed).asked(SWAP, EXAMPLES[0], task("title"))
        assert made is not None
        assert "eve" not in made[0].users


def test_where_nobody_can_stand_in_there_is_no_control(store: Store) -> None:
    alone = request("e1", "ann")
    assert Cast(store, [alone], 2, 0).asked(SWAP, alone, task("title")) is None
    early = request("e1", "ann", before=day(1))  # nobody has written anything yet
    assert cast(store).asked(SWAP, early, task("title")) is None
    assert cast(store).asked(Arm("retrieval", "retrieval"), early, task("title")) is None
    assert cast(store).asked(Arm("none", "none"), early, task("title")) == (early, Material())


def test_the_erased_stand_in_for_nobody(store: Store) -> None:
    for example in EXAMPLES:
        store.user(example.users[0]).add_request(example)
    store.user("dot").erase()
    kept = stored_requests(store)
    assert [one.id for one in kept] == ["e1", "e2", "e3"]
    for seed in range(10):
        for example in kept:
            made = Cast(store, kept, 2, seed).asked(SWAP, example, task("title"))
            assert made is None or "dot" not in made[0].users


def test_a_random_profile_is_a_stranger_s_and_the_documents_are_one_s_own(store: Store) -> None:
    example = EXAMPLES[0]
    arm = Arm("x", "step-back+retrieval", "all", "random-profile", "step-back+retrieval")
    made = cast(store).asked(arm, example, task("title"))
    assert made is not None
    assert made[0] == example
    assert made[1].profiles_of is not None
    [stranger] = made[1].profiles_of
    assert stranger in {"ben", "cas", "dot"}
    model = ToldModel(lambda prompt: next(about for about in CLUB.values() if about in prompt))
    [draft] = Writer(store, model, arm.method, k=3).prompts([made[0]], [made[1]])
    assert {hit.user for hit in draft.documents} == {"ann"}
    [theirs] = Writer(store, model, "step-back").prompts([request("other", stranger)])
    assert draft.profiles[0].text == theirs.profiles[0].text
    assert CLUB[stranger] in flat(draft.prompt)


def test_shuffled_authors_are_the_same_in_another_order(store: Store) -> None:
    trio = request("e5", "ann", "new", "ben", "cas")
    orders = set()
    for seed in range(30):
        made = cast(store, trio, seed=seed).asked(SHUFFLED, trio, task("title"))
        assert made is not None
        orders.add(made[0].users)
    assert ("ann", "ben", "cas") not in orders
    assert len(orders) == 5
    assert {tuple(sorted(order)) for order in orders} == {("ann", "ben", "cas")}
    assert cast(store).asked(SHUFFLED, EXAMPLES[0], task("title")) is None
    with_one_left = request("e6", "new", "ann")
    assert cast(store).asked(SHUFFLED, with_one_left, task("title")) is None


def test_a_cut_history_shows_the_newest_only(store: Store) -> None:
    writer = Writer(store, ToldModel(), "retrieval", k=20)
    for number, expected in ((1, {"both-20"}), (3, {"both-20", "ann-6", "ann-5"})):
        made = cast(store).asked(cut(number), EXAMPLES[0], task("title"))
        assert made is not None
        assert {hit.document.id for hit in writer.prompts([made[0]])[0].documents} == expected
    made = cast(store).asked(cut(100), EXAMPLES[0], task("title"))
    assert made is not None
    assert made[0] == EXAMPLES[0]


# --- examples by others


def test_in_context_shows_the_newest_examples_by_others(store: Store) -> None:
    made = cast(store, k=3).asked(IN_CONTEXT, request("e1", "ann", before=day(5)), task("title"))
    assert made is not None
    assert sorted(hit.document.id for hit in made[1].examples) == ["ben-4", "cas-4", "dot-4"]


def test_in_context_never_shows_what_an_author_wrote_with_others(store: Store) -> None:
    made = cast(store, k=50).asked(IN_CONTEXT, EXAMPLES[0], task("title"))
    assert made is not None
    shown = {hit.document.id for hit in made[1].examples}
    assert "both-20" not in shown
    assert shown == {f"{user}-{number}" for user in ("ben", "cas", "dot") for number in range(1, 7)}


def test_another_s_text_of_the_same_id_is_an_example(store: Store) -> None:
    store.user("ann").add([document("ann", 9, id="1")])
    store.user("ben").add([document("ben", 25, id="1")])
    made = cast(store, k=1).asked(IN_CONTEXT, EXAMPLES[0], task("title"))
    assert made is not None
    assert [(hit.user, hit.document.id) for hit in made[1].examples] == [("ben", "1")]


def test_in_context_without_dates_draws_by_lot(store: Store) -> None:
    undated = request("e1", "ann", before=None)
    drawn = set()
    for seed in range(10):
        made = cast(store, seed=seed).asked(IN_CONTEXT, undated, task("title"))
        assert made is not None
        assert made == cast(store, seed=seed).asked(IN_CONTEXT, undated, task("title"))
        drawn.add(tuple(hit.document.id for hit in made[1].examples))
    assert len(drawn) > 5


def test_in_context_needs_somebody_else(store: Store) -> None:
    early = request("e1", "ann", before=day(1))
    assert cast(store).asked(IN_CONTEXT, early, task("title")) is None


def test_examples_of_a_benchmark_s_task_are_of_its_own_users(store: Store) -> None:
    mails, news = (
        [request(f"{name}{n}", user, task=name, before=None) for n, user in enumerate(users)]
        for name, users in (("LaMP-6", ("ann", "ben")), ("LaMP-4", ("cas", "dot")))
    )
    made = Cast(store, [*mails, *news], 50, 0).asked(IN_CONTEXT, mails[0], task("LaMP-6"))
    assert made is not None
    assert {hit.user for hit in made[1].examples} == {"ben"}


# --- time

_DAYS = st.lists(st.one_of(st.none(), st.integers(0, 12)), max_size=5)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    histories=st.lists(_DAYS, min_size=4, max_size=4),
    moment=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_nothing_at_or_after_the_request_is_used_by_any_arm(
    tmp_path_factory: pytest.TempPathFactory, histories: list[list[int | None]], moment: int, seed: int
) -> None:
    example = request("e1", "u0", "u1", before=day(moment), exclude=("u0-0",))
    others = [request(f"e{n}", f"u{n}") for n in (2, 3)]
    model = ToldModel()
    with Store(fresh("sqlite", tmp_path_factory.mktemp("s"))) as store:
        for place, days in enumerate(histories):
            store.add_user(f"u{place}").add(
                document(f"u{place}", n, written_at=None if when is None else day(when))
                for n, when in enumerate(days)
            )
        arms = plan(
            ["in-context", "step-back+retrieval"],
            ["one", "all"],
            ["swap-user", "random-profile", "shuffle-authors", "history=2"],
        )
        cast = Cast(store, [example, *others], 3, seed)
        for arm in arms:
            made = cast.asked(arm, example, task("title"))
            if made is None:
                continue
            method = "none" if arm.method == "in-context" else arm.method
            [draft] = Writer(store, model, method, k=9).prompts([made[0]], [made[1]])
            for hit in draft.documents:
                assert _usable(hit.document.written_at, hit.document.id, moment)
            for profile in draft.profiles:
                for name in profile.documents:
                    user, _, number = name.partition("-")
                    when = histories[int(user[1:])][int(number)]
                    assert _usable(None if when is None else day(when), name, moment)


def _usable(written_at: datetime | None, name: str, moment: int) -> bool:
    return written_at is not None and written_at < day(moment) and name != "u0-0"
