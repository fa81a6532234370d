"""The benchmarks' tasks: how documents show them done, what retrieval is asked, how answers are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.records import Authored, Document, Request
from penname.sources import read
from penname.tasks import TASKS, labelled, task

ENTRIES: list[tuple[str, dict[str, Any], tuple[str, str]]] = [
    ("LaMP-1", {"title": "Old roads", "abstract": "We map."}, ("", "Old roads")),
    ("LaMP-2", {"description": "A ship sinks.", "tag": "true story"}, ("A ship sinks.", "true story")),
    ("LaMP-3", {"text": "Works well.", "score": "5"}, ("Works well.", "5")),
    ("LaMP-4", {"title": "Rain ahead", "text": "It will rain."}, ("It will rain.", "Rain ahead")),
    ("LaMP-5", {"title": "Old roads", "abstract": "We map."}, ("We map.", "Old roads")),
    ("LaMP-6", {"title": "Lunch", "text": "Shall we eat?"}, ("Shall we eat?", "Lunch")),
    ("LaMP-7", {"text": "good morning all"}, ("", "good morning all")),
]
LONG_ENTRIES: list[tuple[str, dict[str, Any], tuple[str, str]]] = [
    ("email", {"title": "Lunch", "text": "Shall we?"}, ("Lunch", "Shall we?")),
    ("abstract", {"title": "T", "abstract": "We did.", "year": 2015}, ("T", "We did.")),
    (
        "review",
        {"overall": 5.0, "summary": "S", "description": "A cup.", "reviewText": "Nice."},
        ("5.0\nA cup.\nS", "Nice."),
    ),
    ("topic", {"author": "u", "summary": "S", "content": "Post."}, ("S", "Post.")),
]


@pytest.mark.parametrize(("name", "entry", "example"), ENTRIES)
def test_what_the_lamp_reader_yields_shows_the_task_done(
    tmp_path: Path, name: str, entry: dict[str, Any], example: tuple[str, str]
) -> None:
    path = tmp_path / "dev_questions.json"
    path.write_text(json.dumps([{"id": "1", "input": "i", "profile": [{"id": "p", **entry}]}]))
    authored, request = read("lamp", path, task=name)
    assert isinstance(authored, Authored)
    assert isinstance(request, Request)
    assert task(request.task).example(authored.document) == example


@pytest.mark.parametrize(("name", "entry", "example"), LONG_ENTRIES)
def test_what_the_longlamp_reader_yields_shows_the_task_done(
    tmp_path: Path, name: str, entry: dict[str, Any], example: tuple[str, str]
) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([{"user_id": "1", "input": "i", "output": "o", "profile": [entry]}]))
    authored, request = read("longlamp", path, task=name)
    assert isinstance(authored, Authored)
    assert isinstance(request, Request)
    assert task(request.task).example(authored.document) == example


@pytest.mark.parametrize(
    ("name", "asked", "query"),
    [
        ("LaMP-1", 'An author wrote "T". Which is cited? [1]: "One way" [2]: "Two ways"', "One way Two ways"),
        ("LaMP-2", "Which tag? tags: [comedy, classic] description: A ship sinks. ", "A ship sinks."),
        ("LaMP-3", "Which score? review: review: works well", "review: works well"),
        ("LaMP-4", "Give a headline for the following article: It rains.", "It rains."),
        ("LaMP-5", "Give a title for the abstract of a paper: We map.", "We map."),
        ("LaMP-6", "Give a subject: Dear all: lunch?", "Dear all: lunch?"),
        ("LaMP-7", "Say it in other words: good morning: all", "good morning: all"),
        ("LongLaMP-email", "Write an e-mail: Lunch", "Lunch"),
        ("LongLaMP-abstract", "Write it for the title T using the following items: 1. maps", "1. maps"),
        ("LongLaMP-review", "Write it: as is", "Write it: as is"),
        ("LongLaMP-topic", "Write it: as is", "Write it: as is"),
        ("email", "Lunch: when?", "Lunch: when?"),
    ],
)
def test_retrieval_is_asked_for_the_part_that_the_benchmark_names(name: str, asked: str, query: str) -> None:
    assert task(name).query(asked) == query


def test_an_input_of_another_form_is_its_own_query() -> None:
    for found in TASKS.values():
        assert found.query("nothing to find here") == "nothing to find here"
    assert task("LaMP-1").query('only "one" and "two') == 'only "one" and "two'


@given(st.text(alphabet='ab" ', max_size=30))
def test_quoted_parts_are_found_as_by_walking_over_the_characters(text: str) -> None:
    quoted, inside, current = [], False, ""
    for character in text:
        if character == '"':
            if inside:
                quoted.append(current)
            inside, current = not inside, ""
        elif inside:
            current += character
    wanted = " ".join(quoted[1:3]).strip() if len(quoted) > 2 else ""
    assert task("LaMP-1").query(text) == (wanted or text)


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("LaMP-1", "[1]", "[1]"),
        ("LaMP-1", " [2]\n", "[2]"),
        ("LaMP-1", "2", "[2]"),
        ("LaMP-1", "2.", "[2]"),
        ("LaMP-1", "**[2]** because", "[2]"),
        ("LaMP-1", "The related one is [1].", "[1]"),
        ("LaMP-1", "I cannot say whether [1] or [2]", None),
        ("LaMP-1", "2 papers fit", None),
        ("LaMP-1", "12", None),
        ("LaMP-1", "", None),
        ("LaMP-2", "Dark Comedy", "dark comedy"),
        ("LaMP-2", "comedy", "comedy"),
        ("LaMP-2", '"sci-fi"', "sci-fi"),
        ("LaMP-2", "The tag is based on a book.", "based on a book"),
        ("LaMP-2", "comedy, not action", "comedy"),
        ("LaMP-2", "between comedy and action", None),
        ("LaMP-2", "classical", None),
        ("LaMP-3", "4", "4"),
        ("LaMP-3", "4.0", "4"),
        ("LaMP-3", "4.5", None),
        ("LaMP-3", "4/5", "4"),
        ("LaMP-3", "Score: 3.", "3"),
        ("LaMP-3", "14", None),
        ("LaMP-3", "6", None),
        ("LaMP-4", "  Rain ahead \nThe text", "Rain ahead"),
        ("LongLaMP-topic", "One.\n\nTwo.\n", "One.\n\nTwo."),
        ("email", " \n ", None),
    ],
)
def test_answers_are_read(name: str, text: str, answer: str | None) -> None:
    assert task(name).parse(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("(b)", "(b)"),
        ("B", "(b)"),
        ("b) Coffee", "(b)"),
        ("**B**", "(b)"),
        ("I would take (a), I think", "(a)"),
        ("A good choice is (b)", "(b)"),
        ("A good choice", None),
        ("(a) or (b)", "(a)"),
        ("Neither (a) nor (b)", None),
        ("coffee!", "(b)"),
        ("(c)", None),
        ("", None),
    ],
)
def test_options_are_read_by_label_or_by_their_words(text: str, answer: str | None) -> None:
    assert task("choice").parse(text, ("(a) Tea", "(b) Coffee")) == answer
    assert task("choice").parse(text, ("Tea", "Coffee")) == answer


@given(st.lists(st.text(max_size=6), min_size=1, max_size=60))
def test_every_option_has_a_label_of_its_own_that_is_read_back(options: list[str]) -> None:
    pairs = labelled(options)
    labels = [label for label, _ in pairs]
    assert len(pairs) == len(options) == len(set(labels))
    for label in labels:
        assert task("choice").parse(label, tuple(options)) == label


@given(st.sampled_from([found for found in TASKS.values() if found.choices]), st.text(max_size=30))
def test_a_choice_is_read_as_itself_and_nothing_else_ever(found: Any, text: str) -> None:
    assert found.parse(text) in (None, *found.choices)
    for choice in found.choices:
        assert found.parse(choice) == found.parse(f" {choice}\n") == choice


def test_every_task_says_all_that_is_needed() -> None:
    assert len(TASKS) == 27
    for name, found in TASKS.items():
        assert name == found.name
        assert found.help
        assert found.instruction.endswith(".")
        assert found.metrics
        assert found.max_tokens <= 512
        fields = ("tag", "score", "overall", "description", "builds_on", "motivation")
        shows_all = Document(title="t", text="x", fields=dict.fromkeys(fields, "f"))
        assert found.example(shows_all) is not None
