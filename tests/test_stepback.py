"""Step-Back Profiling: what is measured, what is read from a model, and when a profile is made again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import ToldModel
from penname.errors import BadInputError, EmptyHistoryError, UnknownUserError
from penname.methods.stepback import (
    Gist,
    History,
    StepBackConfig,
    edit_profile,
    make_profile,
    parse_gist,
    profile_histories,
)
from penname.records import Document
from penname.store import Store, UserStore
from penname.tasks.facts import describe_manner, favoured_words, habits, measure, sentences, words
from penname.tasks.keywords import parse_keywords

DESCRIPTION = """Topics: bees; orchards
Keywords: hive, queen
Background: keeps bees
Tone: wry
Length: short
Structure: the point first
Favoured words: honey; frame"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "test.db") as opened:
        yield opened


def document(text: str, day: int, title: str = "") -> Document:
    return Document(id=f"d{day}", title=title, text=text, written_at=datetime(2025, 1, day, tzinfo=UTC))


# --- measured -----------------------------------------------------------------------------------------------


def test_facts_are_counted() -> None:
    facts = measure(["I don't know. Do you? We (all) went; it was late!", "- one\n- two\n\nthree 😀"])
    assert facts.documents == 2
    assert facts.words == pytest.approx((11 + 3) / 2)
    assert facts.sentence_words == pytest.approx(14 / 6, abs=1e-4)
    assert facts.paragraphs == 1.5
    assert facts.contractions == pytest.approx(1 / 14, abs=1e-4)
    assert facts.first_person == pytest.approx(1 / 14, abs=1e-4)
    assert facts.first_plural == pytest.approx(1 / 14, abs=1e-4)
    assert facts.second_person == pytest.approx(1 / 14, abs=1e-4)
    assert facts.questions == pytest.approx(1 / 6, abs=1e-4)
    assert facts.exclamations == pytest.approx(1 / 6, abs=1e-4)
    assert facts.semicolons == facts.parentheses == facts.emoji == pytest.approx(100 / 14, abs=1e-4)
    assert facts.lists == 0.5
    assert facts.lowercase_starts == 0.0 or facts.lowercase_starts < 1


@given(st.lists(st.text(max_size=60), max_size=5))
def test_facts_of_any_text_are_finite_and_shares_are_shares(texts: list[str]) -> None:
    facts = measure(texts)
    shares = ("contractions", "first_person", "questions", "exclamations", "lists", "lowercase_starts")
    for name in shares:
        assert 0 <= getattr(facts, name) <= 1
    assert facts.documents == len(texts)
    assert facts.words_low <= facts.words_high


def test_facts_do_not_depend_on_the_order_of_documents() -> None:
    texts = ["One two three.", "Four? Five!", "six, seven; eight"]
    assert measure(texts) == measure(texts[::-1])


def test_sentences_and_words_survive_typography() -> None:
    assert words("Don’t stop, O'Brien") == ["don't", "stop", "o'brien"]
    assert sentences("One. Two?! Three…\nfour") == ["One.", "Two?!", "Three…", "four"]


def test_habits_are_what_a_quarter_of_the_texts_share() -> None:
    texts = [f"Dear all, text {n} is here.\nBest, G." for n in range(4)]
    assert habits(texts) == ("Dear all,", "Best, G.")
    assert habits(["One a.", "Two b.", "Three c."]) == ("", "")


def test_favoured_words_come_back_in_many_documents() -> None:
    texts = [f"the hive and number {n}, honey" for n in ("one", "two", "three")]
    assert favoured_words(texts, 10) == ("hive", "honey", "number")
    assert favoured_words(texts, 1) == ("hive",)


def test_a_manner_is_said_only_where_it_shows() -> None:
    assert "exclamation marks" in describe_manner(measure(["Go! Now! Yes!"]))
    assert "impersonal" in describe_manner(measure(["The committee met. The report was read."]))


# --- read from a model --------------------------------------------------------------------------------------


def test_a_gist_is_read_however_decorated() -> None:
    decorated = """Here is the description:
**Topics:** bees; orchards; bees
2. *Keywords*: hive, queen
## Background: keeps
bees
Tone: "wry"
Favorite words:
- honey
- frame
"""
    assert parse_gist(decorated) == Gist(
        topics=("bees", "orchards"),
        keywords=("hive", "queen"),
        background="keeps bees",
        tone='"wry"',
        favoured=("honey", "frame"),
    )
    assert parse_gist(f"<think>Topics: none of it\nTone: x</think>\n{DESCRIPTION}") == parse_gist(DESCRIPTION)
    assert parse_gist("I cannot help with that.") is None


@given(st.text())
def test_reading_a_gist_never_fails(answer: str) -> None:
    parse_gist(answer)
    for keyword in parse_keywords(answer, answer):
        assert keyword


def test_keywords_are_kept_where_the_document_bears_them_out() -> None:
    answer = " block rewards, blockchain wallet, block reward, the bomb, EIP, Difficulty bomb\nText: more"
    kept = parse_keywords(answer, "Delays the difficulty bomb and lowers the block reward (EIP 649).")
    assert kept == ("block rewards", "EIP", "difficulty bomb")


def test_what_the_model_left_unsaid_is_measured() -> None:
    documents = [document(f"Dear bees, look {n} times! Honey!\nYours, A.", n) for n in (1, 2, 3)]
    bare = make_profile("alice", Gist(topics=("bees",)), documents)
    assert "Topics: bees" in bare.text
    assert "exclamation marks" in bare.tone
    assert "opens with “Dear bees,”" in bare.structure
    assert "closes with “Yours, A.”" in bare.structure
    assert "about 7 words" in bare.length
    assert "honey" in bare.favoured_words
    assert bare.documents == ("d1", "d2", "d3")
    told = make_profile("alice", Gist(tone="wry."), documents)
    assert told.tone.startswith("wry; ")


def test_the_profile_holds_the_latest_documents_own_words() -> None:
    documents = [
        Document(id=f"d{n}", title=f"Hive {n} \n at dawn", text=f"Hive {n} hums 3.5 times. And more.")
        for n in range(12)
    ]
    made = make_profile("alice", Gist(), [*documents, documents[-1]])
    assert made.openings == tuple(
        f"Hive {n} hums 3.5 times." for n in (8, 9, 10, 11)
    )  # each once, newest last
    assert made.titles == tuple(f"Hive {n} at dawn" for n in range(4, 12))
    openings, titles = made.text.splitlines()[-2:]
    assert openings.startswith("Openings: Hive 8 hums 3.5 times. / Hive 9")
    assert titles.endswith("; Hive 11 at dawn")
    long = make_profile("alice", Gist(), [Document(text="honey " * 100)])
    assert long.openings[0].endswith("honey …")
    assert len(long.openings[0]) <= 122
    assert not long.titles


# --- made, kept, made again ---------------------------------------------------------------------------------


def chat(answer: str = DESCRIPTION, **settings: str) -> ToldModel:
    return ToldModel(lambda _: answer, shape="chat", **settings)


def test_every_document_of_a_long_history_is_put_to_the_model(store: Store) -> None:
    user = store.add_user("alice")
    texts = [" ".join(f"w{day}x{n}" for n in range(50)) for day in range(1, 21)]
    user.add([document(text, day) for day, text in enumerate(texts, start=1)])
    model = chat()
    [profile] = profile_histories(store, model, [History("alice")], config=StepBackConfig(chunk_tokens=120))
    asked = "\n".join(model.asked)
    assert all(text in asked for text in texts)
    assert len(model.asked) > 10  # ten chunks or more, and at least one merge
    assert sum("<notes>" in prompt for prompt in model.asked) >= 1
    assert profile.topics == ("bees", "orchards")
    assert profile.documents == tuple(f"d{day}" for day in range(1, 21))


def test_a_document_longer_than_a_chunk_counts_to_its_last_word(store: Store) -> None:
    store.add_user("alice").add([document(" ".join(f"w{n}" for n in range(1000)), 1)])
    model = chat()
    profile_histories(store, model, [History("alice")], config=StepBackConfig(chunk_tokens=100))
    asked = " ".join(model.asked).split()
    assert {f"w{n}" for n in range(1000)} <= {word.removesuffix("</document>") for word in asked}


def test_a_base_like_model_is_asked_for_the_keywords_of_each_document(store: Store) -> None:
    store.add_user("alice").add([document("The hive is full.", 1), document("The hive has a new queen.", 2)])
    model = ToldModel(lambda _: " hive, queen, blockchain")
    [profile] = profile_histories(store, model, [History("alice")])
    assert len(model.asked) == 2
    assert model.asked[0].endswith("The hive is full.\nKeywords:")
    assert profile.keywords == ("hive", "queen")  # the hive is in both documents, and first
    assert model.samplings[0].temperature == 0


def test_a_profile_is_kept_until_the_history_the_model_or_the_texts_change(store: Store) -> None:
    user = store.add_user("alice")
    user.add([document("First text.", 1)])
    model = chat()
    [first] = profile_histories(store, model, [History("alice")])
    [again] = profile_histories(store, model, [History("alice")])
    assert again == first
    assert len(model.asked) == 1
    user.add([document("Second text.", 2)])
    [second] = profile_histories(store, model, [History("alice")])
    assert (first.version, second.version) == (1, 2)
    [other] = profile_histories(store, chat(fingerprint="told-2"), [History("alice")])
    assert other.version == 3
    assert [profile.version for profile in user.profiles()] == [1, 2, 3]


def test_a_profile_that_is_up_to_date_costs_no_reading_of_texts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_user("alice").add([document("First text.", 1)])
    made = profile_histories(store, chat(), [History("alice")])

    def never(*_: object, **__: object) -> list[Document]:
        raise AssertionError("texts were read")

    monkeypatch.setattr(UserStore, "documents", never)
    assert profile_histories(store, chat(), [History("alice")]) == made


def test_a_refresh_asks_again(store: Store) -> None:
    store.add_user("alice").add([document("First text.", 1)])
    unclear = chat("Sorry, no.")
    profile_histories(store, unclear, [History("alice")])
    [fresh] = profile_histories(store, chat(), [History("alice")], refresh=True)
    assert fresh.topics == ("bees", "orchards")


def test_new_documents_cost_only_their_own_parts(store: Store) -> None:
    user = store.add_user("alice")
    user.add([document(f"Text number {day}.", day) for day in range(1, 6)])
    model = ToldModel(lambda _: " number")
    profile_histories(store, model, [History("alice")])
    user.add([document("A sixth text.", 6)])
    profile_histories(store, model, [History("alice")])
    assert len(model.asked) == 6


def test_a_moment_hides_what_came_later(store: Store) -> None:
    user = store.add_user("alice")
    user.add([document("Early text.", 1), document("Late secret.", 9)])
    moment = datetime(2025, 1, 9, tzinfo=UTC)
    model = chat()
    [early] = profile_histories(store, model, [History("alice", before=moment)])
    assert early.documents == ("d1",)
    assert not any("secret" in prompt for prompt in model.asked)
    assert user.profile() is None  # the user's own latest profile is one of the whole history
    [whole] = profile_histories(store, model, [History("alice")])
    assert whole.documents == ("d1", "d9")
    [without] = profile_histories(store, model, [History("alice", exclude=("d1",))])
    assert without.documents == ("d9",)
    assert user.profile() == whole
    with pytest.raises(EmptyHistoryError, match="before 2025-01-01"):
        profile_histories(store, model, [History("alice", before=datetime(2025, 1, 1, tzinfo=UTC))])


def test_an_edited_profile_stays_until_a_refresh_and_says_when_it_lags(store: Store) -> None:
    user = store.add_user("alice")
    user.add([document("First text.", 1)])
    model, notes = chat(), list[str]()
    [made] = profile_histories(store, model, [History("alice")])
    edited = edit_profile(store, "alice", "Writes about bees, and only bees.\n")
    assert edited.edited
    assert edited.version == 2
    assert profile_histories(store, model, [History("alice")], note=notes.append) == [edited]
    assert notes == []
    user.add([document("Second text.", 2)])
    assert profile_histories(store, model, [History("alice")], note=notes.append) == [edited]
    assert "edited by hand" in notes[0]
    before = datetime(2025, 1, 2, tzinfo=UTC)
    [early] = profile_histories(store, model, [History("alice", before=before)])
    assert not early.edited
    assert early.text == made.text
    [fresh] = profile_histories(store, model, [History("alice")], refresh=True)
    assert not fresh.edited
    assert user.profile() == fresh
    with pytest.raises(BadInputError, match="empty"):
        edit_profile(store, "alice", "  ")


def test_an_unreadable_description_leaves_the_measured_profile_and_is_said(store: Store) -> None:
    store.add_user("alice").add([document("First text.", 1)])
    notes = list[str]()
    [profile] = profile_histories(store, chat("Sorry, no."), [History("alice")], note=notes.append)
    assert "could not be read" in notes[0]
    assert profile.topics == ()
    assert "about 2 words" in profile.text


def test_many_users_are_asked_together_and_kept_apart(store: Store) -> None:
    names = [f"user{n}" for n in range(40)]
    for n, name in enumerate(names):
        store.add_user(name).add([document(f"The secret{n} word.", 1)])
    model = ToldModel(lambda prompt: " " + prompt.rsplit("secret")[-1].join(["secret", ""]).split()[0])
    seen = list[tuple[int, int]]()
    profiles = profile_histories(
        store, model, [History(name) for name in names], progress=lambda done, of: seen.append((done, of))
    )
    assert len(model.samplings) == 2  # windows of 32
    assert seen == [(32, 40), (40, 40)]
    for n, profile in enumerate(profiles):
        assert f"secret{n}" in profile.keywords
        assert sum(f"secret{m}" in profile.keywords for m in range(40)) == 1


def test_an_unknown_user_is_an_error(store: Store) -> None:
    store.add_user("alice")
    with pytest.raises(UnknownUserError, match="did you mean 'alice'"):
        profile_histories(store, chat(), [History("alise")])
