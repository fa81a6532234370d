"""The numbers behind every face: means, comparisons, parts, counts and verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import pytest

from penname.evaluate.results import Arm, Results, Row
from penname.evaluate.statistics import compare, holm
from penname.evaluate.tables import (
    FEW,
    GAINS,
    IMPERSONAL,
    UNCLEAR,
    UNCONTROLLED,
    WORSE,
    Table,
    leading,
    summary,
    user_means,
)

NONE = Arm("none", "none")
ONE = Arm("method · one", "method", "one")
ALL = Arm("method · all", "method", "all")
SWAP = Arm("method · one · swap-user", "method", "one", "swap-user", "method · one")
CUT = Arm("method · one · history=5", "method", "one", "history=5", "method · one")


def row(arm: Arm, example: str, users: tuple[str, ...] = ("u",), **values: object) -> Row:
    base = {
        "key": "k", "task": "some task", "input": "x", "gold": "real", "text": "t", "answer": "t",
        "finish": "stop", "scores": {"rouge1": 0.5},
    }  # fmt: skip
    return Row(arm=arm.name, example=example, users=users, **(base | values))  # type: ignore[arg-type]


def results(rows: list[Row], *arms: Arm, seed: int = 0) -> Results:
    return Results(rows, arms, "A trial", "tiny", "data 1, test split", seed)


def scored(
    gains: dict[Arm, Callable[[int], float]], *, users: int = 8, metric: str = "rouge1", each: int = 2
) -> Table:
    """One table: `each` examples of each user, the baseline at 0.3 and each arm at 0.3 + its gain."""
    rows = [
        row(arm, f"{user}.{i}", (f"u{user}",), scores={metric: 0.3 + 0.01 * i + gain(user)})
        for arm, gain in {NONE: lambda _: 0.0, **gains}.items()
        for user in range(users)
        for i in range(each)
    ]
    (table,) = summary(results(rows, NONE, *gains))
    return table


def verdict(table: Table, arm: Arm = ONE) -> str:
    (found,) = [each.words for each in table.verdicts if each.arm == arm.name]
    return found


def up(user: int) -> float:
    return 0.1 + 0.01 * user


def unclear(user: int) -> float:
    return 0.05 * (-1) ** user


def down(user: int) -> float:
    return -up(user)


def test_means_and_differences_are_those_of_the_statistics() -> None:
    rows = [row(NONE, str(i), (f"u{i % 3}",), scores={"rouge1": 0.1 * i}) for i in range(6)]
    rows += [row(ONE, str(i), (f"u{i % 3}",), scores={"rouge1": 0.2 * i}) for i in range(4)]
    (table,) = summary(results(rows, NONE, ONE, seed=3))
    assert (table.task, table.baseline, table.examples, table.users) == ("some task", "none", 6, 3)
    cell = table.cells["method · one", "rouge1"]
    assert (cell.mean, cell.n, cell.users) == (pytest.approx(0.3), 4, 3)
    pair = table.against("method · one", "rouge1")
    assert pair is not None
    shared = range(4)
    assert pair.found == compare(
        [0.2 * i for i in shared], [0.1 * i for i in shared], [f"u{i % 3}" for i in shared], seed=3
    )
    assert table.against("none", "rouge1") is None


def test_all_comparisons_of_a_task_share_holms_correction() -> None:
    table = scored({ONE: up, ALL: lambda user: 2 * up(user), SWAP: unclear})
    assert [(pair.kind, pair.arm, pair.other) for pair in table.pairs] == [
        ("baseline", "method · one", "none"),
        ("baseline", "method · all", "none"),
        ("baseline", "method · one · swap-user", "none"),
        ("users", "method · all", "method · one"),
        ("control", "method · one", "method · one · swap-user"),
    ]
    assert [pair.p for pair in table.pairs] == holm([pair.found.p for pair in table.pairs])
    assert next(table.pairs_of("users")).found.mean == pytest.approx(fmean(up(user) for user in range(8)))


def test_one_user_is_not_tested_and_costs_the_others_nothing() -> None:
    rows = [row(arm, str(i), (f"u{i}",)) for arm in (NONE, ONE) for i in range(8)]
    rows += [row(ALL, "0", ("u0",))]
    (table,) = summary(results(rows, NONE, ONE, ALL))
    alone = table.against("method · all", "rouge1")
    assert alone is not None
    assert not alone.found.defined
    assert math.isnan(alone.p)
    other = table.against("method · one", "rouge1")
    assert other is not None
    assert other.p == other.found.p


def test_arms_that_share_no_example_or_no_score_are_not_compared() -> None:
    rows = [row(NONE, "a"), row(ONE, "b"), row(ALL, "a", scores={"chrf": 40.0})]
    (table,) = summary(results(rows, NONE, ONE, ALL))
    assert table.pairs == []
    assert table.verdicts == []
    assert table.metrics == ["rouge1", "chrf"]
    assert ("method · all", "rouge1") not in table.cells


@pytest.mark.parametrize(
    ("gains", "users", "words"),
    [
        ({ONE: up}, 8, UNCONTROLLED),
        ({ONE: up, CUT: up}, 8, UNCONTROLLED),  # a shorter history of one's own takes nobody away
        ({ONE: up, SWAP: unclear}, 8, GAINS),
        ({ONE: up, SWAP: down}, 8, GAINS),
        ({ONE: lambda user: 2 * up(user), SWAP: up}, 8, GAINS),  # the control gains, but clearly less
        ({ONE: up, SWAP: up}, 8, IMPERSONAL),
        ({ONE: up, SWAP: lambda user: 2 * up(user)}, 8, IMPERSONAL),
        ({ONE: unclear, SWAP: up}, 8, UNCLEAR),
        ({ONE: down, SWAP: unclear}, 8, WORSE),
        ({ONE: up, SWAP: unclear}, 5, FEW),
    ],
)
def test_a_gain_counts_when_the_control_loses_it(
    gains: dict[Arm, Callable[[int], float]], users: int, words: str
) -> None:
    assert verdict(scored(gains, users=users)) == words


def test_where_lower_is_better_a_fall_is_the_gain() -> None:
    assert verdict(scored({ONE: down, SWAP: unclear}, metric="bits_per_byte")) == GAINS
    assert verdict(scored({ONE: up, SWAP: unclear}, metric="bits_per_byte")) == WORSE


def test_length_gets_no_verdict() -> None:
    table = scored({ONE: up}, metric="words")
    assert table.verdicts == []
    assert table.against("method · one", "words") is not None


def test_every_control_that_takes_the_user_away_must_lose_the_gain() -> None:
    random = Arm("method · one · random-profile", "method", "one", "random-profile", "method · one")
    assert verdict(scored({ONE: up, SWAP: unclear, random: up})) == IMPERSONAL


def test_official_metrics_come_first_in_verdicts() -> None:
    rows = [
        row(
            arm,
            str(i),
            task="LaMP-4",
            scores={"chrf": 30.0, "rougeL": 0.2, "rouge1": 0.3, "bits_per_byte": 1.0},
        )
        for arm in (NONE, ONE)
        for i in range(2)
    ]
    (table,) = summary(results(rows, NONE, ONE))
    assert table.main == ["rouge1", "rougeL", "bits_per_byte"]


def test_macro_f1_is_of_all_answers_together() -> None:
    answers = {NONE: ["[1]", "[1]", None, "[2]"], ONE: ["[1]", "[2]", "[1]", "[2]"]}
    rows = [
        row(arm, str(i), task="LaMP-1", gold=gold, answer=answer, scores={"accuracy": float(answer == gold)})
        for arm, given in answers.items()
        for i, (answer, gold) in enumerate(zip(given, ["[1]", "[2]", "[1]", "[2]"], strict=True))
    ]  # fmt: skip
    (table,) = summary(results(rows, NONE, ONE))
    assert table.metrics == ["accuracy", "macro_f1"]
    # [1]: 1 hit, 2 right, 2 answered; [2]: 1 hit, 2 right, 1 answered
    assert table.cells["none", "macro_f1"].mean == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert table.cells["method · one", "macro_f1"].mean == pytest.approx(1.0)
    assert table.cells["none", "macro_f1"].worst is None
    assert table.counts["none"].unreadable == 1


def test_the_root_is_taken_of_mean_squared_errors() -> None:
    rows = [row(NONE, str(i), (f"u{i}",), scores={"rmse": float(i * i)}) for i in range(3)]
    (table,) = summary(results(rows, NONE))
    cell = table.cells["none", "rmse"]
    assert cell.mean == pytest.approx(math.sqrt(5 / 3))
    assert cell.worst == pytest.approx(2.0)


def test_worst_tenth_is_of_users_and_in_the_metrics_direction() -> None:
    for metric, worst in (("rouge1", 0.05), ("bits_per_byte", 1.85)):
        rows = [
            row(NONE, f"{i}.{j}", (f"u{i}",), scores={metric: i / 10 + j / 10})
            for i in range(19)
            for j in (0, 1)
        ]
        (table,) = summary(results(rows, NONE))
        assert table.cells["none", metric].worst == pytest.approx(worst)


def test_what_went_wrong_is_counted() -> None:
    rows = [
        row(ONE, "a", text=" \n", answer=None),
        row(ONE, "b", text="hm", answer=None, finish="length"),
        row(ONE, "c"),
    ]
    (table,) = summary(results(rows, ONE))
    counts = table.counts["method · one"]
    assert (counts.rows, counts.empty, counts.unreadable, counts.cut) == (3, 1, 1, 1)


def test_groups_and_histories_are_looked_at_apart() -> None:
    rows = []
    for i in range(8):
        users = (f"u{i}",) if i < 6 else (f"u{i}", "v")
        rows.append(row(NONE, str(i), users, history=0 if i < 2 else 12))
        rows.append(row(ONE, str(i), users, history=0 if i < 2 else 12, scores={"rouge1": 0.6}))
        rows.append(row(SWAP, str(i), users, history=99))
    (table,) = summary(results(rows, NONE, ONE, SWAP))
    found = {part: {each.arm: (each.n, each.users) for each in slices} for part, slices in table.parts()}
    assert found == {
        "single authors": {"none": (6, 6), "method · one": (6, 6)},
        "several authors": {"none": (2, 2), "method · one": (2, 2)},
        "history of 0": {"none": (2, 2), "method · one": (2, 2)},
        "history of 10–19": {"none": (6, 6), "method · one": (6, 6)},
    }
    alone = dict(table.parts())["single authors"][1]
    assert alone.against is not None
    assert alone.against.mean == pytest.approx(0.1)


def test_parts_that_hold_everything_are_not_shown() -> None:
    assert scored({ONE: up}).slices == []


def test_user_means_are_over_shared_examples() -> None:
    rows = [
        row(NONE, "a", ("u",), scores={"rouge1": 0.1}),
        row(NONE, "b", ("u",), scores={"rouge1": 0.9}),
        row(NONE, "c", ("v",), scores={"rouge1": 0.4}),
        row(ONE, "a", ("u",), scores={"rouge1": 0.3}),
        row(ONE, "c", ("v",), scores={"rouge1": 0.2}),
    ]
    found = user_means(results(rows, NONE, ONE), "some task", "method · one", "none", "rouge1")
    assert [(mean.user, mean.arm, mean.other, mean.n) for mean in found] == [
        ("u", 0.3, 0.1, 1),
        ("v", 0.2, 0.4, 1),
    ]


def test_leading_examples_are_one_of_each_user_or_group() -> None:
    rows = [row(NONE, "a"), row(NONE, "b"), row(NONE, "c", ("u", "v")), row(ONE, "c", ("u", "v"))]
    found = results(rows, NONE, ONE)
    assert [each[0].example for each in leading(found, "some task")] == ["c", "a"]
    assert leading(found, "some task", 0) == []


def test_a_table_for_each_task_in_order() -> None:
    rows = [row(NONE, "a", task="second"), row(NONE, "a", task="first"), row(ONE, "a", task="first")]
    tables = summary(results(rows, NONE, ONE))
    assert [(table.task, len(table.arms)) for table in tables] == [("second", 1), ("first", 2)]


def test_the_groups_of_users_are_parts_the_majority_first() -> None:
    labels = {f"u{i}": "unlike most" if i < 3 else "like most" for i in range(9)}  # u9 is in no group
    rows = [
        row(arm, str(i), (f"u{i}",), scores={"rouge1": 0.1 * i}) for arm in (NONE, ONE) for i in range(10)
    ]
    found = replace(results(rows, NONE, ONE), groups=labels)
    (table,) = summary(found)
    parts = {part: (lines[0].n, lines[1].against is not None) for part, lines in table.parts()}
    assert parts == {"users like most": (6, True), "users unlike most": (3, True)}
    (alone,) = summary(replace(found, groups=dict.fromkeys(labels, "like most")))
    assert alone.slices == []


def test_tables_are_made_once_for_the_same_results() -> None:
    rows = [row(arm, str(i), (f"u{i}",)) for arm in (NONE, ONE) for i in range(3)]
    found = results(rows, NONE, ONE)
    assert summary(found)[0] is summary(found)[0]
    other = replace(found, seed=1)
    assert summary(other)[0] is not summary(found)[0]
