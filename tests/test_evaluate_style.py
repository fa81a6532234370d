"""Style distance: parity with a naive Delta, what it tells apart, and its edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError
from penname.evaluate.style import WORST, StyleSpace, minority

PLAIN = [
    "We mended the latch. It held. The hens stayed in.",
    "We fixed the gate. It shut. The goat stayed out.",
    "We cut the hedge. It was high. The light came in.",
]
ORNATE = [
    "Although the garden, which had been neglected, was overgrown, I have always found it charming; indeed!",
    "However, the pavilion, whose windows had been broken, remained, although nobody would have known; alas!",
    "Because the orchard, where we had walked, was being felled, I wondered whether it would return; never!",
]
USERS = {"plain": PLAIN, "ornate": ORNATE}


def test_a_text_is_nearest_to_its_own_author() -> None:
    space = StyleSpace.fit(USERS)
    for i in range(3):
        for own, other in ((PLAIN, ORNATE), (ORNATE, PLAIN)):
            rest = own[:i] + own[i + 1 :]
            assert space.distance(own[i], rest) < space.distance(own[i], other)


def test_the_subject_does_not_count() -> None:
    space = StyleSpace.fit(USERS)
    draft = PLAIN[0].replace("latch", "wheel").replace("hens", "cart").replace("held", "ran.")
    assert space.distance(draft.replace("ran..", "spun."), PLAIN) == pytest.approx(
        space.distance(PLAIN[0], PLAIN), abs=0.1
    )


def test_distance_is_the_mean_of_the_families_delta() -> None:
    texts = ["the hen, the hen", "a hen and", "the hen. and, a"]
    space = StyleSpace.fit({"u": texts})

    def z(values: list[float], value: float) -> float:
        mean = sum(values) / len(values)
        return (value - mean) / (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5

    def delta(marks: list[list[float]], draft: list[float], author: list[float]) -> float:
        apart = [abs(z(m, d) - z(m, a)) for m, d, a in zip(marks, draft, author, strict=True)]
        return sum(min(value, WORST) for value in apart) / len(apart)

    # the, a, and: those that two documents have; commas; letters a word, words a sentence.
    function = delta(
        [[0.5, 0, 0.25], [0, 1 / 3, 0.25], [0, 1 / 3, 0.25]], [0, 1 / 3, 1 / 3], [3 / 11, 2 / 11, 2 / 11]
    )
    comma = delta([[0.25, 0, 0.25]], [0], [2 / 11])
    lengths = delta([[3, 7 / 3, 2.5], [4, 3, 2]], [7 / 3, 3], [29 / 11, 11 / 4])
    assert space.distance(texts[1], texts) == pytest.approx((function + comma + lengths) / 3)


def test_a_draft_without_words_is_the_worst() -> None:
    space = StyleSpace.fit(USERS)
    assert space.distances(["", " \n", "…!!"], [PLAIN, ORNATE, PLAIN]) == [WORST] * 3


def test_batches_agree_with_one_at_a_time() -> None:
    space = StyleSpace.fit(USERS)
    drafts, authors = [*PLAIN, *ORNATE], [ORNATE] * 3 + [PLAIN] * 3
    one = [space.distance(draft, texts) for draft, texts in zip(drafts, authors, strict=True)]
    assert space.distances(drafts, authors) == one
    assert space.distances([], []) == []


@given(st.text(max_size=200))
def test_any_draft_lies_between_nothing_and_the_worst(draft: str) -> None:
    assert 0 <= StyleSpace.fit({"only": PLAIN}).distance(draft, PLAIN) <= WORST


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"two different texts .* there are 1"):
        StyleSpace.fit({"a": ["one text"], "b": ["one text", " "]})
    with pytest.raises(BadInputError, match="do not differ in style"):
        StyleSpace.fit({"a": ["one hen", "two hen"]})
    with pytest.raises(BadInputError, match="author's texts has a word"):
        StyleSpace.fit(USERS).distance("a draft", ["", "…"])
    with pytest.raises(BadInputError, match="2 drafts and 1 authors"):
        StyleSpace.fit(USERS).distances(["a", "b"], [PLAIN])


def test_the_minority_are_those_unlike_the_others() -> None:
    users = {f"plain{i}": PLAIN[i % 3 :] for i in range(7)} | {"ornate": ORNATE}
    found = minority(users, share=0.125)
    assert [user for user, label in found.items() if label == "unlike most"] == ["ornate"]
    assert list(found) == list(users)
    assert set(minority(USERS).values()) == {"like most"}
