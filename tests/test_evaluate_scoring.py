"""What is measured of each task's drafts, and what style and authorship are learnt from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from evaluate_helpers import EXAMPLES, Letters, club, day, document, request
from penname.errors import BadInputError, UnknownMetricError
from penname.evaluate.arms import Cast
from penname.evaluate.metrics import METRICS, text_scores
from penname.evaluate.scoring import JUDGED, TEXT, Scorer, own_texts, wanted, writes
from penname.records import Request
from penname.store import Store
from penname.tasks import TASKS, task
from stores import fresh

MANNERS = {
    "calm": "It is a quiet day; the sea is still, and we rest at home, as we like to do on day {}.",
    "loud": "WOW! What a day!! Did you see it?! I did! Number {}!!!",
    "dry": "Day {}. Rain. Wind. Nothing. Tea.",
    "long": "When I think of the days that were, and of day {}, I would say they were all alike to me.",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(fresh("sqlite", tmp_path)) as opened:
        club(opened)
        for user, manner in MANNERS.items():
            opened.add_user(user).add(document(user, n, text=manner.format(n)) for n in range(1, 9))
        yield opened


def scorer(store: Store, examples: Sequence[Request]) -> Scorer:
    return Scorer(store, Letters(), examples, Cast(store, examples, 2, 0))


def asked(*users: str, **more: object) -> list[Request]:
    return [request(user, user, task="post", **more) for user in users]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_its_official_metrics(name: str) -> None:
    found = wanted(task(name), (), judged=False)
    assert set(task(name).metrics) - {"meteor"} <= set(found)
    assert [one for one in METRICS if one in found] == list(found), "in the order in which they are shown"
    assert not set(found) & set(JUDGED)
    if writes(task(name)):
        assert set(TEXT) <= set(found)
        assert set(wanted(task(name), (), judged=True)) == {*found, *JUDGED}
    else:
        assert not set(found) & set(TEXT)
        assert wanted(task(name), (), judged=True) == found


def test_only_what_was_asked_for_is_measured() -> None:
    assert wanted(task("post"), ("words", "rouge1", "accuracy"), judged=False) == ("rouge1", "words")
    assert wanted(task("LaMP-1"), ("words", "accuracy"), judged=False) == ("accuracy",)
    with pytest.raises(UnknownMetricError, match="did you mean 'rouge1'"):
        wanted(task("post"), ("rogue1",), judged=True)
    for name in JUDGED:
        assert wanted(task("post"), (name,), judged=True) == (name,)
        with pytest.raises(BadInputError, match=f"'{name}' needs a judge"):
            wanted(task("post"), (name,), judged=False)


def test_meteor_is_left_out_where_its_data_are_not_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for ready in (False, True):
        monkeypatch.setattr("penname.evaluate.scoring.meteor_ready", lambda ready=ready: ready)
        assert ("meteor" in wanted(task("LongLaMP-topic"), (), judged=False)) == ready
        assert "meteor" in wanted(task("LongLaMP-topic"), ("meteor",), judged=False), "asked for by name"


def test_labels_are_read_and_compared(store: Store) -> None:
    examples = [request(f"e{n}", "ann", task="LaMP-3", gold=" 4\n") for n in range(3)]
    found = scorer(store, examples).texts(
        task("LaMP-3"), list(zip(examples, ("4", "Score: 2", "no idea"), strict=True)), [("mae", "rmse")] * 3
    )
    assert found == [{"mae": 0, "rmse": 0}, {"mae": 2, "rmse": 4}, {"mae": 3, "rmse": 9}]
    options = ("(a) Tea.", "(b) Coffee.")
    one = request("q", "ann", task="choice", gold="(b)", options=options)
    for text, right in (("(b)", 1.0), ("b", 1.0), ("(a)", 0.0), ("?", 0.0)):
        assert scorer(store, [one]).texts(task("choice"), [(one, text)], [("accuracy",)]) == [
            {"accuracy": right}
        ]


def test_lamp_compares_words_and_the_others_stems(store: Store) -> None:
    pair = ("the hens wandered", "hens wander in")
    for name, stemmed in (("LaMP-4", False), ("LongLaMP-topic", False), ("PSW-4", True), ("P-4", True)):
        one = request("e", "ann", task=name, gold=pair[1])
        [found] = scorer(store, [one]).texts(task(name), [(one, pair[0])], [("rouge1", "rougeL")])
        assert found == text_scores([pair], metrics=("rouge1", "rougeL"), stemmed=stemmed)[0]


def test_each_draft_is_measured_by_the_manner_of_its_author(store: Store) -> None:
    examples = asked(*MANNERS)
    mine = scorer(store, examples)
    metrics = [("style", "authorship")] * len(examples)
    own = mine.texts(task("post"), [(one, MANNERS[one.id].format(9)) for one in examples], metrics)
    order = list(MANNERS)
    swapped = {user: order[(place + 1) % 4] for place, user in enumerate(order)}
    others = mine.texts(
        task("post"), [(one, MANNERS[swapped[one.id]].format(9)) for one in examples], metrics
    )
    for same, other in zip(own, others, strict=True):
        assert same["style"] < other["style"]
        assert same["authorship"] == 1.0 > other["authorship"]
    assert any("the authorship classifier knows 4 users" in one for one in mine.remarks)


def test_manners_are_learnt_from_what_came_before_and_is_not_held_out(store: Store) -> None:
    store.user("calm").add(document("calm", n, text="!!!! WOW !!!! WOW !!!!") for n in range(30, 60))
    store.user("loud").add([document("loud", 0, id="held-out", text="Quite calm, then.", written_at=day(1))])
    examples = [*asked("calm", "dry", before=day(20)), *asked("loud", before=day(20), exclude=("held-out",))]
    texts = {user: own_texts(store, examples, user, task("post")) for user in ("calm", "loud", "dry")}
    assert texts == {user: [MANNERS[user].format(n) for n in range(1, 9)] for user in texts}
    titles = own_texts(store, examples, "calm", task("title"))
    assert titles == [f"calm on day {n}" for n in range(1, 9)], "titles are compared with titles"


def test_users_with_too_little_of_their_own_have_no_manner(store: Store) -> None:
    store.add_user("new").add([document("new", 1)])
    examples = asked("calm", "loud", "new")
    found = scorer(store, examples).texts(
        task("post"), [(one, "A text.") for one in examples], [("style", "words")] * 3
    )
    assert ["style" in one for one in found] == [True, True, False]
    assert all(one["words"] == 2 for one in found)
    alone = asked("calm")
    lonely = scorer(store, alone)
    for _ in range(2):
        assert lonely.texts(task("post"), [(alone[0], "A text.")], [("style", "authorship")]) == [{}]
    assert lonely.remarks == ["post: style and authorship are left out: fewer than two users have 2 texts"], (
        "said once"
    )


def test_the_first_author_with_a_manner_stands_for_all(store: Store) -> None:
    store.add_user("new")
    group = request("g", "new", "dry", "loud", task="post")
    mine = scorer(store, [*asked(*MANNERS), group])
    [found] = mine.texts(task("post"), [(group, MANNERS["dry"].format(9))], [("authorship",)])
    assert found == {"authorship": 1.0}


def test_users_are_told_apart_by_how_they_write(store: Store) -> None:
    found = scorer(store, [*asked(*MANNERS), *EXAMPLES]).groups()
    assert set(found) == {*MANNERS, "ann", "ben", "cas", "dot"}
    assert set(found.values()) == {"like most", "unlike most"}
    assert scorer(store, asked("calm", "loud", "dry")).groups() == {}, "too few to have a majority"


def test_texts_without_a_word_are_no_manner(store: Store) -> None:
    store.add_user("mute").add(document("mute", n, text="?! …") for n in range(5))
    examples = asked(*MANNERS, "mute")
    mine = scorer(store, examples)
    found = mine.texts(task("post"), [(one, "Well.") for one in examples], [("style",)] * 5)
    assert ["style" in one for one in found] == [True] * 4 + [False]
    assert "mute" not in mine.groups()
