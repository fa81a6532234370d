"""Summary, console and page: what they say, what they never do with a user's text."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from penname.errors import BadInputError, UnknownNameError
from penname.evaluate import METRICS, Results, Row, print_summary, summary, write_html
from penname.evaluate.report import FACTS
from penname.evaluate.text import cut, duration, marked, plain
from penname.records import Document, Draft, Hit, Message, Profile, Prompt, Request, StyleFacts

EVIL = '<script>alert("x")</script>'
ARMS = ("none", "one author", "group")


def row(
    arm: str, request: Request, text: str, score: float, prompt: Prompt = "Write.", metric: str = "rouge1"
) -> Row:
    draft = Draft(
        text=text, request=request, method="m", model="tiny", finish="stop", prompt=prompt,
        prompt_tokens=1234, completion_tokens=56, seconds={"write": 2.5},
        documents=(Hit(user=request.users[0], document=Document(title=EVIL, text="t"), score=1.5),),
        profiles=(Profile(user=request.users[0], text=EVIL),),
        dropped=("the oldest document",),
    )  # fmt: skip
    return Row(arm, request, draft, {metric: score})


def results(rows: list[Row], **changes: object) -> Results:
    values = {
        "rows": rows, "profiles": {}, "model": "tiny", "seconds": {"write": 200.0}, "seed": 3,
        "title": "A trial",
    }  # fmt: skip
    return Results(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def trial() -> Results:
    """Seven users with two requests each, and one request of a group that alone has the third arm."""
    rows = []
    for i in range(7):
        for j in range(2):
            request = Request(
                id=f"{i}.{j}", input=f"note {j}", users=(f"user{i}",), gold="hens left the garden"
            )
            rows.append(row("none", request, "hens", 0.1 + 0.01 * i))
            rows.append(row("one author", request, "Hens left early", 0.3 + 0.02 * i + 0.01 * j))
    both = Request(id="g", input="a note by both", users=("user0", "user1"), gold="the gate <b>was</b> open")
    rows += [row(arm, both, f"the gate {EVIL}", 0.2 * (k + 1)) for k, arm in enumerate(ARMS)]
    facts = StyleFacts(documents=4, words=88, contractions=0.031)
    profile = Profile(user="user0", text=f"Writes {EVIL}", facts=facts, model="tiny")
    return results(rows, profiles={"user0": profile})


class Tags(HTMLParser):
    """Collects tags and checks that they nest."""

    VOID = ("meta", "circle", "line")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def printed(found: Results, width: int) -> str:
    file = io.StringIO()
    print_summary(found, Console(file=file, width=width, force_terminal=False))
    return file.getvalue()


def test_summary_pairs_each_arm_with_the_first_on_shared_requests(trial: Results) -> None:
    none, one, group = summary(trial)
    assert (none.arm, none.n, none.users, none.difference) == ("none", 15, 7, None)
    assert one.difference is not None
    assert (one.difference.n, one.difference.groups) == (15, 7)
    assert one.difference.mean == pytest.approx(
        sum([0.2 + 0.01 * i for i in range(7)] * 2 + [0.07, 0.2]) / 15
    )
    assert one.difference.low < one.difference.mean < one.difference.high
    assert one.difference.clear
    assert group.mean == pytest.approx(0.6)
    assert group.difference is not None
    assert (group.n, group.difference.n, group.difference.groups) == (1, 1, 1)
    assert group.difference.mean == pytest.approx(0.4)  # to 0.2 on the group's request, not to the arm's mean
    assert not group.difference.defined


def test_an_arm_that_shares_nothing_has_no_difference() -> None:
    a = Request(id="a", input="x", users=("u",), gold="g")
    b = Request(id="b", input="x", users=("u",), gold="g")
    found = results(
        [row("none", a, "t", 0.1), row("other", b, "t", 0.2), row("third", a, "t", 1.0, metric="chrf")]
    )
    assert [(line.arm, line.metric, line.difference) for line in summary(found)] == [
        ("none", "rouge1", None),
        ("other", "rouge1", None),
        ("third", "chrf", None),
    ]
    assert "third" in printed(found, 100)


def test_what_cannot_be_reported_is_refused() -> None:
    request = Request(id="a", input="x", users=("u",), gold="g")
    with pytest.raises(BadInputError, match="no drafts"):
        results([])
    with pytest.raises(BadInputError, match="two drafts for request 'a'"):
        results([row("none", request, "t", 0.1), row("none", request, "u", 0.1)])
    with pytest.raises(BadInputError, match="rouge1 of arm 'none' on request 'a' is nan"):
        row("none", request, "t", float("nan"))
    with pytest.raises(UnknownNameError, match=r"did you mean .*'rouge1'"):
        row("none", request, "t", 0.1, metric="rouge")
    with pytest.raises(BadInputError, match="no real text"):
        row("none", request.model_copy(update={"gold": None}), "t", 0.1)


@pytest.mark.parametrize("width", [80, 100])
def test_console_fits_and_shows_drafts_side_by_side(trial: Results, width: int) -> None:
    text = printed(trial, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    assert "higher is better" in text
    assert "user0 + user1" in text
    assert re.search(r"none .*one author .*group .*the real text", text)
    assert re.search(r"one author\s+0\.3\d\d\s+15 \(7\)\s+\+0\.\d{3} \*", text)


def test_console_puts_drafts_under_one_another_where_columns_would_be_too_narrow(trial: Results) -> None:
    text = printed(trial, 64)
    assert max(len(line) for line in text.splitlines()) <= 64
    assert re.search(r"│ none +│ the gate <script>", text)
    assert re.search(r"│ the real text +│ the gate <b>was</b> open", text)


def test_console_reads_no_markup_and_no_control_characters() -> None:
    request = Request(id="a", input="[bold]x[/bold]", users=("u[red]",), gold="real [/] text")
    found = results([row("none", request, "a\x1b[31m\x9b\u202ered [b]draft[/b] \x07" + "word " * 400, 0.1)])
    text = printed(found, 100)
    assert "[b]draft[/b]" in text.replace("\n", "")
    assert "u[red]" in text
    assert not set(text) & {"\x1b", "\x9b", "\x07", "\u202e"}
    assert "…" in text


def test_page_escapes_every_text_and_fetches_nothing(trial: Results, tmp_path: Path) -> None:
    place = write_html(trial, tmp_path / "new" / "folder")
    page = place.read_text(encoding="utf-8")
    assert place == tmp_path / "new" / "folder" / "report.html"
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = {name for name, _ in tags.seen}
    assert not names & {"script", "link", "img", "iframe", "b"}
    assert not any({"src", "href", "onload", "style"} & set(attributes) for _, attributes in tags.seen)
    assert "url(" not in page
    assert "://" not in page
    assert "&lt;script&gt;" in page
    assert {"svg", "details", "mark", "table"} <= names


def test_page_says_what_was_asked(trial: Results, tmp_path: Path) -> None:
    page = write_html(trial, tmp_path).read_text(encoding="utf-8")
    for part in ("A trial", "tiny", "3 min 20 s", "1,234 tokens", "56 tokens written", "the oldest document",
                 "undefined: one user", "3.1% of words", "prefers-color-scheme", "user0 + user1",
                 "<mark>left</mark>", 'class="clear"'):  # fmt: skip
        assert part in page, part
    assert page.count('<details class="request"') == 15
    assert page == write_html(trial, tmp_path).read_text(encoding="utf-8")


def test_page_shows_both_shapes_of_prompt_and_an_empty_draft(tmp_path: Path) -> None:
    request = Request(id="a", input="x", users=("u",), gold="g")
    chat = (Message(role="system", content=EVIL), Message(role="user", content="Write a note."))
    found = results([row("none", request, "", 0.0, chat), row("one author", request, "t", 0.0, "Text:")])
    page = write_html(found, tmp_path).read_text(encoding="utf-8")
    assert "The model wrote nothing." in page
    assert "<pre>Write a note.</pre>" in page
    assert "<pre>Text:</pre>" in page
    assert "<script" not in page
    assert "(nothing)" in printed(found, 100)


def test_rows_and_summary_are_kept_whole(trial: Results, tmp_path: Path) -> None:
    write_html(trial, tmp_path)
    rows = [
        json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert len(rows) == len(trial.rows)
    for data, kept in zip(rows, trial.rows, strict=True):
        request = Request.model_validate(data["request"])
        draft = Draft.model_validate({"request": request, **data["draft"]})
        assert Row(data["arm"], request, draft, data["scores"]) == kept
    table = list(csv.DictReader((tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()))
    assert [line["arm"] for line in table] == list(ARMS)
    assert float(table[1]["low"]) == pytest.approx(summary(trial)[1].difference.low)  # type: ignore[union-attr]
    assert table[2]["low"] == table[0]["difference"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "rows.jsonl", "summary.csv"]


def test_a_draft_that_was_asked_for_otherwise_keeps_its_own_request(tmp_path: Path) -> None:
    request = Request(id="a", input="x", users=("u", "v"), gold="g")
    alone = request.model_copy(update={"users": ("u",)})
    found = Row("one author", request, row("one author", alone, "t", 0.1).draft, {"rouge1": 0.1})
    write_html(results([found]), tmp_path)
    data = json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8"))
    assert data["request"]["users"] == ["u", "v"]
    assert data["draft"]["request"]["users"] == ["u"]


def test_a_folder_that_cannot_be_written_is_named(trial: Results, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match=r"cannot write the report into .*file"):
        write_html(trial, tmp_path / "file")


def test_a_failed_write_leaves_the_old_page_and_nothing_beside(
    trial: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_html(trial, tmp_path).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penname.evaluate.report.os.replace", full)
    with pytest.raises(BadInputError, match="No space left"):
        write_html(trial, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 3


def test_every_measured_fact_has_a_name() -> None:
    assert set(FACTS) == set(StyleFacts.model_fields)


def test_plots_hold_every_mark_and_two_ticks_at_any_scale(tmp_path: Path) -> None:
    for metric, scale in [("rouge1", 1e-6), ("rouge1", 1.0), ("chrf", 100.0), ("chrf", 0.0)]:
        rows = []
        for i in range(4):
            request = Request(id=str(i), input="x", users=(str(i),), gold="g")
            rows.append(row("none", request, "t", 0.0, metric=metric))
            rows.append(row("one author", request, "t", scale * (i + 1) / 4, metric=metric))
        tags = Tags()
        tags.feed(write_html(results(rows), tmp_path).read_text(encoding="utf-8"))
        places = [v for _, a in tags.seen for k, v in a.items() if k in ("x", "x1", "x2", "cx") and v]
        assert all(0 <= float(place.rstrip("%")) <= 100 for place in places)
        labels = [a for name, a in tags.seen if name == "text"]
        assert len(labels) >= 4  # two plots, each with two ticks or more


def test_words() -> None:
    assert (
        "".join(piece for piece, _ in marked("Hens left the gate", "hens LEFT the")) == "Hens left the gate"
    )
    assert [p for p, shared in marked("Hens left the gate", "hens LEFT the") if shared] == ["Hens", "left"]
    assert list(marked("", "x")) == []
    assert cut("one two three", 100) == "one two three"
    assert cut("one two three", 9) == "one two…"
    assert cut("onetwothree", 5) == "onet…"
    assert plain("a\x00b\n\tc\u202e ") == "ab\n\tc"
    assert [duration(s) for s in (0.031, 8.4, 200, 7500)] == ["0.03 s", "8.4 s", "3 min 20 s", "2 h 5 min"]


def test_metrics_all_say_how_to_read_them() -> None:
    assert all(m.label and m.about and m.better in ("higher", "lower") for m in METRICS.values())
