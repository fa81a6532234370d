"""The one path from a request to a draft."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models import ToldModel, flat
from penname.errors import (
    BadInputError,
    EmptyHistoryError,
    UnknownMethodError,
    UnknownRetrieverError,
    UnknownUserError,
)
from penname.records import Document, Hit, Request
from penname.retrieve import retriever
from penname.store import Store
from penname.writer import STAGES, Material, Writer, stages


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "test.db") as opened:
        for name, subject in (("alice", "bees"), ("bob", "boats")):
            opened.add_user(name).add(
                Document(
                    id=f"{name}{day}",
                    title=f"{subject} {day}",
                    text=f"{name} on {subject}, day {day}.",
                    written_at=datetime(2025, 1, day, tzinfo=UTC),
                )
                for day in range(1, 9)
            )
        opened.add_user("newcomer")
        yield opened


def request(*users: str, text: str = "bees 3", **more: object) -> Request:
    return Request.model_validate({"task": "post", "input": text, "users": users, **more})


def test_each_method_puts_its_own_material_to_the_model(store: Store) -> None:
    prompts = {}
    for method in ("none", "retrieval", "step-back", "step-back+retrieval"):
        model = ToldModel(lambda _: " bees")
        draft = Writer(store, model, method, k=2).write(request("alice"))
        prompts[method] = flat(draft.prompt)
        assert (len(draft.profiles), len(draft.documents)) == (
            int("step-back" in method),
            2 * int("retrieval" in method),
        )
        assert draft.text == "bees"
        assert draft.prompt_tokens == len(prompts[method].split())
        assert model.samplings[-1].stop == ("\nTitle:", "\nPost:")
    assert prompts["none"] == "Title: bees 3\nPost:"
    assert "alice on bees, day 3." in prompts["retrieval"]
    assert "About the writer." in prompts["step-back"]
    assert "Post: alice on bees" not in prompts["step-back"]  # her own words are in the profile, no example
    assert prompts["step-back+retrieval"].startswith("About the writer.")
    assert prompts["step-back+retrieval"].endswith(prompts["retrieval"])


def test_nothing_of_one_user_reaches_anothers_prompt(store: Store) -> None:
    model = ToldModel(lambda _: " boats")
    drafts = Writer(store, model).write_many(
        [request("alice", text="boats 1"), request("bob", text="boats 1")]
    )
    assert "bob" not in flat(drafts[0].prompt)
    assert "alice" not in flat(drafts[1].prompt)
    assert {hit.user for hit in drafts[0].documents} == {"alice"}


def test_a_group_is_written_for_in_author_order(store: Store) -> None:
    draft = Writer(store, ToldModel(), k=1).write(request("bob", "alice"))
    assert [profile.user for profile in draft.profiles] == ["bob", "alice"]
    assert [hit.user for hit in draft.documents] == ["bob", "alice"]
    assert "About author 1 of 2. Tone" in flat(draft.prompt)


def test_nothing_written_at_or_after_the_request_is_used(store: Store) -> None:
    moment = datetime(2025, 1, 4, tzinfo=UTC)
    model = ToldModel(lambda prompt: " day")
    draft = Writer(store, model, k=20).write(request("alice", before=moment, exclude=("alice1",)))
    assert sorted(hit.document.id for hit in draft.documents) == ["alice2", "alice3"]
    assert draft.profiles[0].documents == ("alice2", "alice3")
    assert not any(f"day {day}." in prompt for prompt in model.asked for day in (1, 4, 5, 6, 7, 8))


def test_an_author_without_a_history_is_left_out_and_that_is_said(store: Store) -> None:
    draft = Writer(store, ToldModel()).write(request("newcomer", "alice"))
    assert [profile.user for profile in draft.profiles] == ["alice"]
    assert draft.dropped == ("'newcomer' has no documents that may be used",)
    with pytest.raises(EmptyHistoryError, match=r"no documents of 'newcomer' may be used.*--method none"):
        Writer(store, ToldModel()).write(request("newcomer"))
    assert Writer(store, ToldModel(), "none").write(request("newcomer")).text == "an answer"


def test_many_requests_go_to_the_model_together_and_come_back_in_order(store: Store) -> None:
    model = ToldModel(lambda prompt: prompt.rsplit("\n", 2)[-2])
    titles = Request(task="title", input="A text.", users=("bob",))
    requests = [request("alice", text="one"), titles, request("bob", text="two")]
    drafts = Writer(store, model, "retrieval").write_many(requests)
    assert [draft.text for draft in drafts] == ["Title: one", "Text: A text.", "Title: two"]
    assert len(model.samplings) == 2  # one batch a task


def test_settings_reach_the_model_and_the_draft(store: Store) -> None:
    model = ToldModel(shape="chat")
    writer = Writer(store, model, "none", temperature=0.0, max_tokens=7, seed=3)
    assert writer.write(request("alice")).seed == 3
    [sampling] = model.samplings
    assert (sampling.temperature, sampling.max_tokens, sampling.seed, sampling.stop) == (0.0, 7, 3, ())


ANSWERS = [
    " some text \n",
    "<think>hm\n</think>\n\n A title\nand more",
    "<think>a</think> <think>b</think>c <think>d</think>",
    "<thin ice>",
    "<th",
    "<think>cut before the answer",
    "\n\n",
    "one\n\ntwo ",
]
CLEAN = {
    "post": [
        "some text",
        "A title\nand more",
        "c <think>d</think>",
        "<thin ice>",
        "<th",
        "",
        "",
        "one\n\ntwo",
    ],
    "title": ["some text", "A title", "c <think>d</think>", "<thin ice>", "<th", "", "", "one"],
}


@pytest.mark.parametrize("task", ["post", "title"])
@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_a_text_is_the_answer_alone_streamed_or_not(store: Store, task: str, number: int) -> None:
    model = ToldModel(lambda _: ANSWERS[number], shape="chat")
    writer = Writer(store, model, "none")
    asked = Request(task=task, input="Text.", users=("bob",))
    expected = CLEAN[task][number]
    assert writer.write(asked).text == expected
    assert "".join(writer.stream(asked)) == expected
    model.stream = lambda prompt, sampling, prefix: iter(ANSWERS[number])  # type: ignore[assignment, method-assign]
    assert "".join(writer.stream(asked)) == expected


def test_a_stream_tells_what_did_not_fit(store: Store) -> None:
    notes = list[str]()
    writer = Writer(store, ToldModel(context=275), "retrieval", note=notes.append)
    assert "".join(writer.stream(request("alice"))) == "an answer"
    assert notes
    assert all(note.startswith("left out: document") for note in notes)


@pytest.mark.parametrize("method", ["none", "retrieval", "step-back"])
def test_an_unknown_user_never_falls_back(store: Store, method: str) -> None:
    with pytest.raises(UnknownUserError, match="did you mean 'alice'"):
        Writer(store, ToldModel(), method).write(request("alise"))


def test_method_names() -> None:
    assert stages("step-back+retrieval") == {"step-back": "", "retrieval": ""}
    assert stages("retrieval:recency") == {"retrieval": "recency"}
    assert stages("none") == {}
    with pytest.raises(UnknownMethodError, match="did you mean 'step-back'"):
        stages("stepback")
    with pytest.raises(UnknownRetrieverError, match="did you mean 'recency'"):
        stages("step-back+retrieval:recent")
    with pytest.raises(UnknownRetrieverError, match="there are lexical"):
        stages("retrieval:")
    with pytest.raises(BadInputError, match="'step-back' takes no name"):
        stages("step-back:dense")
    for bad in ("none+retrieval", "retrieval+retrieval", "retrieval:dense+retrieval:recency"):
        with pytest.raises(BadInputError, match="each stage once"):
            stages(bad)
    assert all(STAGES.values())


def test_a_method_names_its_retriever(store: Store) -> None:
    newest = Writer(store, ToldModel(), "retrieval:recency", k=2).write(request("alice", text="bees 1"))
    assert [hit.document.id for hit in newest.documents] == ["alice8", "alice7"]
    given = Writer(store, ToldModel(), "retrieval:recency", search=retriever("lexical"), k=1)
    assert given.write(request("alice", text="bees 1")).documents[0].document.id == "alice1"


def test_only_documents_that_show_the_task_done_are_retrieved(store: Store) -> None:
    untitled = (
        Document(id=f"note{n}", text=f"Bees {n}.", written_at=datetime(2025, 2, 1 + n, tzinfo=UTC))
        for n in range(20)
    )
    store.user("alice").add(untitled)
    newest = Writer(store, ToldModel(), "retrieval:recency", k=2)
    draft = newest.write(request("alice"))
    assert [hit.document.id for hit in draft.documents] == ["alice8", "alice7"]
    assert draft.dropped == ()
    chat = Request(task="chat", input="bees", users=("alice",))  # there every text of hers shows it done
    assert [hit.document.id for hit in newest.write(chat).documents] == ["note19", "note18"]


def test_a_user_without_any_example_is_written_for_and_that_is_said(store: Store) -> None:
    store.user("newcomer").add([Document(id="note", text="Just a note.")])
    draft = Writer(store, ToldModel(), "retrieval").write(request("newcomer", "alice"))
    assert {hit.user for hit in draft.documents} == {"alice"}
    assert draft.dropped == ("'newcomer' has no document that shows the task 'post' done",)


def test_material_of_others_stands_in_for_an_author_s_own(store: Store) -> None:
    model = ToldModel(lambda prompt: " boats")
    writer = Writer(store, model, "step-back+retrieval", k=1)
    swapped = Material(profiles_of=("bob",))
    [draft] = writer.prompts([request("alice")], [swapped])
    bobs = Writer(store, model, "step-back").prompts([request("bob")])[0].profiles[0]
    assert [(one.user, one.text) for one in draft.profiles] == [("alice", bobs.text)]
    assert {hit.user for hit in draft.documents} == {"alice"}
    shown = [Hit(user="bob", document=store.user("bob").document(f"bob{n}"), score=0.0) for n in (3, 5)]
    [draft] = Writer(store, model, "none").prompts([request("alice")], [Material(examples=tuple(shown))])
    prompt = flat(draft.prompt)
    assert "alice on bees" not in prompt
    assert (
        prompt.index("bob on boats, day 5.") < prompt.index("bob on boats, day 3.") < prompt.index("bees 3")
    )


def test_settings_out_of_range_are_refused(store: Store) -> None:
    for settings in ({"k": 0}, {"max_tokens": 0}, {"temperature": -1.0}):
        with pytest.raises(BadInputError, match="must be"):
            Writer(store, ToldModel(), **settings)  # type: ignore[arg-type]
