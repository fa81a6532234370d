"""The source `personamem`, on small files in the official format, and the CSV reader under it."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError
from penname.records import Authored, BadRow, Request
from penname.sources import read
from penname.sources._tables import table
from penname.store import Store
from sources_helpers import bad, of

COLUMNS = [
    "persona_id", "question_id", "question_type", "topic", "context_length_in_tokens",
    "context_length_in_letters", "distance_to_ref_in_blocks", "distance_to_ref_in_tokens",
    "num_irrelevant_tokens", "distance_to_ref_proportion_in_context", "user_question_or_message",
    "correct_answer", "all_options", "shared_context_id", "end_index_in_shared_context",
]  # fmt: skip
OPTIONS = ['(a) A "dark" tea', "(b) It's coffee,\nblack", "(c) Milk", "(d) Water"]
CONTEXT = [
    {"role": "system", "content": "Current user persona: likes tea."},
    {"role": "user", "content": "User: I drink tea at noon."},
    {"role": "assistant", "content": "Assistant: Noted."},
    {"role": "user", "content": "User: These days I prefer coffee."},
    {"role": "assistant", "content": "Assistant: Coffee, then."},
    {"role": "user", "content": "User: Now I drink water only."},
]


def question(persona: str, id: str, context: str, end: object, **other: str) -> dict[str, str]:  # noqa: A002
    cells = dict.fromkeys(COLUMNS, "1") | {
        "persona_id": persona, "question_id": id, "user_question_or_message": "What shall I drink?",
        "correct_answer": "(b)", "all_options": str(OPTIONS), "shared_context_id": context,
        "end_index_in_shared_context": str(end),
    }  # fmt: skip
    return cells | other


def write(folder: Path, questions: list[dict[str, str]], contexts: list[object], size: str = "32k") -> Path:
    path = folder / f"questions_{size}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(questions)
    lines = [json.dumps(context) + "\n" for context in contexts]
    (folder / f"shared_contexts_{size}.jsonl").write_text("".join(lines))
    return path


def test_a_question_becomes_a_choice_and_what_the_persona_said_a_history(tmp_path: Path) -> None:
    write(tmp_path, [question("7", "q1", "c1", 4)], [{"c1": CONTEXT}])
    items = list(read("personamem", tmp_path))
    assert [type(item) for item in items] == [Authored, Authored, Request]
    assert [(each.user, each.document.id, each.document.text) for each in of(Authored, items)] == [
        ("7", "c1:00001", "I drink tea at noon."),
        ("7", "c1:00003", "These days I prefer coffee."),
    ]
    assert items[-1] == Request(
        id="q1",
        task="choice",
        input="What shall I drink?",
        users=("7",),
        gold="(b)",
        options=tuple(OPTIONS),
    )


def test_a_question_sees_only_its_context_up_to_its_end(tmp_path: Path) -> None:
    questions = [question("7", "q1", "c1", 2), question("7", "q2", "c1", 6), question("7", "q3", "c2", 2),
                 question("8", "q4", "c3", 0)]  # fmt: skip
    path = write(tmp_path, questions, [{"c1": CONTEXT, "c2": CONTEXT[:4]}, {"c3": CONTEXT}])
    with Store(tmp_path / "penname.db") as store:
        store.add(read("personamem", path, prefix="pm/"))
        seen = {}
        for user in (store.user("pm/7"), store.add_user("pm/8")):
            for request in user.requests():
                documents = user.documents(exclude=request.exclude)
                seen[request.id] = [document.id for document in documents]
    assert seen == {
        "pm/q1": ["c1:00001"],
        "pm/q2": ["c1:00001", "c1:00003", "c1:00005"],
        "pm/q3": ["c2:00001"],
        "pm/q4": [],
    }


def test_a_long_name_of_a_context_is_short_in_the_documents_ids(tmp_path: Path) -> None:
    names = ["ab" * 32, "ab" * 31 + "cd"]
    questions = [question("7", f"q{place}", name, 2) for place, name in enumerate(names)]
    items = list(read("personamem", write(tmp_path, questions, [{name: CONTEXT} for name in names])))
    documents = [each.document for each in of(Authored, items)]
    assert [document.fields for document in documents] == [{"context": name, "message": 1} for name in names]
    assert [len(document.id) for document in documents] == [18, 18]
    assert [request.exclude for request in of(Request, items)] == [(documents[1].id,), (documents[0].id,)]


def test_sizes_of_a_folder(tmp_path: Path) -> None:
    for size in ("32k", "1M"):
        write(tmp_path, [question("7", f"q{size}", "c1", 4)], [{"c1": CONTEXT}], size)
    assert [request.id for request in of(Request, read("personamem", tmp_path, split="1m"))] == ["q1M"]
    with pytest.raises(BadInputError, match="has the sizes 1M, 32k"):
        list(read("personamem", tmp_path))
    with pytest.raises(BadInputError, match="no questions_128k"):
        list(read("personamem", tmp_path, split="128k"))
    with pytest.raises(BadInputError, match="no folder"):
        list(read("personamem", tmp_path / "questions_32k.csv", split="32k"))
    (tmp_path / "shared_contexts_32k.jsonl").rename(tmp_path / "elsewhere.jsonl")
    with pytest.raises(BadInputError, match=r"no file shared_contexts_32k\.jsonl"):
        list(read("personamem", tmp_path, split="32k"))


def test_what_does_not_fit_together_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    questions = [
        question("7", "q1", "c1", 4),
        question("7", "q1", "c1", 4),
        question("7", "q2", "c9", 4),
        question("7", "q3", "c1", 4, correct_answer="(e)"),
        question("7", "q4", "c1", "two"),
        question("", "q5", "c1", 4),
        question("7", "q6", "c1", 4, all_options="__import__('os')"),
        question("7", "q7", "c1", 4, all_options="['(a) x', '(a) x']"),
        question("7", "q8", "c1", 40),
    ]
    contexts: list[object] = [{"c1": CONTEXT}, {"c1": CONTEXT}, {"c2": CONTEXT}, [1]]
    path = write(tmp_path, questions, contexts)
    items = list(read("personamem", path))
    assert [request.id for request in of(Request, items)] == ["q1"]
    [asked] = of(Request, items)  # sees nothing of what only a question that is left out would see
    assert [each.document.id for each in of(Authored, items) if each.document.id not in asked.exclude] == [
        "c1:00001",
        "c1:00003",
    ]
    lost = "is not in shared_contexts_32k.jsonl, or broken there"
    assert bad(items) == [
        "a second question with the id 'q1'",
        "the correct answer '(e)' begins none, or several, of the options",
        "'end_index_in_shared_context' is no number of messages: 'two'",
        "the cell 'persona_id' is empty",
        "'all_options' is no list of at least two texts",
        "'all_options' has an empty option, or one twice",
        "a second context 'c1'",
        "no question has the context 'c2'",
        "a row is a JSON object {…}, not a list",
        f"the question 'q2' is left out: its context 'c9' {lost}",
        "the question 'q8' is left out: its context 'c1' has 6 messages, and it sees 40",
    ]
    assert [item.line for item in of(BadRow, items)][:2] == [3, 5]


def test_a_broken_message_costs_its_context_only(tmp_path: Path) -> None:
    nul = [*CONTEXT[:3], {"role": "user", "content": "User: a\0b"}, CONTEXT[5]]
    questions = [question("7", "q1", "c1", 5), question("7", "q2", "c2", 1)]
    questions.append(question("7", "q3", "c3", 3))
    contexts: list[object] = [{"c1": nul, "c2": [{"role": "user"}], "c3": CONTEXT}]
    items = list(read("personamem", write(tmp_path, questions, contexts)))
    assert bad(items)[0].startswith("the field 'content': the text holds a NUL")
    assert bad(items)[1] == "message 1 of 'c2' has no 'content'"
    assert [request.id for request in of(Request, items)] == ["q3"]


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "questions_32k.csv").write_text("persona_id,question\n1,2\n")
    (tmp_path / "shared_contexts_32k.jsonl").write_text("")
    with pytest.raises(BadInputError, match="no column 'question_id'"):
        list(read("personamem", tmp_path))
    (tmp_path / "questions_32k.csv").write_text("")
    with pytest.raises(BadInputError, match="is empty"):
        list(read("personamem", tmp_path))


# --- the CSV reader


def rows(folder: Path, content: bytes) -> list[tuple[int, dict[str, str]] | BadRow]:
    path = folder / "t.csv"
    path.write_bytes(content)
    return list(table(path, ("a", "b")))


def test_a_broken_row_of_a_table_costs_only_itself(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfa,b\r\n1,2\r\n3\r\n\r\n"4"x,5\r\n"6\r\n\r\n7",8\r\n9,"never closed\r\n'
    found = rows(tmp_path, content)
    assert [(each.line, each.why[:11]) if isinstance(each, BadRow) else each for each in found] == [
        (2, {"a": "1", "b": "2"}),
        (3, "1 cells, an"),
        (5, "broken CSV:"),
        (6, {"a": "6\r\n\r\n7", "b": "8"}),
        (9, "broken CSV:"),
    ]
    assert rows(tmp_path, gzip.compress(b"b,a\n1,2")) == [(2, {"b": "1", "a": "2"})]


CELL = st.text(st.sampled_from('ab",\n\r é'), max_size=6)


@given(cells=st.lists(st.tuples(CELL, CELL), max_size=6))
def test_the_table_agrees_with_csv(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("a", "b"), *cells])
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_bytes(out.getvalue().encode())
    found = [tuple(each[1].values()) for each in table(path, ("a", "b")) if not isinstance(each, BadRow)]
    assert found == [pair for pair in cells if any(pair)]
