"""The source `psw`, on a small folder as the authors' notebooks write it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from penname.errors import BadInputError
from penname.records import Authored, Request, User
from penname.sources import read
from sources_helpers import bad, of


def paper(title: str, **other: Any) -> dict[str, Any]:
    return {"title": title, "abstract": f"{title}, in short.", "year": 2020} | other


AUTHORS: dict[str, Any] = {
    "11": {
        "name": "Ann Lee", "interests": ["clocks", "springs"],
        "papers": [paper("On Clocks", paperId="p1"), paper("Springs", fieldsOfStudy=["x"])],
    },
    "12": {"papers": [paper("On  clocks", paperId="other copy"), paper("Gears", paperId="p3", year=None)]},
}  # fmt: skip
PAPERS: dict[str, Any] = {
    "p1": {
        "paperId": "p1", "title": "On Clocks", "abstract": "We mend clocks.", "year": 2021,
        "authors": ["11", "12"], "references": [{"title": "Time"}, {"title": None}, "Space"],
    },
    "p9": paper("Wheels", authors=[{"authorId": 12, "name": "Bo"}], research_questions=["Round?", "Or not?"]),
}  # fmt: skip


def folder(path: Path, authors: object = AUTHORS, papers: object = PAPERS, **tables: str) -> Path:
    (path / "author_json.json").write_text(json.dumps(authors))
    (path / "paper_json.json").write_text(json.dumps(papers))
    for name, text in tables.items():
        (path / f"{name}.tsv").write_text(text)
    return path


def test_authors_become_users_with_their_papers(tmp_path: Path) -> None:
    items = list(read("psw", folder(tmp_path), prefix="psw/"))
    assert bad(items) == []
    assert of(User, items) == [User(id="psw/11", name="Ann Lee"), User(id="psw/12")]
    first, second, *_ = of(Authored, items)
    assert (first.user, first.document.id, first.document.title) == ("psw/11", "p1", "On Clocks")
    assert first.document.text == "On Clocks, in short."
    assert first.document.written_at == datetime(2020, 12, 31, tzinfo=UTC)
    assert second.document.fields == {"fieldsOfStudy": ["x"]}
    assert len(second.document.id) == 32
    assert of(Authored, items)[-1].document.written_at is None


def test_each_task_takes_what_the_paper_has(tmp_path: Path) -> None:
    tables = {
        "paper_research_questions": "p1\t1. Why? 2. How? 3. When?\n",
        "author_interests": "12\t['gears', 'wheels']\n11\t['not these']\n",
    }
    requests = of(Request, read("psw", folder(tmp_path, **tables)))
    both, hidden = ("11", "12"), ("other copy", "p1")
    questions = "1. Why? 2. How? 3. When?"
    assert [(each.task, each.users, each.input, each.gold, each.exclude) for each in requests] == [
        ("PSW-0", ("11",), "My research interests", "clocks, springs", ()),
        ("PSW-0", ("12",), "My research interests", "gears, wheels", ()),
        ("PSW-1", both, "Time\nSpace", "On Clocks", hidden),
        ("PSW-2", both, "Title: On Clocks\n\nReferences:\nTime\nSpace", questions, hidden),
        ("PSW-3", both, f"Title: On Clocks\n\nResearch questions:\n{questions}", "We mend clocks.", hidden),
        ("PSW-4", both, "We mend clocks.", "On Clocks", hidden),
        (
            "PSW-3",
            ("12",),
            "Title: Wheels\n\nResearch questions:\nRound?\nOr not?",
            "Wheels, in short.",
            ("p9",),
        ),
        ("PSW-4", ("12",), "Wheels, in short.", "Wheels", ("p9",)),
    ]
    assert len({each.id for each in requests}) == len(requests)


@pytest.mark.parametrize(("task", "number"), [("PSW-4", 2), ("UP-0", 1), ("PSW-2", 0)])
def test_one_task(tmp_path: Path, task: str, number: int) -> None:
    requests = of(Request, read("psw", folder(tmp_path), task=task))
    assert [each.task for each in requests] == [task.replace("UP", "PSW")] * number


def test_what_cannot_be_used_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    authors = AUTHORS | {
        "13": 5,
        "14": {"papers": [7, {"title": "No abstract", "abstract": None}, paper("Fine")]},
        " ": {"papers": []},
        "15": {"papers": [], "interests": 3},
    }
    papers = PAPERS | {
        "p2": 3,
        "p4": paper("Alone", authors=["99"]),
        "p5": paper("Half", authors=["11", "98"]),
        "p6": paper("Nobody", authors=[]),
        "p7": paper("Twice", authors=["11", "11"]),
        "p8": paper("Asked", authors=["11"], research_questions="[1"),
    }
    tables = {
        "paper_research_questions": "p1\tWhy?\np1\tHow?\nno tab\n\nq\tWhat?\n",
        "author_interests": "97\t['x']\n",
    }
    items = list(read("psw", folder(tmp_path, authors, papers, **tables)))
    assert bad(items) == [
        "author '13': no object with a list 'papers'",
        "author '14', paper 1: not an object",
        "author '14', paper 2: no field 'abstract'; the row has 'title', 'abstract'",
        "author ' ': user id ' ' is empty or begins or ends with a blank",
        "the author '97' is not in author_json.json",
        "author '15': 'interests' is no list of texts",
        "a second line with the id 'p1'",
        "the line is not an id, a tab and a text",
        "paper 'p2': not an object",
        "paper 'p4': none of its authors is in author_json.json",
        "paper 'p5': its author '98' is not in author_json.json",
        "paper 'p6': 'authors' is empty, or an author has no id",
        "paper 'p7': a user is named twice in ('11', '11')",
        "paper 'p8': 'research_questions' is no list of texts",
        "the paper 'q' is not in paper_json.json",
    ]
    assert {each.users for each in of(Request, items) if each.id.endswith("p5")} == {("11", "98")}


@pytest.mark.parametrize("content", ["[", "[]", '{"a": 1, "a": 2}', "\udcff", "[" * 100_000])
def test_a_broken_file_stops_the_import(tmp_path: Path, content: str) -> None:
    path = folder(tmp_path)
    (path / "paper_json.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInputError, match=r"paper_json\.json"):
        list(read("psw", path))


def test_no_such_task_or_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="unknown task 'PSW-5'"):
        list(read("psw", folder(tmp_path), task="PSW-5"))
    with pytest.raises(BadInputError, match="no folder"):
        list(read("psw", tmp_path / "paper_json.json"))
    (tmp_path / "author_json.json").unlink()
    with pytest.raises(BadInputError, match="no file"):
        list(read("psw", tmp_path))
