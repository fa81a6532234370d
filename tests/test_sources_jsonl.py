"""The source `jsonl`: fields, authors, dates, penname's own rows, and rows that cannot be used."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError, EmptySourceError, PennameError, UnknownSourceError
from penname.records import (
    MAX_TEXT,
    Authored,
    BadRow,
    Document,
    Item,
    Preference,
    Profile,
    Request,
    StyleFacts,
    User,
)
from penname.sources import SOURCES, read

GOOD = {"user": "ann", "text": "Hello there."}


def rows(folder: Path, *lines: object, **options: Any) -> list[Item]:
    """The items of a file with these rows: objects, or raw lines as text or bytes."""
    path = folder / "rows.jsonl"
    raw = [each if isinstance(each, bytes | str) else json.dumps(each) for each in lines]
    path.write_bytes(b"".join((each if isinstance(each, bytes) else each.encode()) + b"\n" for each in raw))
    return list(read("jsonl", path, **options))


def only(items: list[Item]) -> Document:
    (item,) = items
    assert isinstance(item, Authored)
    return item.document


def complaint(items: list[Item], line: int = 1) -> str:
    """The reason of the only BadRow; what follows it must be the good row."""
    bad = [item for item in items if isinstance(item, BadRow)]
    assert [row.line for row in bad] == [line]
    assert str(bad[0]).startswith(f"{bad[0].file}:{line}: ")
    assert [item.user for item in items if isinstance(item, Authored)] == ["ann"]
    return bad[0].why


def test_reads_the_usual_fields_and_keeps_the_others(tmp_path: Path) -> None:
    row = {**GOOD, "id": 7, "title": "T", "date": "2024-03-01", "tags": ["a"], "n": 1.5}
    document = only(rows(tmp_path, row))
    assert (document.id, document.title, document.text) == ("7", "T", "Hello there.")
    assert document.written_at == datetime(2024, 3, 1, tzinfo=UTC)
    assert document.fields == {"tags": ["a"], "n": 1.5}


def test_the_fields_can_be_named(tmp_path: Path) -> None:
    row = {"by": 12, "body": "Text", "head": "H", "when": 1710000000, "key": "k", "title": "kept"}
    options = {"user_field": "by", "text_field": "body", "title_field": "head"}
    (item,) = rows(tmp_path, row, **options, date_field="when", id_field="key")
    assert isinstance(item, Authored)
    assert (item.user, item.document.id, item.document.title) == ("12", "k", "H")
    assert item.document.written_at == datetime.fromtimestamp(1710000000, UTC)
    assert item.document.fields == {"title": "kept"}


def test_a_list_of_users_gives_each_the_document_with_its_place(tmp_path: Path) -> None:
    items = rows(tmp_path, {"user": ["b", "a"], "text": "Together."})
    found = [(i.user, i.document.position, i.document.n_authors) for i in items if isinstance(i, Authored)]
    assert found == [("b", 0, 2), ("a", 1, 2)]
    assert len({i.document.id for i in items if isinstance(i, Authored)}) == 1


def test_a_named_field_that_no_row_has_is_told_at_the_end(tmp_path: Path) -> None:
    items = rows(tmp_path, GOOD, GOOD, date_field="written", title_field="head")
    assert [type(item) for item in items] == [Authored, Authored, BadRow, BadRow]
    assert "'head'" in str(items[2])
    assert "'written'" in str(items[3])
    assert not any(
        isinstance(item, BadRow) for item in rows(tmp_path, GOOD, {**GOOD, "d": ""}, date_field="d")
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{broken", "broken JSON"),
        (b'{"user": "a", "text": "\xff"}', "not UTF-8"),
        ('{"user": "a', "Unterminated string starting at character 10"),
        ("[1, 2]", "a JSON object {…}, not a list"),
        ("null", "a JSON object {…}, not null"),
        ({"text": "no user"}, "no field 'user'; the row has 'text'"),
        ({"user": "a"}, "no field 'text'"),
        ({"user": "", "text": "x"}, "no user"),
        ({"user": [], "text": "x"}, "no user"),
        ({"user": None, "text": "x"}, "no user"),
        ({"user": {"a": 1}, "text": "x"}, "a mapping"),
        ({"user": True, "text": "x"}, "true or false"),
        ({"user": ["a", "a"], "text": "x"}, "twice"),
        ({"user": "a\0b", "text": "x"}, "NUL"),
        ({"user": "a\nb", "text": "x"}, "control character"),
        ({"user": "u" * 10_000, "text": "x"}, "10,000 characters"),
        ({"user": "\ud800", "text": "x"}, "lone surrogate"),
        ({"user": "a", "text": "x\ud800"}, "lone surrogate"),
        ({"user": "a", "text": "x", "more": [{"k": "\udc00"}]}, "lone surrogate"),
        ({"user": "a", "text": "x", "\udc00": 1}, "lone surrogate"),
        ({"user": "a", "text": "x\0"}, "NUL"),
        ({"user": "a", "text": "x", "more": "\0"}, "NUL"),
        ({"user": "a", "text": " \n"}, "no text"),
        ({"user": "a", "text": None}, "no text"),
        ({"user": "a", "text": 5}, "no text but a number"),
        ({"user": "a", "text": "x", "title": ["t"]}, "a list"),
        ({"user": "a", "text": "x", "date": "2024-02-30"}, "impossible"),
        ({"user": "a", "text": "x", "date": "yesterday"}, "no date"),
        ({"user": "a", "text": "x", "date": "03/04/2024"}, "in doubt"),
        ({"user": "a", "text": "x", "id": "i" * 600}, "600 characters"),
        ('{"user": "a", "text": "x", "n": NaN}', "NaN"),
        ('{"user": "a", "text": "x", "n": 1e999}', "inf"),
        ('{"user": "a", "text": "x", "n": ' + "9" * 5000 + "}", "an integer of more digits"),
        ('{"user": "a", "text": "x", "n": ' + "[" * 100 + "]" * 100 + "}", "deep"),
        ('{"user": "a", "text": "x", "n": ' + "[" * 100_000 + "]" * 100_000 + "}", "deep"),
        ({"user": "a", "text": "x" * 5_000_000}, "5,000,000 characters, and the limit for one"),
        (b"x" * (33 << 20), "32 MB"),
    ],
)
def test_a_bad_row_is_told_and_the_rest_is_kept(tmp_path: Path, row: object, reason: str) -> None:
    assert reason in complaint(rows(tmp_path, row, GOOD))
    assert reason in complaint(rows(tmp_path, GOOD, "", row), line=3)


@pytest.mark.parametrize(
    "user", ["../../etc/passwd", "a'; DROP TABLE users; --", '"', "🙂", "Ünï", "a" * 256]
)
def test_user_ids_are_opaque(tmp_path: Path, user: str) -> None:
    (item,) = rows(tmp_path, {"user": user, "text": "x"})
    assert isinstance(item, Authored)
    assert item.user == user


def test_the_largest_text_is_kept(tmp_path: Path) -> None:
    assert len(only(rows(tmp_path, {"user": "a", "text": "é" * MAX_TEXT})).text) == MAX_TEXT


def test_a_reason_is_one_printable_line_without_the_text(tmp_path: Path) -> None:
    why = complaint(rows(tmp_path, {"user": "a\x1b[31m\n", "text": "secret words"}, GOOD))
    assert why.isprintable()
    assert "secret" not in why


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("2024-03-01T09:30:00+02:00", "2024-03-01T07:30:00+00:00"),
        ("20240301", "2024-03-01T00:00:00+00:00"),
        ("2024/3/4", "2024-03-04T00:00:00+00:00"),
        ("13/04/2024", "2024-04-13T00:00:00+00:00"),
        ("5 March 2024 10:00 PM", "2024-03-05T22:00:00+00:00"),
        ("Tue, 5 Mar 2024 10:00:00 +0100", "2024-03-05T09:00:00+00:00"),
        (1709287200, "2024-03-01T10:00:00+00:00"),
        (1709287200.5, "2024-03-01T10:00:00.500000+00:00"),
        (1709287200000, "2024-03-01T10:00:00+00:00"),
        ("1709287200000", "2024-03-01T10:00:00+00:00"),
        ("", None),
        (None, None),
    ],
)
def test_dates(tmp_path: Path, date: object, expected: str | None) -> None:
    when = only(rows(tmp_path, {**GOOD, "date": date})).written_at
    assert (when.isoformat() if when else None) == expected


@pytest.mark.parametrize(
    "date", [2024, 20240301, 0, -1e300, True, [1], "2024", "2024-03", "10:30", "Monday", "1/2/03", "9" * 90,
             "5 Mar 2024 10:00 EST", "0001-01-01T00:00:00+14:00", "x" * 10_000, 10**400]
)  # fmt: skip
def test_dates_that_are_refused(tmp_path: Path, date: object) -> None:
    complaint(rows(tmp_path, {**GOOD, "date": date}, GOOD))


RECORDS: list[Item] = [
    User(id="ann", name="Ann"),
    Authored(
        user="ann",
        document=Document(
            text="T", title="é", written_at=datetime(2024, 1, 1, 5, tzinfo=UTC), position=1, n_authors=2,
            fields={"a": [1, {"b": None}]},
        ),
    ),
    Profile(user="ann", version=2, topics=("x",), text="P", facts=StyleFacts(words=3.5), edited=True),
    Preference(user="ann", kind="edit", chosen="a", rejected="b", made_at=datetime(2024, 1, 1, tzinfo=UTC)),
    Request(task="title", input="i", users=("ann", "bob"), exclude=("d",), gold="g"),
]  # fmt: skip


def exported(item: Item) -> dict[str, Any]:
    """A record as `penname export` writes it."""
    if isinstance(item, Authored):
        return {"penname": "document", "user": item.user, **item.document.model_dump(mode="json")}
    return {"penname": type(item).__name__.lower(), **item.model_dump(mode="json")}


def test_exported_records_are_read_back_identical(tmp_path: Path) -> None:
    assert rows(tmp_path, *map(exported, RECORDS)) == RECORDS


def test_a_broken_exported_record_is_a_bad_row(tmp_path: Path) -> None:
    row = {"penname": "preference", "user": "ann", "kind": "edit", "chosen": "a"}
    assert "needs 'chosen' and 'rejected'" in complaint(rows(tmp_path, row, GOOD))
    assert "rating" in complaint(rows(tmp_path, {**row, "rating": "much"}, GOOD))
    assert "user" in complaint(rows(tmp_path, {"penname": "document", "text": "x"}, GOOD))


def test_a_field_that_happens_to_be_called_penname_is_a_field(tmp_path: Path) -> None:
    row = {"penname": "Mark Twain", "text": "x"}
    (item,) = rows(tmp_path, row, user_field="penname")
    assert isinstance(item, Authored)
    assert item.user == "Mark Twain"
    assert only(rows(tmp_path, {**GOOD, "penname": "Mark Twain"})).fields == {"penname": "Mark Twain"}


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert only(list(read("jsonl", path))).text == "Hello there."


def test_a_truncated_gzip_gives_what_it_holds_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    lines = [json.dumps({"user": f"u{i}", "text": f"{i * 7919 % 10007} words"}) for i in range(20_000)]
    whole = gzip.compress("\n".join(lines).encode())
    path.write_bytes(whole[: len(whole) // 2])
    items = list(read("jsonl", path))
    assert len(items) > 5_000
    assert [i for i, item in enumerate(items) if isinstance(item, BadRow)] == [len(items) - 1]
    assert "cut short or damaged" in str(items[-1])
    path.write_bytes(whole[:15])
    with pytest.raises(BadInputError, match="cut short"):
        list(read("jsonl", path))


def test_a_byte_order_mark_and_windows_lines_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(GOOD).encode())
    assert len(list(read("jsonl", path))) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0", "binary"),
        (b"SQLite format 3\0", "binary"),
        ('{"user": "a"}'.encode("utf-16"), "UTF-16"),
        (b'[{"user": "a", "text": "b"}]', "one JSON array"),
        (b'[\n {"user": "a", "text": "b"}\n]', "one JSON array"),
    ],
)
def test_other_formats_are_refused_as_a_whole(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=reason):
        list(read("jsonl", path))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for source in ("jsonl", "mbox", "lamp", "longlamp"):
        with pytest.raises(BadInputError, match="no file"):
            list(read(source, tmp_path / "missing"))
        with pytest.raises(BadInputError, match="opened"):
            list(read(source, Path("a\0b")))
    with pytest.raises(BadInputError, match="is a folder"):
        list(read("jsonl", tmp_path))


@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"", mtime=0)])
@pytest.mark.parametrize("source", ["jsonl", "mbox", "longlamp"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, source: str, content: bytes) -> None:
    path = tmp_path / "empty"
    path.write_bytes(content)
    with pytest.raises(EmptySourceError, match="nothing to import"):
        list(read(source, path))


def test_unknown_names_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnknownSourceError, match="did you mean 'jsonl'"):
        read("jsnl", tmp_path)
    with pytest.raises(BadInputError, match="no option 'split': it takes user_field"):
        read("jsonl", tmp_path, split="dev")
    with pytest.raises(BadInputError, match="it takes none"):
        read("git", tmp_path, split="dev")


def test_every_source_has_one_line_of_help() -> None:
    assert all(source.help and "\n" not in source.help for source in SOURCES.values())
    own = {"jsonl", "git", "mbox", "markdown"}
    benchmarks = {"lamp", "longlamp", "psw", "personamem", "prism", "psoups", "tldr", "personalllm", "trl"}
    assert set(SOURCES) == own | benchmarks


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for i in range(5_000):
            file.write(json.dumps({"user": f"u{i}", "text": f"text {i} " * 200}) + "\n")
    next(read("jsonl", path))  # what the modules themselves take
    tracemalloc.start()
    try:
        assert sum(1 for _ in read("jsonl", path)) == 5_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_the_proposals_import_whole(shared_data: Path) -> None:
    path = shared_data / "proposals.jsonl.gz"
    options = {"user_field": "authors", "text_field": "abstract", "date_field": "created"}
    items = list(read("jsonl", path, **options))
    documents = [item for item in items if isinstance(item, Authored)]
    assert len(documents) == len(items)
    assert len({item.document.id for item in documents}) == 1099
    assert len({item.user for item in documents}) == 1366
    assert all(item.document.written_at and item.document.title for item in documents)
    assert sum(item.document.n_authors > 1 and item.document.position == 0 for item in documents) == 660
    assert {"description", "requires", "category", "motivation"} <= set(documents[0].document.fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=50)


@given(
    user=WORDS.filter(lambda value: value == value.strip()),
    text=WORDS.filter(lambda value: bool(value.strip())),
    fields=st.dictionaries(st.sampled_from(["x", "y", "z z"]), JSON),
    ascii_only=st.booleans(),
)
def test_any_row_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, user: str, text: str, fields: dict[str, Any], ascii_only: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    row = json.dumps({"user": user, "text": text, **fields}, ensure_ascii=ascii_only)
    path.write_text(row + "\n", encoding="utf-8")
    (item,) = read("jsonl", path)
    assert isinstance(item, Authored)
    assert (item.user, item.document.text, item.document.fields) == (user, text, fields)


@given(
    content=st.binary(max_size=300)
    | st.lists(
        st.sampled_from([b'{"user":"a","text":"', b'"}', b"\n", b"\xff", b"\0", b"[", b"\\u", b"1e9", b'",'])
    ).map(b"".join),
    source=st.sampled_from(["jsonl", "mbox", "lamp", "longlamp"]),
)  # fmt: skip
def test_no_bytes_raise_anything_but_our_own_errors(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, source: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bytes"
    path.write_bytes(content)
    try:
        items = list(read(source, path, **({"task": "LaMP-4"} if source == "lamp" else {})))
    except PennameError:
        return
    assert items
