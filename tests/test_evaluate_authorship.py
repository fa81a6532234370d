"""Authorship: who is told apart, what chance is, and the edges."""

from __future__ import annotations

import numpy as np
import pytest

from penname.errors import BadInputError, UnknownUserError
from penname.evaluate import authorship
from penname.evaluate.authorship import Authorship

SPEECH = {
    "ann": "hens gate latch allotment mended yard fence".split(),
    "bo": "router packet kernel socket latency firmware buffer".split(),
    "cy": "sonata chord rehearsal quartet tempo melody violin".split(),
    "dee": "glacier ridge summit crampon bivouac couloir rope".split(),
}


def texts(user: str, n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng([seed, sorted(SPEECH).index(user)])
    return [" ".join(rng.choice(SPEECH[user], 12)) for _ in range(n)]


def histories(n: int = 5) -> dict[str, list[str]]:
    return {user: texts(user, n) for user in SPEECH}


def test_a_draft_is_attributed_to_whom_it_is_like() -> None:
    found = Authorship.fit(histories())
    assert found.users == ("ann", "bo", "cy", "dee")
    drafts = [texts(user, 1, seed=9)[0] for user in SPEECH]
    assert found.scores(drafts, list(SPEECH)) == [1, 1, 1, 1]
    assert found.score(drafts[0], "bo") < 1
    assert found.check == 1


def test_scores_are_the_share_of_users_below() -> None:
    found = Authorship.fit(histories())
    draft = texts("bo", 1, seed=3)[0]
    assert sorted(found.score(draft, user) for user in SPEECH) == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_what_nobody_would_write_is_at_chance() -> None:
    found = Authorship.fit(histories())
    assert found.scores(["", "鶏が庭に"], ["ann", "dee"]) == [0.5, 0.5]


def test_unlearnable_histories_have_a_check_at_chance() -> None:
    rng = np.random.default_rng(0)
    words = [word for mine in SPEECH.values() for word in mine]
    users = {f"u{i}": [" ".join(rng.choice(words, 20)) for _ in range(4)] for i in range(40)}
    check = Authorship.fit(users).check
    assert check is not None
    assert 0.35 < check < 0.65


def test_many_documents_do_not_make_an_author_likelier() -> None:
    rng = np.random.default_rng(1)
    words = [word for mine in SPEECH.values() for word in mine]

    def some(n: int) -> list[str]:
        return [" ".join(rng.choice(words, 20)) for _ in range(n)]

    found = Authorship.fit({"many": some(40), **{f"few{i}": some(4) for i in range(9)}}, limit=40)
    scores = found.scores(some(200), ["many"] * 200)
    assert 0.25 < np.mean(scores) < 0.75


def test_batches_agree_with_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Authorship.fit(histories())
    drafts = [text for user in SPEECH for text in texts(user, 3, seed=4)]
    users = [user for user in reversed(SPEECH) for _ in range(3)]
    one = [found.score(draft, user) for draft, user in zip(drafts, users, strict=True)]
    monkeypatch.setattr(authorship, "_BATCH", 5)
    assert found.scores(drafts, users) == one
    assert found.scores([], []) == []


def test_training_is_the_same_every_time_and_in_any_order_of_users() -> None:
    drafts = texts("cy", 5, seed=2)
    turned = dict(reversed(histories().items()))
    first, again = Authorship.fit(histories()), Authorship.fit(turned)
    for user in SPEECH:
        assert first.scores(drafts, [user] * 5) == again.scores(drafts, [user] * 5)
    assert first.check == again.check


def test_a_shared_text_is_not_learnt_from_the_other_author() -> None:
    shared = "hens gate latch allotment; quizzical jabberwocks vexed by zephyrs"
    users = histories() | {"ann": [*texts("ann", 4), shared], "bo": [shared, *texts("bo", 4)]}
    assert Authorship.fit(users).check == 1  # learnt from bo's history, it would be his rather than ann's


def test_documents_are_the_last_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = dict(zip(SPEECH, [*list(SPEECH)[1:], "ann"], strict=True))
    changed = {user: texts(turned[user], 3) + mine for user, mine in histories().items()}
    draft = texts("bo", 1, seed=5)
    assert Authorship.fit(changed, limit=3).scores(draft, ["bo"]) == [1]
    monkeypatch.setattr(authorship, "MAX_DOCUMENTS", 8)
    assert Authorship.fit(histories()).check is not None  # two documents a user
    monkeypatch.setattr(authorship, "MAX_DOCUMENTS", 3)
    with pytest.raises(BadInputError, match="2 to 3 users with documents, not 4"):
        Authorship.fit(histories())


def test_without_second_documents_there_is_no_check() -> None:
    assert Authorship.fit(histories(1)).check is None


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(BadInputError, match="users with documents, not 1"):
        Authorship.fit({"ann": texts("ann", 3), "bo": [" "]})
    with pytest.raises(BadInputError, match="limit of documents a user is 0"):
        Authorship.fit(histories(), limit=0)
    found = Authorship.fit(histories())
    with pytest.raises(UnknownUserError, match="unknown user 'eve'"):
        found.score("text", "eve")
    with pytest.raises(BadInputError, match="1 drafts and 2 users"):
        found.scores(["text"], ["ann", "bo"])
