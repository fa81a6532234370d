"""An evaluation from end to end with stand-in models: what is made, kept, and never made twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluate_helpers import EXAMPLES, CountingModel, Judge, club, document, request, run
from models import ToldModel
from penname.errors import BadInputError, PromptTooLongError, UnknownMetricError
from penname.evaluate import run as module
from penname.evaluate.folder import load_results
from penname.evaluate.results import Results, Row
from penname.evaluate.run import Settings
from penname.store import Store
from stores import fresh

METHODS = ("none", "retrieval", "step-back")
FAST = Settings(k=2, max_tokens=32, metrics=("rouge1", "bits_per_byte"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(fresh("sqlite", tmp_path)) as opened:
        club(opened)
        opened.add_user("new")
        yield opened


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]


def by_place(results: Results) -> dict[tuple[str, str], Row]:
    return {(row.arm, row.example): row for row in results.rows}


def test_every_arm_writes_every_example(store: Store, tmp_path: Path) -> None:
    model = CountingModel()
    results = run(store, tmp_path / "out", model, *METHODS, controls=["swap-user"])
    assert [arm.name for arm in results.arms] == [
        "none",
        "retrieval",
        "retrieval · swap-user",
        "step-back",
        "step-back · swap-user",
    ]
    assert len(results.rows) == len(results.arms) * len(EXAMPLES)
    rows = by_place(results)
    plain, found = rows["none", "e2"], rows["retrieval", "e2"]
    assert (plain.users, plain.history, plain.documents, plain.profiles) == (("ann", "ben"), 7, (), ())
    assert (found.users, len(found.documents), found.gold) == (("ann", "ben"), 4, "What they called e2")
    assert len(rows["step-back", "e2"].profiles) == 2
    swapped = rows["retrieval · swap-user", "e2"]
    assert swapped.users == ("ann", "ben"), "who really wrote, whoever stands in"
    assert {name.partition("-")[0] for name in swapped.documents} == {"cas", "dot"}
    for row in results.rows:
        assert row.text.startswith("a draft of")
        assert row.answer == row.text
        assert set(row.scores) >= {"rouge1", "rougeL", "chrf", "similarity", "bits_per_byte", "words"}
    assert set(results.seconds) >= {"profile", "prepare", "write", "score", "measure"}
    assert (results.model, results.data, results.title) == ("told", "club 0123456789ab, test split", "out")
    assert load_results(tmp_path / "out") == results


def test_one_author_or_all(store: Store, tmp_path: Path) -> None:
    results = run(store, tmp_path, ToldModel(), "none", "retrieval", users=("one", "all"), settings=FAST)
    rows = by_place(results)
    assert {name[:3] for name in rows["retrieval · one", "e4"].documents} == {"dot"}
    assert {name[:3] for name in rows["retrieval", "e4"].documents} == {"dot", "cas"}


def test_the_same_call_again_asks_the_model_nothing(store: Store, tmp_path: Path) -> None:
    first = run(store, tmp_path, CountingModel(), *METHODS, "in-context", controls=["random-profile"])
    written = lines(tmp_path)
    again = CountingModel()
    second = run(store, tmp_path, again, *METHODS, "in-context", controls=["random-profile"])
    assert again.calls == 0
    assert second.rows == first.rows
    assert lines(tmp_path) == written


def test_what_is_added_alone_is_made(store: Store, tmp_path: Path) -> None:
    first = run(store, tmp_path, CountingModel(), "none", settings=FAST)
    model = CountingModel()
    second = run(store, tmp_path, model, "none", "retrieval", settings=FAST)
    assert len(model.asked) == len(model.scored) == len(EXAMPLES)
    model = CountingModel()
    third = run(store, tmp_path, model, "none", "retrieval", controls=["swap-user"], settings=FAST)
    assert len(model.asked) == len(EXAMPLES)
    assert [arm.name for arm in third.arms] == ["none", "retrieval", "retrieval · swap-user"]
    assert third.rows[: len(second.rows)] == second.rows
    assert second.rows[: len(first.rows)] == first.rows
    alone = run(store, tmp_path, CountingModel(), "none", settings=FAST)
    assert alone.rows == first.rows
    assert len(load_results(tmp_path).rows) == len(third.rows), "what a call does not ask for stays"


def test_drafts_that_arms_have_in_common_are_written_once(store: Store, tmp_path: Path) -> None:
    model = CountingModel()
    results = run(store, tmp_path, model, "none", "retrieval", "retrieval:lexical", settings=FAST)
    assert len(model.asked) == len(model.scored) == 2 * len(EXAMPLES)
    rows = by_place(results)
    for example in EXAMPLES:
        one, other = rows["retrieval", example.id], rows["retrieval:lexical", example.id]
        assert replace(other, arm=one.arm) == one
    assert len(lines(tmp_path)) == 3 * len(EXAMPLES)


@pytest.mark.parametrize("after", range(0, 13, 3))
@pytest.mark.parametrize("half", [False, True])
def test_a_kill_loses_only_what_is_in_flight(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, half: bool
) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    whole = run(store, tmp_path / "whole", CountingModel(), "none", "retrieval:recency", settings=FAST)
    killed = CountingModel()
    killed.breaks_after = after
    out = tmp_path / "out"
    if after < 8:
        with pytest.raises(KeyboardInterrupt):
            run(store, out, killed, "none", "retrieval:recency", settings=FAST)
    else:
        run(store, out, killed, "none", "retrieval:recency", settings=FAST)
    assert len(lines(out)) == len(killed.asked)
    if half and killed.asked:
        content = (out / "rows.jsonl").read_bytes()
        line = content.splitlines(keepends=True)[-1].replace(b"a draft", "é draft".encode())
        (out / "rows.jsonl").write_bytes(content + line[: line.index("é".encode()) + 1])
        assert len(load_results(out).rows) == len(killed.asked), "a report can be made of a broken run"
    model = CountingModel()
    resumed = run(store, out, model, "none", "retrieval:recency", settings=FAST)
    assert len(model.asked) == 8 - len(killed.asked)
    assert resumed.rows == whole.rows
    assert load_results(out).rows == whole.rows


def test_windows_hold_all_arms_of_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 192)
    ids = [name for name in "abcdefg" for _ in range(100)]
    slices = list(module._windows(ids))
    assert [len(ids[one]) for one in slices] == [200, 200, 200, 100]
    assert [ids[one][0] for one in slices] == ["a", "c", "e", "g"]
    assert list(module._windows([])) == []


def test_the_tasks_of_one_text_are_written_together(store: Store, tmp_path: Path) -> None:
    examples = [request(name, "ann", task=task) for task in ("title", "post") for name in ("e1", "e2")]
    run(store, tmp_path, ToldModel(), "none", requests=examples, settings=FAST)
    assert [(row["example"], row["task"]) for row in lines(tmp_path)] == [
        ("e1", "title"),
        ("e1", "post"),
        ("e2", "title"),
        ("e2", "post"),
    ]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("k", {"k": 3}),
        ("temperature", {"temperature": 0.0}),
        ("seed", {"seed": 1}),
        ("max_tokens", {"max_tokens": 9}),
    ],
)
def test_other_settings_are_refused_with_what_differs(
    store: Store, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    run(store, tmp_path, ToldModel(), "none", settings=FAST)
    before = lines(tmp_path)
    with pytest.raises(BadInputError, match=rf"other settings \({name} was .* and is {change[name]}\)"):
        run(store, tmp_path, ToldModel(), "none", settings=replace(FAST, **change))
    with pytest.raises(BadInputError, match="weights was 'told-1' and is 'told-2'"):
        run(store, tmp_path, ToldModel(fingerprint="told-2"), "none", settings=FAST)
    assert lines(tmp_path) == before


def test_another_seed_asks_for_other_samples(store: Store, tmp_path: Path) -> None:
    one, other = CountingModel(), CountingModel()
    first = run(store, tmp_path / "0", one, "none", settings=FAST)
    second = run(store, tmp_path / "1", other, "none", settings=replace(FAST, seed=1))
    assert {sampling.seed for sampling in one.samplings} == {0}
    assert {sampling.seed for sampling in other.samplings} == {1}
    assert not {row.key for row in first.rows} & {row.key for row in second.rows}


def test_more_examples_go_on_with_the_earlier_ones(store: Store, tmp_path: Path) -> None:
    few = run(store, tmp_path, CountingModel(), "none", "retrieval", requests=EXAMPLES[:2], settings=FAST)
    model = CountingModel()
    all_ = run(store, tmp_path, model, "none", "retrieval", settings=FAST)
    assert len(model.asked) == 4
    rows = by_place(all_)
    assert all(rows[row.arm, row.example] == row for row in few.rows)


# --- metrics


def test_what_needs_no_draft_makes_none(store: Store, tmp_path: Path) -> None:
    model = CountingModel()
    first = run(
        store, tmp_path, model, "none", "retrieval", settings=replace(FAST, metrics=("bits_per_byte",))
    )
    assert (len(model.asked), len(model.scored)) == (0, 8)
    assert all(set(row.scores) == {"bits_per_byte"} and not row.text for row in first.rows)
    model = CountingModel()
    second = run(store, tmp_path, model, "none", "retrieval", settings=replace(FAST, metrics=()))
    assert (len(model.asked), len(model.scored)) == (8, 0)
    rows = by_place(second)
    for row in first.rows:
        later = rows[row.arm, row.example]
        assert later.text.startswith("a draft")
        assert later.scores["bits_per_byte"] == row.scores["bits_per_byte"]
        assert "rougeL" in later.scores
    assert load_results(tmp_path).rows == second.rows


def test_macro_f1_alone_has_drafts(store: Store, tmp_path: Path) -> None:
    asked = [request("m1", "ann", task="LaMP-2", gold="comedy")]
    model = CountingModel()
    results = run(
        store, tmp_path, model, "none", requests=asked, settings=replace(FAST, metrics=("macro_f1",))
    )
    assert len(model.asked) == 1
    assert results.rows[0].finish == "stop"
    assert load_results(tmp_path).rows == results.rows


def test_metrics_that_cannot_be_measured_are_refused_before_anything_is_made(
    store: Store, tmp_path: Path
) -> None:
    model = CountingModel()
    for metrics, kind, told in (
        (("rogue1",), UnknownMetricError, "did you mean 'rouge1'"),
        (("accuracy",), BadInputError, "'accuracy' is not measured of title"),
        (("rouge1", "mae"), BadInputError, "'mae' is not measured of title"),
        (("win",), BadInputError, "needs a judge"),
    ):
        with pytest.raises(kind, match=told):
            run(store, tmp_path, model, "step-back", settings=replace(FAST, metrics=metrics))
    assert model.calls == 0


def test_an_answer_that_cannot_be_read_is_kept_and_counts_as_wrong(store: Store, tmp_path: Path) -> None:
    asked = [
        request("m1", "ann", task="LaMP-2", gold="comedy"),
        request("m2", "ben", task="LaMP-2", gold="classic", input="Which? description: Old."),
        request("m3", "ann", task="LaMP-3", gold="2"),
    ]
    model = ToldModel(lambda prompt: " classic" if "Old." in prompt else " I cannot say.")
    results = run(store, tmp_path, model, "none", requests=asked, settings=replace(FAST, metrics=()))
    assert [(row.text, row.answer) for row in results.rows] == [
        ("I cannot say.", None),
        ("classic", "classic"),
        ("I cannot say.", None),
    ]
    assert [row.scores for row in results.rows] == [{"accuracy": 0}, {"accuracy": 1}, {"mae": 3, "rmse": 9}]


def test_empty_drafts_are_scored(store: Store, tmp_path: Path) -> None:
    results = run(store, tmp_path, ToldModel(lambda _: " \n"), "none", settings=Settings(), judge=Judge())
    for row in results.rows:
        assert (row.text, row.answer) == ("", None)
        assert (row.scores["rouge1"], row.scores["words"], row.scores["judge"]) == (0, 0, 0.1)
    again = CountingModel()
    run(store, tmp_path, again, "none", settings=Settings(), judge=Judge())
    assert again.calls == 0


def test_a_user_whose_texts_have_no_words_does_not_stop_the_others(store: Store, tmp_path: Path) -> None:
    store.add_user("wordless").add(document("wordless", n, text="!!! ???", title="…") for n in range(3))
    examples = [*EXAMPLES, request("e5", "wordless")]
    results = run(store, tmp_path, ToldModel(), "none", requests=examples, settings=Settings())
    assert len(results.rows) == 5
    rows = by_place(results)
    assert "style" in rows["none", "e1"].scores
    assert "style" not in rows["none", "e5"].scores


def test_users_who_write_alike_have_no_style_to_compare(store: Store, tmp_path: Path) -> None:
    for user in ("p", "q", "r", "s"):
        store.add_user(user).add([document(user, n, text="Same.", title="Same") for n in range(3)])
    examples = [request(user, user) for user in ("p", "q", "r", "s")]
    results = run(store, tmp_path, ToldModel(), "none", requests=examples, settings=Settings())
    assert not any("style" in row.scores for row in results.rows)
    assert any("style and authorship are left out" in remark for remark in results.remarks)
    assert not results.groups


# --- the judge


def test_a_judge_may_come_later_and_marks_each_draft_once(store: Store, tmp_path: Path) -> None:
    plain = run(store, tmp_path, CountingModel(), "none", "retrieval", settings=Settings())
    model, judge = CountingModel(), Judge()
    judged = run(store, tmp_path, model, "none", "retrieval", settings=Settings(), judge=judge)
    assert model.calls == 0
    assert len(judge.asked_to_choose) == 8 + 2 * 4  # each draft alone; each duel in both orders
    rows = by_place(judged)
    for row in plain.rows:
        later = rows[row.arm, row.example]
        longer = len(later.text) > len(rows["none", row.example].text)
        assert later.scores.items() >= row.scores.items()
        assert later.scores["judge"] == 0.5
        assert (later.scores["win"], later.scores["flips"]) == (1.0 if longer else 0.5, 0.0)
    judge = Judge()
    again = run(store, tmp_path, CountingModel(), "none", "retrieval", settings=Settings(), judge=judge)
    assert judge.asked_to_choose == []
    assert again.rows == judged.rows
    without = run(store, tmp_path, CountingModel(), "none", "retrieval", settings=Settings())
    assert without.judge == judged.judge == load_results(tmp_path).judge == "judge"


def test_a_verdict_that_hangs_on_the_order_is_a_flip(store: Store, tmp_path: Path) -> None:
    judge = Judge()
    judge._chances = lambda prompt, options: [1.0, *[0.0] * (len(options) - 1)]  # type: ignore[method-assign]
    results = run(store, tmp_path, CountingModel(), "none", "retrieval", settings=Settings(), judge=judge)
    for row in results.rows:
        assert row.scores["win"] == 0.5
        assert row.scores["flips"] == float(row.arm == "retrieval")


def test_another_judge_or_baseline_is_refused(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, ToldModel(), "none", settings=Settings(), judge=Judge())
    with pytest.raises(BadInputError, match="judge was"):
        run(store, tmp_path, ToldModel(), "none", settings=Settings(), judge=Judge("judge-2"))
    with pytest.raises(BadInputError, match="'baseline': 'retrieval'"):
        run(store, tmp_path, ToldModel(), "retrieval", "none", settings=Settings(), judge=Judge())


def test_the_judge_s_metrics_alone_have_drafts(store: Store, tmp_path: Path) -> None:
    model = CountingModel()
    settings = replace(FAST, metrics=("judge",))
    results = run(store, tmp_path, model, "none", settings=settings, judge=Judge())
    assert len(model.asked) == 4
    assert all(row.scores == {"judge": 0.5} for row in results.rows)


# --- what a reader must know


def test_remarks_stay_with_the_rows(store: Store, tmp_path: Path) -> None:
    first = run(store, tmp_path, ToldModel(), "none", settings=FAST, remarks=["the moon was full"])
    assert "the moon was full" in first.remarks
    assert "the moon was full" in run(store, tmp_path, ToldModel(), "none", settings=FAST).remarks
    assert "the moon was full" in load_results(tmp_path).remarks


def test_an_arm_that_can_write_nothing_is_told_and_left_out(store: Store, tmp_path: Path) -> None:
    told = list[str]()
    alone = [EXAMPLES[0]]
    results = run(
        store, tmp_path / "a", ToldModel(), "none", "retrieval",
        controls=["shuffle-authors"], requests=alone, settings=FAST, note=told.append,
    )  # fmt: skip
    assert [arm.name for arm in results.arms] == ["none", "retrieval"]
    assert told[0] == "retrieval · shuffle-authors: there is no example that it can write"
    with pytest.raises(BadInputError, match="nobody has a history"):
        run(store, tmp_path / "b", ToldModel(), "retrieval", requests=[request("e9", "new")])


def test_an_arm_is_compared_on_the_examples_that_it_can_write(store: Store, tmp_path: Path) -> None:
    examples = [*EXAMPLES, request("e9", "new"), request("e10", "new", "ann")]
    results = run(store, tmp_path, ToldModel(), "none", "retrieval", requests=examples, settings=FAST)
    counts = [sum(row.arm == arm.name for row in results.rows) for arm in results.arms]
    assert counts == [6, 5]
    rows = by_place(results)
    assert (rows["none", "e9"].users, rows["none", "e9"].history) == (("new",), 0)
    assert rows["retrieval", "e10"].users == ("ann",)


def test_progress_is_told_to_its_end(store: Store, tmp_path: Path) -> None:
    told = list[tuple[str, int, int]]()
    run(
        store,
        tmp_path,
        ToldModel(),
        "none",
        "step-back",
        settings=FAST,
        progress=lambda *one: told.append(one),
    )
    assert told[-1] == ("drafts", 8, 8)
    assert {stage for stage, _, _ in told} == {"profiles", "drafts"}


def test_a_request_too_long_for_the_model_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(PromptTooLongError):
        run(store, tmp_path, ToldModel(context=34), "none", settings=FAST)
