"""The sources `lamp` and `longlamp`, on small files in the exact official formats, and their array reader."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError, EmptySourceError
from penname.records import Authored, BadRow, Item, Request
from penname.sources import read
from penname.sources._arrays import Scan, objects

PROFILES: dict[int, tuple[dict[str, Any], str, str]] = {  # task → profile entry, its text, its title
    1: ({"id": "p1", "title": "Old roads", "abstract": "We map roads."}, "We map roads.", "Old roads"),
    2: ({"id": "p1", "description": "A ship sinks.", "tag": "sad ending"}, "A ship sinks.", ""),
    3: ({"id": "p1", "text": "Works well.", "score": "5"}, "Works well.", ""),
    4: ({"id": "p1", "title": "Rain ahead", "text": "It will rain."}, "It will rain.", "Rain ahead"),
    5: ({"id": "p1", "title": "Old roads", "abstract": "We map roads."}, "We map roads.", "Old roads"),
    6: ({"id": "p1", "title": "Lunch", "text": "Shall we eat?"}, "Shall we eat?", "Lunch"),
    7: ({"id": "p1", "text": "good morning all"}, "good morning all", ""),
}


def lamp(folder: Path, task: int, split: str = "dev", golds: bool = True, questions: int = 2) -> Path:
    """Questions and outputs of a task, each question with one profile entry; the questions' path."""
    asked = [
        {"id": f"{task}{i}", "input": f"Question {i}?", "profile": [PROFILES[task][0]]}
        for i in range(questions)
    ]
    path = folder / f"{split}_questions.json"
    path.write_text(json.dumps(asked))
    if golds:
        rows = [{"id": row["id"], "output": gold(task, row["id"])} for row in asked]
        outputs = {"task": f"LaMP_{task}", "golds": rows}
        (folder / f"{split}_outputs.json").write_text(json.dumps(outputs))
    return path


def gold(task: int, question: object) -> str:
    return "dark comedy" if task == 2 else f"gold {question}"


def bad(items: list[Item]) -> list[str]:
    return [item.why for item in items if isinstance(item, BadRow)]


@pytest.mark.parametrize("task", PROFILES)
def test_each_task_gives_documents_and_requests(tmp_path: Path, task: int) -> None:
    entry, text, title = PROFILES[task]
    items = list(read("lamp", lamp(tmp_path, task)))
    assert [type(item) for item in items] == [Authored, Request] * 2
    first, request = items[:2]
    assert isinstance(first, Authored)
    assert isinstance(request, Request)
    assert (first.user, first.document.id, first.document.text, first.document.title) == (
        f"{task}0", "p1", text, title,
    )  # fmt: skip
    further = {"tag", "score"} & set(entry)
    assert first.document.fields == {name: entry[name] for name in further}
    assert request == Request(
        id=f"{task}0",
        task=f"LaMP-{task}",
        input="Question 0?",
        users=(f"{task}0",),
        gold=gold(task, f"{task}0"),
    )


def test_the_news_of_lamp_2_s_first_release_are_refused(tmp_path: Path) -> None:
    path = lamp(tmp_path, 2)
    rows = [{"id": "20", "output": "dark comedy"}, {"id": "21", "output": "style & beauty"}]
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_2", "golds": rows}))
    with pytest.raises(BadInputError, match=r"dev_outputs\.json: the label 'style & beauty' is no movie tag"):
        list(read("lamp", path))


def test_a_folder_gives_all_splits_or_one(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        lamp(tmp_path, 4, split, questions=1 if split == "dev" else 3)
    assert sum(isinstance(item, Request) for item in read("lamp", tmp_path)) == 4
    assert sum(isinstance(item, Request) for item in read("lamp", tmp_path, split="dev")) == 1
    with pytest.raises(BadInputError, match=r"train_questions\.json"):
        list(read("lamp", tmp_path, split="tset"))
    with pytest.raises(BadInputError, match="no folder"):
        list(read("lamp", tmp_path / "dev_questions.json", split="dev"))


def test_the_test_split_has_no_golds_and_needs_its_task(tmp_path: Path) -> None:
    path = lamp(tmp_path, 4, "test", golds=False)
    with pytest.raises(BadInputError, match="does not say its task"):
        list(read("lamp", path))
    requests = [item for item in read("lamp", path, task="LaMP_4") if isinstance(item, Request)]
    assert [request.gold for request in requests] == [None, None]
    with pytest.raises(BadInputError, match="unknown task 'LaMP-8'"):
        list(read("lamp", path, task="LaMP-8"))
    with pytest.raises(BadInputError, match="LaMP-3 was given, but its outputs file says LaMP-4"):
        list(read("lamp", lamp(tmp_path, 4), task="LaMP-3"))


def test_users_dates_and_prefix(tmp_path: Path) -> None:
    path = tmp_path / "dev_questions.json"
    entries = [{"id": "1", "text": "a", "date": "2013-05-05"}, {"id": "2", "text": "b", "date": "2014"}]
    path.write_text(json.dumps([{"id": "10", "user_id": "77", "input": "i", "profile": entries}]))
    first, second, request = read("lamp", path, task="LaMP-7", prefix="L7/")
    assert isinstance(first, Authored)
    assert isinstance(second, Authored)
    assert isinstance(request, Request)
    assert first.user == "L7/77" == request.users[0]
    assert first.document.written_at == datetime(2013, 5, 5, tzinfo=UTC)
    assert second.document.written_at == datetime(2014, 12, 31, tzinfo=UTC)
    assert second.document.fields == {"date": "2014"}


def test_what_does_not_fit_together_is_told(tmp_path: Path) -> None:
    path = lamp(tmp_path, 4)
    golds = [
        {"id": "40", "output": "g"},
        {"id": "40", "output": "h"},
        {"id": "9"},
        {"id": "99", "output": "x"},
    ]
    outputs = {"task": "LaMP_4", "golds": [*golds, 5]}
    (tmp_path / "dev_outputs.json").write_text(json.dumps(outputs))
    questions = [*json.loads(path.read_text()), {"id": "40", "input": "again", "profile": []}, {"input": "x"}]
    path.write_text(json.dumps(questions))
    items = list(read("lamp", path))
    assert sum(isinstance(item, Request) for item in items) == 2
    assert bad(items) == [
        "gold 2: a second gold with the id '40'",
        "gold 3: a gold needs the fields 'id' and 'output'",
        "gold 5: not an object",
        "the question '41' has no gold in dev_outputs.json",
        "a second question with the id '40'",
        "the question has no 'id'",
        "the gold '99' has no question in dev_questions.json",
    ]


def test_a_bad_profile_entry_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    entries = [{"id": "1", "txt": "a"}, 3, {"id": "2", "text": ""}, {"id": "3", "text": "ok"},
               {"id": "4", "text": "x", "date": "2013-02-30"}]  # fmt: skip
    path.write_text(json.dumps([{"id": "1", "input": "i", "profile": entries}]))
    items = list(read("lamp", path, task="LaMP-7"))
    assert [type(item) for item in items] == [BadRow, BadRow, BadRow, Authored, BadRow, Request]
    assert bad(items)[0] == "profile entry 1: no field 'text'; the entry has 'id', 'txt'"
    assert "impossible" in bad(items)[3]


@pytest.mark.parametrize("content", [b"{}", b'{"golds": 3}', b"[", b"\xff", b"[" * 100_000])
def test_a_broken_outputs_file_stops_the_import(tmp_path: Path, content: bytes) -> None:
    path = lamp(tmp_path, 4)
    (tmp_path / "dev_outputs.json").write_bytes(content)
    with pytest.raises(BadInputError, match=r"dev_outputs\.json"):
        list(read("lamp", path))


LONG = [
    ({"name": "Ann Lee", "input": "Write an abstract", "output": "We show.", "profile": [
        {"id": "a1", "title": "T", "abstract": "We did.", "year": 2015}]},
     "Ann Lee", "LongLaMP-abstract", "We did.", "T", {"year": 2015}),
    ({"author": "u_42", "input": "Write a post", "output": "So today", "profile": [
        {"id": "t1", "author": "u_42", "summary": "S", "content": "Long post."}]},
     "u_42", "LongLaMP-topic", "Long post.", "S", {"author": "u_42"}),
    ({"reviewerId": "R1", "input": "Write a review", "output": "Nice.", "profile": [
        {"overall": "5.0", "summary": "S", "description": "A cup.", "reviewText": "I like it."}]},
     "R1", "LongLaMP-review", "I like it.", "S", {"overall": "5.0", "description": "A cup."}),
    ({"id": "e7", "input": "Complete the e-mail", "output": "Dear all", "profile": [
        {"id": "m1", "title": "Lunch", "text": "Shall we?"}]},
     "e7", "LongLaMP-email", "Shall we?", "Lunch", {}),
    ({"author": "u", "input": "i", "output": "o", "profile": [{"id": "t", "input": "S", "output": "Post."}]},
     "u", "LongLaMP-topic", "Post.", "S", {}),
]  # fmt: skip


@pytest.mark.parametrize("as_array", [True, False])
@pytest.mark.parametrize(("row", "user", "task", "text", "title", "fields"), LONG)
def test_longlamp_rows(
    tmp_path: Path,
    row: dict[str, Any],
    user: str,
    task: str,
    text: str,
    title: str,
    fields: object,
    as_array: bool,
) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([row], indent=1) if as_array else json.dumps(row) + "\n")
    document, request = read("longlamp", path)
    assert isinstance(document, Authored)
    assert isinstance(request, Request)
    assert (document.user, request.users, request.task) == (user, (user,), task)
    assert (request.input, request.gold) == (row["input"], row["output"])
    assert (document.document.text, document.document.title, document.document.fields) == (
        text,
        title,
        fields,
    )


def test_longlamp_folders_tasks_and_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(LONG[0][0]) + "\n")
    rows = [
        {"input": "x"},
        {"name": "", "input": "x", "profile": []},
        {"name": "a", "input": "x", "profile": []},
    ]
    (tmp_path / "val.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert len(list(read("longlamp", tmp_path, split="train"))) == 2
    items = list(read("longlamp", tmp_path, split="val"))
    assert [type(item) for item in items] == [BadRow, BadRow, Request]
    assert "give the task" in bad(items)[0]
    assert "no user" in bad(items)[1]
    assert len(list(read("longlamp", tmp_path))) == 5
    with pytest.raises(BadInputError, match="unknown task 'mail'"):
        list(read("longlamp", tmp_path, task="mail"))
    with pytest.raises(BadInputError, match="test"):
        list(read("longlamp", tmp_path, split="test"))


def array(folder: Path, content: bytes) -> list[tuple[int, dict[str, Any]] | BadRow]:
    path = folder / "array.json"
    path.write_bytes(content)
    return list(objects(path))


def test_a_broken_element_costs_only_itself(tmp_path: Path) -> None:
    content = b'[\n{"a": 1},\n{"a": [1,]},\n{"b": "\xff"},\n{"c": NaN},\n3,\n\n{"d": "]}\\"\\\\"}]\n'
    found = array(tmp_path, content)
    assert [(each.line, each.why[:11]) if isinstance(each, BadRow) else each for each in found] == [
        (2, {"a": 1}),
        (3, "broken JSON"),
        (4, "not UTF-8: "),
        (5, "NaN is no J"),
        (6, "a row is a "),
        (8, {"d": ']}"\\'}),
    ]


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (b"", "in element 2"),
        (b',{"b": 2', "in element 2"),
        (b',{"b": "2}]', "in element 2"),
        (b"] x", "after the end"),
        (b",}]", "nothing opened"),
        (b",]", "comma too many"),
        (b",,{}]", "comma too many"),
    ],
)
def test_what_cannot_be_read_on_is_told_with_its_line(tmp_path: Path, end: bytes, reason: str) -> None:
    first, second, *_ = array(tmp_path, b'[\n{"a": 1}\n' + end)
    assert first == (2, {"a": 1})
    assert isinstance(second, BadRow)
    assert reason in second.why
    assert second.line >= 2


@pytest.mark.parametrize("content", [b'["', b"[}", b'[{"a": 1', b'[{"a": \0}'])
def test_a_file_that_is_broken_from_the_start_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadInputError):
        array(tmp_path, content)


def test_an_empty_array_is_an_empty_source(tmp_path: Path) -> None:
    assert array(tmp_path, b" [ ] \n") == []
    with pytest.raises(EmptySourceError):
        list(read("longlamp", tmp_path / "array.json"))


def test_an_element_that_is_too_long_is_passed_over() -> None:
    content = b'[{"a": 1},\n{"b":\n "' + b"\\\\" * 500 + b'", "c": [\n1]},\n\n{"d": 4}]'
    for size in (1, 7, 64):
        scan = Scan(Path("f"), limit=100)
        found = list(scan.run(content[i : i + size] for i in range(0, len(content), size)))
        assert found[0] == (1, b'{"a": 1}')
        assert isinstance(found[1], BadRow)
        assert found[1].why.startswith("element 2 is longer")
        assert found[2] == (6, b'{"d": 4}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10)
    | st.sampled_from(['"', "\\", "]}", ",", "\\\\\""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    values=st.lists(JSON, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    size=st.integers(1, 50),
)
def test_the_scan_agrees_with_json(
    values: list[Any], indent: int | None, ascii_only: bool, size: int
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    content = text.encode("utf-8", "surrogatepass")
    found = list(Scan(Path("f")).run(content[i : i + size] for i in range(0, len(content), size)))
    assert [
        json.loads(each[1].decode("utf-8", "surrogatepass")) for each in found if isinstance(each, tuple)
    ] == values
    assert [each[0] for each in found if isinstance(each, tuple)] == _lines(values, text, indent)


def _lines(values: list[Any], text: str, indent: int | None) -> list[int]:
    """Where json.dumps puts each element: with an indent, each begins a line after the last one's."""
    if indent is None:
        return [1] * len(values)
    lines, at = [], 2
    for value in values:
        lines.append(at)
        at += json.dumps(value, indent=indent).count("\n") + 1
    return lines


@given(
    content=st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b'"', b"\\", b",", b"1", b" ", b"\n"])).map(
        b"".join
    )
)
def test_any_bytes_give_elements_or_our_own_error(content: bytes) -> None:
    whole: list[object] = []
    for size in (1, len(content) or 1):
        try:
            stream = (content[i : i + size] for i in range(0, len(content), size))
            whole.append(
                [each if isinstance(each, tuple) else each.why for each in Scan(Path("f")).run(stream)]
            )
        except BadInputError as error:
            whole.append(str(error))
    assert whole[0] == whole[1]
