"""Console, page and tables: what they say, what they never do with a user's text."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from penname.errors import BadInputError
from penname.evaluate.console import print_summary
from penname.evaluate.metrics import METRICS
from penname.evaluate.report import EXAMPLES, chosen, write_report
from penname.evaluate.results import Arm, Results, Row
from penname.evaluate.tables import summary
from penname.evaluate.text import cut, duration, effect, marked, plain

EVIL = '<script>alert("x")</script>'
ARMS = (
    Arm("none", "none"),
    Arm("step-back · one", "step-back", "one"),
    Arm("step-back · all", "step-back", "all"),
    Arm("step-back · one · swap-user", "step-back", "one", "swap-user", "step-back · one"),
)
FILES = ["report.html", "summary.csv", "summary.md", "users.csv"]


def row(arm: Arm, example: str, users: tuple[str, ...] = ("u",), text: str = "t", **values: object) -> Row:
    base = {
        "key": "k", "task": "note", "input": f"a note {example}", "gold": "hens left the garden",
        "answer": text or None, "finish": "stop", "scores": {"rouge1": 0.5}, "history": 7,
        "profiles": (f"Writes {EVIL}",) if arm != ARMS[0] else (), "documents": (f"doc {EVIL}",),
        "dropped": ("the oldest document",), "prompt_tokens": 1234, "tokens": 56,
    }  # fmt: skip
    return Row(arm=arm.name, example=example, users=users, text=text, **(base | values))  # type: ignore[arg-type]


def results(rows: list[Row], arms: tuple[Arm, ...] = ARMS, **changes: object) -> Results:
    values = {
        "title": "A trial", "model": "tiny", "data": "notes 3f2a, test split", "seed": 3,
        "seconds": {"write": 200.0}, "judge": "a judge", "remarks": ("the judge also gave the reward",),
    }  # fmt: skip
    return Results(rows, arms, **(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def trial() -> Results:
    """Seven users with two examples each, and one example of a group that alone has the third arm."""
    none, one, both, swap = ARMS
    rows = []
    for i in range(7):
        for j in range(2):
            at = (f"{i}.{j}", (f"user{i}",))
            rows.append(row(none, *at, "hens", scores={"rouge1": 0.1 + 0.01 * i}))
            rows.append(row(one, *at, "Hens left early", scores={"rouge1": 0.3 + 0.02 * i + 0.01 * j}))
            rows.append(row(swap, *at, "hens", scores={"rouge1": 0.1 + 0.01 * (6 - i)}))
    at = ("g", ("user0", "user1"), f"the gate {EVIL}")
    gold = "the gate <b>was</b> open"
    rows += [
        row(arm, *at, gold=gold, scores={"rouge1": 0.2 * (k + 1)})
        for k, arm in enumerate((none, one, both, swap))
    ]
    return results(rows)


class Tags(HTMLParser):
    """Collects tags and checks that they nest."""

    VOID = ("meta",)

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


def page_of(found: Results | list[Results], folder: Path) -> str:
    return write_report(found, folder).read_text(encoding="utf-8")


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def printed(found: Results, width: int, drafts: int = 3) -> str:
    file = io.StringIO()
    print_summary(found, Console(file=file, width=width, force_terminal=False), drafts=drafts)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_console_fits_and_says_what_counts(trial: Results, width: int) -> None:
    text = printed(trial, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    words = " ".join(text.split())
    for part in ("A trial", "notes 3f2a, test split", "seed 3", "judged by a judge", "write 3 min 20 s",
                 "! the judge also gave the reward", "note: 15 examples, 7 users", "ROUGE-1 ↑",
                 "step-back · one — ROUGE-1: gains", "step-back · all — ROUGE-1: too few users",
                 "over users"):  # fmt: skip
        assert part in words, part


def test_console_puts_the_difference_and_its_interval_below_the_mean(trial: Results) -> None:
    text = printed(trial, 130, drafts=0)
    assert re.search(r"step-back · one +0\.3\d\d +\n +\+0\.\d{3} \* *\n +\+0\.\d{3} \+0\.\d{3}", text)
    assert re.search(r"step-back · all \(n = 1\) +0\.600 *\n +\+0\.400 *\n +one user", text)
    assert "step-back · one − swap-user" in text
    assert "user0 + user1" not in text


def test_console_shows_drafts_side_by_side_without_the_controls(trial: Results) -> None:
    text = printed(trial, 100)
    assert "user0 + user1" in text
    assert re.search(r"│ none .*│ step-back · one .*│ step-back · all .*│ the real text", text)
    assert "│ step-back · one · swap-user" not in text


def test_console_puts_drafts_under_one_another_where_columns_would_be_too_narrow(trial: Results) -> None:
    text = printed(trial, 64)
    assert re.search(r"│ none +│ the gate <script>", text)
    assert re.search(r"│ the real text +│ the gate <b>was</b> open", text)


def test_console_splits_many_metrics_over_tables_that_fit() -> None:
    scores = dict.fromkeys(METRICS, 0.5)
    del scores["macro_f1"]
    rows = [row(arm, str(i), (f"u{i}",), scores=scores) for arm in ARMS[:2] for i in range(3)]
    text = printed(results(rows), 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert all(METRICS[name].label in text for name in scores)


def test_console_reads_no_markup_and_no_control_characters() -> None:
    found = results(
        [
            row(
                ARMS[0], "a", ("u[red]",), "a\x1b[31m\x9b\u202ered [b]draft[/b] \x07" + "word " * 400,
                input="[bold]x[/bold]", gold="real [/] text",
            )
        ],
        title="[i]title[/i]\x1b[2J",
    )  # fmt: skip
    text = printed(found, 100)
    assert "[b]draft[/b]" in text.replace("\n", "")
    assert "u[red]" in text
    assert "[i]title[/i]" in text
    assert not set(text) & {"\x1b", "\x9b", "\x07", "\u202e"}
    assert "…" in text


def test_page_escapes_every_text_and_fetches_nothing(trial: Results, tmp_path: Path) -> None:
    page = page_of(trial, tmp_path / "new" / "folder")
    tags = parsed(page)
    names = {name for name, _ in tags.seen}
    assert not names & {"script", "link", "img", "iframe", "b"}
    assert not any({"src", "href", "onload", "style"} & set(attributes) for _, attributes in tags.seen)
    assert "url(" not in page
    assert "://" not in page
    assert "&lt;script&gt;" in page
    assert {"svg", "details", "mark", "table"} <= names


def test_names_of_tasks_arms_and_runs_are_escaped_too(tmp_path: Path) -> None:
    arms = (Arm(f"none {EVIL}", "none"), Arm(f"one | {EVIL}", "m"))
    rows = [row(arm, str(i), (f"{EVIL}{i}",), task=EVIL) for arm in arms for i in range(3)]
    page = page_of(
        results(rows, arms, title=EVIL, model=EVIL, data=EVIL, judge=EVIL, remarks=(EVIL,)), tmp_path
    )
    parsed(page)
    assert "<script" not in page
    pasted = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<script", pasted)
    assert r"one \| \<script" in pasted


def test_page_says_what_was_asked(trial: Results, tmp_path: Path) -> None:
    page = page_of(trial, tmp_path)
    for part in ("A trial", "tiny", "notes 3f2a, test split", "a judge", "the judge also gave the reward",
                 "3 min 20 s", "1,234 tokens", "56 written", "the oldest document", "undefined: one user",
                 "prefers-color-scheme", "user0 + user1", '<mark class="won">left</mark>',
                 "<mark>Hens</mark>", 'class="clear"', "<strong>gains</strong>",
                 "too few users", "single authors",
                 "step-back · one − swap-user", "7 of 7 users do better, 0 worse"):  # fmt: skip
        assert part in page, part
    assert page.count('<details class="request"') == 15
    assert page == page_of(trial, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_page_shows_an_empty_draft_and_what_cannot_be_read(tmp_path: Path) -> None:
    rows = [
        row(ARMS[0], "a", text=""),
        row(ARMS[1], "a", text="perhaps [1]", answer="[1]", finish="length"),
        row(ARMS[2], "a", text="who knows", answer=None),
    ]
    page = page_of(results(rows), tmp_path)
    for part in (
        "The model wrote nothing.",
        "Read as: [1]",
        "No answer can be read in it.",
        "Cut at the token limit",
    ):
        assert part in page, part
    assert "(nothing)" in printed(results(rows), 100)


def test_several_evaluations_are_sections_of_one_page(trial: Results, tmp_path: Path) -> None:
    other = results([row(ARMS[0], "a")], title="Another")
    page = page_of([trial, other], tmp_path)
    parsed(page)
    assert [name in page for name in ('id="r1"', 'id="r2"', 'href="#r2"', "Another")] == [True] * 4
    table = list(csv.DictReader((tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()))
    assert {line["results"] for line in table} == {"A trial", "Another"}
    with pytest.raises(BadInputError, match="no results"):
        write_report([], tmp_path)


def test_summary_csv_holds_every_comparison(trial: Results, tmp_path: Path) -> None:
    write_report(trial, tmp_path)
    lines = list(csv.DictReader((tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()))
    (table,) = summary(trial)
    parts = [line for line in lines if line["part"]]
    lines = [line for line in lines if not line["part"]]
    assert len(lines) == len(table.pairs) + 1  # the baseline is compared with nothing
    assert [(line["part"], line["arm"], float(line["mean"])) for line in parts] == [
        (each.part, each.arm, each.mean) for each in table.slices
    ]
    assert [line["other"] for line in parts[:2]] == ["", "none"]
    assert lines[0]["arm"] == "none"
    assert lines[0]["difference"] == lines[0]["kind"] == ""
    found = {(line["kind"], line["arm"], line["other"]): line for line in lines}
    for pair in table.pairs:
        line = found[pair.kind, pair.arm, pair.other]
        assert float(line["difference"]) == pair.found.mean
        assert int(line["shared_users"]) == pair.found.groups
        assert line["low"] == (str(pair.found.low) if pair.found.defined else "")
        assert line["p_holm"] == (str(pair.p) if pair.found.defined else "")


def test_users_csv_holds_every_user(trial: Results, tmp_path: Path) -> None:
    write_report(trial, tmp_path)
    lines = list(csv.DictReader((tmp_path / "users.csv").read_text(encoding="utf-8").splitlines()))
    of_one = [line for line in lines if line["arm"] == "step-back · one"]
    assert [line["user"] for line in of_one] == [f"user{i}" for i in range(7)]
    assert float(of_one[1]["mean"]) == pytest.approx(0.325)
    assert float(of_one[1]["baseline"]) == pytest.approx(0.11)


def test_markdown_tables_are_whole(trial: Results, tmp_path: Path) -> None:
    write_report(trial, tmp_path)
    lines = (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines()
    assert "tiny; notes 3f2a, test split; seed 3; judged by a judge." in lines
    assert any(line.startswith("| none | 0.1") for line in lines)
    assert any(
        re.match(r"\| step-back · one \| 0\.3\d\d \(\+0\.\d{3} \\\*; \+0\.\d{3} to \+0\.\d{3}\) \|", line)
        for line in lines
    )
    assert "- step-back · one: ROUGE-1: gains" in lines
    blocks = [block.splitlines() for block in "\n".join(lines).split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1


def test_examples_are_few_and_the_telling_ones_are_named() -> None:
    none, one = ARMS[:2]
    rows = []
    for i in range(300):
        who = (f"user{i % 100}",)
        rows.append(row(none, str(i), who, scores={"rouge1": 0.5}))
        rows.append(row(one, str(i), who, scores={"rouge1": 0.5 + (i - 140) / 1000}))
    found = results(rows, ARMS[:2])
    (table,) = summary(found)
    examples = chosen(found, table, 20)
    assert len(examples) == 20
    assert [(example.rows[0].example, example.why.split(" of ")[0]) for example in examples[:9]] == [
        ("299", "largest gain"), ("298", "largest gain"), ("297", "largest gain"),
        ("0", "largest loss"), ("1", "largest loss"), ("2", "largest loss"),
        ("149", "typical"), ("150", "typical"), ("148", "typical"),
    ]  # fmt: skip
    assert examples[0].why == "largest gain of step-back · one over none: ROUGE-1 +0.159"
    assert all(example.why == "" for example in examples[9:])
    assert len({example.rows[0].users for example in examples[9:]}) == 11
    assert len({example.rows[0].example for example in chosen(found, table, 400)}) == 300
    assert len(chosen(found, table, 1)) == 1


def test_a_page_has_no_more_examples_than_it_can_bear(tmp_path: Path) -> None:
    tasks = ("a", "b", "c")
    rows = [row(ARMS[0], str(i), (f"u{i}",), task=task) for task in tasks for i in range(40)]
    page = page_of(results(rows), tmp_path)
    assert page.count('<details class="request"') == EXAMPLES
    assert page.count("20 of 40; rows.jsonl") == 3


def test_where_nothing_gained_or_nothing_is_compared_the_page_still_stands(tmp_path: Path) -> None:
    alone = [row(ARMS[0], "a")]
    alike = [row(arm, str(i), (f"u{i}",)) for arm in ARMS[:2] for i in range(8)]
    unscored = [row(arm, "a", scores={}) for arm in ARMS[:2]]
    for rows in (alone, alike, unscored):
        parsed(page_of(results(rows), tmp_path))
        printed(results(rows), 80)


def test_a_folder_that_cannot_be_written_is_named(trial: Results, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match=r"cannot write the report into .*file"):
        write_report(trial, tmp_path / "file")


def test_a_failed_write_leaves_the_old_page_and_nothing_beside(
    trial: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_report(trial, tmp_path).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penname.files.os.replace", full)
    with pytest.raises(BadInputError, match="No space left"):
        write_report(trial, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize(
    ("metric", "scale"), [("rouge1", 1e-6), ("rouge1", 1.0), ("chrf", 100.0), ("chrf", 0.0)]
)
def test_plots_hold_every_mark_and_two_ticks_at_any_scale(tmp_path: Path, metric: str, scale: float) -> None:
    rows = []
    for i in range(4):
        rows.append(row(ARMS[0], str(i), (str(i),), scores={metric: 0.0}))
        rows.append(row(ARMS[1], str(i), (str(i),), scores={metric: scale * (i + 1) / 4}))
    tags = parsed(page_of(results(rows), tmp_path))
    places = [v for _, a in tags.seen for k, v in a.items() if k in ("x", "x1", "x2", "cx", "cy") and v]
    assert all(0 <= float(place.rstrip("%")) <= 100 for place in places)
    labels = [a for name, a in tags.seen if name == "text"]
    assert len(labels) >= 6  # an interval plot, and a scatter with two axes, each with two ticks or more


def test_words() -> None:
    pieces = list(marked("Hens left the gate", "hens LEFT the", "the hens"))
    assert "".join(piece for piece, _ in pieces) == "Hens left the gate"
    assert [piece for piece in pieces if piece[1]] == [("Hens", "shared"), ("left", "won")]
    assert {kind for _, kind in marked("Hens left the gate", "hens LEFT the")} == {"", "shared"}
    assert list(marked("", "x")) == []
    assert cut("one two three", 100) == "one two three"
    assert cut("one two three", 9) == "one two…"
    assert cut("onetwothree", 5) == "onet…"
    assert plain("a\x00b\n\tc\u202e ") == "ab\n\tc"
    assert [duration(s) for s in (0.031, 8.4, 200, 7500)] == ["0.03 s", "8.4 s", "3 min 20 s", "2 h 5 min"]
    assert [effect(value) for value in (0.5, -0.25, float("nan"))] == ["+0.50", "−0.25", "–"]
