"""The source `markdown`: front matter, titles, links and files that cannot be used."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError, EmptySourceError
from penname.records import Authored, BadRow, Document, Item
from penname.sources import read

BOMB = "a: &a [1]\n" + "".join(
    f"{n}: &{n} [" + f"*{m}," * 50 + "]\n" for m, n in ("ab", "bc", "cd", "de", "ef")
)
MATTER = "---\nauthor: ann\n---\n"


def page(folder: Path, content: str | bytes, name: str = "page.md", **options: Any) -> list[Item]:
    path = folder / "pages" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return list(read("markdown", folder / "pages", **options))


def only(items: list[Item]) -> Document:
    (item,) = items
    assert isinstance(item, Authored)
    return item.document


def test_a_file_is_a_document_of_its_author(tmp_path: Path) -> None:
    matter = "author: Ann\ntitle: Rain\ndate: 2024-03-01\ntags: [a, b]\nseen: 2024-03-02"
    (item,) = page(tmp_path, f"---\n{matter}\n---\n\n# Head\n\nText.\n", "sub/a page.markdown")
    assert isinstance(item, Authored)
    assert item.user == "Ann"
    assert item.document == Document(
        id="sub/a page.markdown", title="Rain", text="# Head\n\nText.",
        written_at=datetime(2024, 3, 1, tzinfo=UTC), fields={"tags": ["a", "b"], "seen": "2024-03-02"},
    )  # fmt: skip


@pytest.mark.parametrize("matter", ["author: [b, a]", "authors: [b, a]", "authors:\n- b\n- a"])
def test_several_authors(tmp_path: Path, matter: str) -> None:
    items = page(tmp_path, f"---\n{matter}\n---\nText")
    assert [(i.user, i.document.position) for i in items if isinstance(i, Authored)] == [("b", 0), ("a", 1)]


def test_the_author_of_files_that_name_none_can_be_given(tmp_path: Path) -> None:
    (told,) = page(tmp_path, "Text.")
    assert isinstance(told, BadRow)
    assert "no author" in told.why
    (item,) = page(tmp_path, "Text.", author="bob")
    assert isinstance(item, Authored)
    assert item.user == "bob"
    (item,) = page(tmp_path, MATTER + "Text.", author="bob")
    assert isinstance(item, Authored)
    assert item.user == "ann"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Text\n\n## Head ##\n# Other", "Head"),
        ("```sh\n# no\n```\n# Yes", "Yes"),
        ("~~~~\n```\n# no\n~~~~\n# Yes", "Yes"),
        ("#no\ntext", ""),
    ],
)
def test_titles(tmp_path: Path, text: str, title: str) -> None:
    assert only(page(tmp_path, MATTER + text)).title == title


def test_rules_of_dashes_are_no_front_matter(tmp_path: Path) -> None:
    text = "Before.\n\n---\n\nkept: yes\n\n---\n\nAfter."
    assert only(page(tmp_path, text, author="a")).text == text
    assert only(page(tmp_path, MATTER + text)).text == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("---\nauthor: a\nText", "never closed"),
        ("---\nauthor: [\n---\nText", "broken front matter"),
        ("---\n- a\n---\nText", "no mapping"),
        ("---\njust words\n---\nText", "no mapping"),
        ("---\nauthor: {name: a}\n---\nText", "a mapping"),
        ("---\nauthor: a\ndate: 2024-02-30\n---\nText", "impossible"),
        ("---\nauthor: a\ndate: 2024\n---\nText", "2024"),
        ("---\nauthor: a\ntitle: [x]\n---\nText", "a list"),
        ("---\nauthor: a\nx: .nan\n---\nText", "nan"),
        ("---\nauthor: a\nx: !!binary aGk=\n---\nText", "bytes"),
        ("---\nauthor: a\nx: !!python/object/apply:os.system ['true']\n---\nText", "broken front matter"),
        ("---\nauthor: a\nx: &x [*x]\n---\nText", "nested"),
        ("---\nauthor: a\n" + BOMB + "---\nText", "more than"),
        ("---\nauthor: a\nx: " + "[" * 5000 + "\n---\nText", "front matter"),
        ("---\nauthor: a\n---\n \n", "no text"),
        (b"---\nauthor: a\n---\nok\ncaf\xe9", "not UTF-8: unexpected end of data in line 5"),
        (MATTER + "x\0", "NUL"),
        (MATTER + "x" * 5_000_000, "the limit"),
        (b"x" * (33 << 20), "32 MB"),
        (b"\x89PNG\r\n\0", "not UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_and_the_rest_is_kept(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    page(tmp_path, MATTER + "Good.", "z.md")
    told, good = page(tmp_path, content)
    assert isinstance(told, BadRow)
    assert reason in told.why
    assert told.file.endswith("page.md")
    assert isinstance(good, Authored)


def test_files_come_sorted_and_links_do_not_lead_out(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.md", ".hidden.md", ".git/x.md", "note.txt", "C.MD"):
        page(tmp_path, MATTER + name, name)
    (tmp_path / "secret.md").write_text(MATTER + "secret")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s.md").write_text(MATTER + "secret")
    pages = tmp_path / "pages"
    (pages / "out.md").symlink_to(tmp_path / "secret.md")
    (pages / "dir").symlink_to(tmp_path / "out")
    (pages / "loop.md").symlink_to(pages / "loop.md")
    (pages / "in.md").symlink_to(pages / "b.md")
    os.mkfifo(pages / "pipe.md")
    items = list(read("markdown", pages))
    assert [item.document.id for item in items if isinstance(item, Authored)] == [
        "C.MD",
        "b.md",
        "in.md",
        "a/z.md",
    ]
    told = {Path(item.file).name: item.why for item in items if isinstance(item, BadRow)}
    assert set(told) == {"out.md", "loop.md", "pipe.md"}
    assert "leads out" in told["out.md"]
    assert "no regular file" in told["pipe.md"]


def test_a_name_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    page(tmp_path, MATTER + "Good.")
    Path(os.fsdecode(bytes(tmp_path / "pages") + b"/\xff.md")).write_text(MATTER + "x")
    good, told = read("markdown", tmp_path / "pages")
    assert isinstance(good, Authored)
    assert isinstance(told, BadRow)
    assert "surrogate" in told.why


def test_paths_that_are_no_folders(tmp_path: Path) -> None:
    page(tmp_path, "x")
    for path in (tmp_path / "pages" / "page.md", tmp_path / "missing"):
        with pytest.raises(BadInputError, match="no folder"):
            list(read("markdown", path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptySourceError):
        list(read("markdown", tmp_path / "empty"))


PIECES = [
    "---\n",
    "author: a\n",
    "x: &a [*a]\n",
    "? [a]\n",
    "{",
    "!!set {a}\n",
    "date: 1\n",
    "# H\n",
    "text",
    "\t",
    "%",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=10), max_size=12))
def test_no_file_raises_anything_but_our_own_errors(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str]
) -> None:
    content = "".join(pieces).encode("utf-8", "surrogatepass")
    assert page(tmp_path_factory.getbasetemp() / "any", content, author="b")
