"""The source `prism`, on a small folder in the official format."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from penname.errors import BadInputError
from penname.records import Authored, Preference, User
from penname.sources import read
from sources_helpers import bad, json_lines, of

WHEN = "2023-11-22 14:05:12.123456"
MOMENT = datetime(2023, 11, 22, 14, 5, 12, 123456, tzinfo=UTC)


def person(user: str, **other: Any) -> dict[str, Any]:
    return {
        "user_id": user, "survey_only": False, "num_completed_conversations": 1, "age": "25-34",
        "self_description": "I mend clocks.", "system_string": "Be brief, and say when you guess.",
        "stated_prefs": {"values": 80}, "generated_datetime": WHEN,
    } | other  # fmt: skip


def asked(turn: int, content: str) -> dict[str, Any]:
    return {"turn": turn, "role": "user", "content": content}


def answered(
    turn: int, place: int, content: str, score: float | None, chosen: bool = False
) -> dict[str, Any]:
    return {
        "turn": turn, "role": "model", "content": content, "model_name": "m", "model_provider": "p",
        "score": score, "if_chosen": chosen, "within_turn_id": place,
    }  # fmt: skip


HISTORY = [
    asked(0, "Why do clocks tick?"),
    answered(0, 0, "Springs.", 1),
    answered(0, 1, "The escapement ticks.", 100, chosen=True),
    answered(0, 2, "Magic.", None),
    asked(1, "And tock?"),
    answered(1, 0, "The other tooth.", 51, chosen=True),
    answered(1, 1, "The other tooth.", 50),
]


def conversation(user: str, name: str, history: object = HISTORY, **other: Any) -> dict[str, Any]:
    return {
        "conversation_id": name, "user_id": user, "conversation_type": "unguided", "conversation_turns": 2,
        "opening_prompt": "Why do clocks tick?", "conversation_history": history,
        "open_feedback": "It knew its clocks.", "generated_datetime": WHEN,
    } | other  # fmt: skip


def folder(path: Path, people: list[Any], conversations: list[Any]) -> Path:
    json_lines(path / "survey.jsonl", people)
    json_lines(path / "conversations.jsonl", conversations)
    return path


def test_what_people_wrote_and_preferred(tmp_path: Path) -> None:
    items = list(
        read("prism", folder(tmp_path, [person("user0")], [conversation("user0", "c0")]), prefix="p/")
    )
    assert bad(items) == []
    assert items[0] == User(id="p/user0")
    documents = of(Authored, items)
    assert {each.user for each in documents} == {"p/user0"}
    assert {each.document.written_at for each in documents} == {MOMENT}
    assert [(each.document.id, each.document.text, each.document.fields) for each in documents] == [
        ("survey:self_description", "I mend clocks.", {"kind": "self_description"}),
        ("survey:system_string", "Be brief, and say when you guess.", {"kind": "system_string"}),
        ("c0:0", "Why do clocks tick?", {"kind": "prompt"}),
        ("c0:1", "And tock?", {"kind": "prompt"}),
        ("c0:feedback", "It knew its clocks.", {"kind": "open_feedback"}),
    ]


def test_scores_and_choices_of_each_turn(tmp_path: Path) -> None:
    path = folder(tmp_path, [person("user0")], [conversation("user0", "c0")])
    preferences = of(Preference, read("prism", path))
    later = "user: Why do clocks tick?\n\nassistant: The escapement ticks.\n\nuser: And tock?"
    assert [
        (each.kind, each.prompt == later, each.chosen or each.completion, each.rejected, each.rating)
        for each in preferences
    ] == [
        ("rating", False, "Springs.", None, -1.0),
        ("choice", False, "The escapement ticks.", "Springs.", None),
        ("rating", False, "The escapement ticks.", None, 1.0),
        ("choice", False, "The escapement ticks.", "Magic.", None),
        ("rating", True, "The other tooth.", None, pytest.approx(0.5 / 49.5)),
        ("rating", True, "The other tooth.", None, pytest.approx(-0.5 / 49.5)),
    ]
    assert preferences[0].prompt == "Why do clocks tick?"
    assert len({each.id for each in preferences}) == len(preferences)
    assert {each.made_at for each in preferences} == {MOMENT}


def test_packed_files_and_people_who_only_answered_the_survey(tmp_path: Path) -> None:
    folder(
        tmp_path,
        [person("a"), person("b", self_description="", system_string=None)],
        [conversation("a", "c")],
    )
    for name in ("survey.jsonl", "conversations.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    items = list(read("prism", tmp_path))
    assert [user.id for user in of(User, items)] == ["a", "b"]
    assert {each.user for each in of(Authored, items)} == {"a"}


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ("a text", "no list of objects"),
        ([3], "no list of objects"),
        ([{"role": "user", "content": "x"}], "no number 'turn'"),
        ([asked(0, "x"), asked(0, "y")], "turn 0 is not one prompt"),
        ([answered(0, 0, "x", 5)], "turn 0 is not one prompt"),
        ([asked(1, "x"), asked(0, "y")], "turn 0 comes after turn 1"),
        ([asked(0, "x"), {"turn": 0, "role": "tool", "content": ""}], "turn 0 is not one prompt"),
        ([asked(0, "x"), answered(0, 0, "y", 101)], "a number from 1 to 100, not 101"),
        ([asked(0, "x"), answered(0, 0, "y", True)], "a number from 1 to 100, not True"),
        ([asked(0, "x"), answered(0, 0, "y", 5, True), answered(0, 1, "z", 5, True)], "2 answers are chosen"),
        ([asked(0, "x"), answered(0, 0, "y", 5), answered(0, 0, "z", 6)], "the same 'within_turn_id'"),
        ([asked(0, 7)], "no text but a number"),  # type: ignore[arg-type]
    ],
)
def test_a_broken_conversation_costs_only_itself(tmp_path: Path, history: object, reason: str) -> None:
    rows = [conversation("a", "c0", history), conversation("a", "c1")]
    items = list(read("prism", folder(tmp_path, [person("a")], rows)))
    [why] = bad(items)
    assert reason in why
    assert {each.document.id.split(":")[0] for each in of(Authored, items)} == {"survey", "c1"}


def test_rows_that_do_not_join(tmp_path: Path) -> None:
    people = [person("a"), person("a"), person(""), "{", person("b", generated_datetime="soon")]
    rows = [
        conversation("a", "c0"),
        conversation("a", "c0"),
        conversation("nobody", "c1"),
        {"user_id": "a", "conversation_id": "c2"},
    ]
    items = list(read("prism", folder(tmp_path, people, rows)))
    assert [each[:40] for each in bad(items)] == [
        "a second person with the id 'a'",
        "the row has no user: no field 'user_id'",
        "broken JSON: Expecting property name enc",
        "'soon' is no date, or an impossible one;",
        "a second conversation with the id 'c0'",
        "its user 'nobody' is not in survey.jsonl",
        "no field 'conversation_history'; the row",
    ]
    assert [user.id for user in of(User, items)] == ["a"]


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"has no survey\.jsonl"):
        list(read("prism", tmp_path))
    with pytest.raises(BadInputError, match="no folder"):
        list(read("prism", json_lines(tmp_path / "survey.jsonl", [person("a")])))
    with pytest.raises(BadInputError, match=r"has no conversations\.jsonl"):
        list(read("prism", tmp_path))
