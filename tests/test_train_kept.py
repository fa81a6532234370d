"""Numbers that a model is asked for once, and kept."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from penname.errors import TrainedError
from penname.train.kept import Asked, Kept

A: Asked = ((1, 2), (3,))
B: Asked = ((1,), (2, 3))
C: Asked = ((1, 2, 3), ())


class Counting:
    """Answers by the ids, a portion of two at a time, from the last to the first; may be killed."""

    def __init__(self, killed_after: int = 99) -> None:
        self.asked: list[Asked] = []
        self.killed_after = killed_after

    def __call__(self, asked: Sequence[Asked]) -> Iterator[Mapping[int, float]]:
        places = list(range(len(asked)))[::-1]
        for at in range(0, len(places), 2):
            if at // 2 == self.killed_after:
                raise KeyboardInterrupt
            self.asked += [asked[place] for place in places[at : at + 2]]
            yield {place: number(asked[place]) for place in places[at : at + 2]}


def number(asked: Asked) -> float:
    prompt, answer = asked
    return -sum(prompt) / 3 - 10 * len(answer)


def test_each_is_computed_once_and_answered_in_order(tmp_path: Path) -> None:
    compute = Counting()
    kept = Kept(tmp_path / "kept.sqlite", "m")
    assert kept.ask([A, B, A, C], compute) == [number(one) for one in (A, B, A, C)]
    assert sorted(compute.asked) == sorted([A, B, C])
    assert Kept(tmp_path / "kept.sqlite", "m").ask([C, A], compute) == [number(C), number(A)]
    assert len(compute.asked) == 3
    assert kept.ask([], compute) == []


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    compute = Counting()
    for model in ("weights float32", "weights bfloat16", "other float32"):
        Kept(tmp_path / "kept.sqlite", model).ask([A], compute)
    assert compute.asked == [A, A, A]


def test_a_kill_loses_the_portion_in_flight_alone(tmp_path: Path) -> None:
    many = [((n,), (n, n)) for n in range(9)]
    kept = Kept(tmp_path / "kept.sqlite", "m")
    with pytest.raises(KeyboardInterrupt):
        kept.ask(many, Counting(killed_after=3))
    rest = Counting()
    assert kept.ask(many, rest) == [number(one) for one in many]
    assert rest.asked == [many[2], many[1], many[0]]


def test_where_a_prompt_ends_matters(tmp_path: Path) -> None:
    compute = Counting()
    cut = [((1, 2), (3,)), ((1,), (2, 3)), ((12,), (3,)), ((1, 23), ())]
    assert Kept(tmp_path / "kept.sqlite", "m").ask(cut, compute) == [number(one) for one in cut]
    assert len(compute.asked) == 4


def test_the_file_holds_hashes_and_numbers(tmp_path: Path) -> None:
    Kept(tmp_path / "kept.sqlite", "m").ask([A], Counting())
    database = sqlite3.connect(tmp_path / "kept.sqlite")
    [(key, value)] = database.execute("SELECT * FROM kept").fetchall()
    database.close()
    assert (len(key), value) == (32, number(A))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "kept.sqlite").write_bytes(b"not a database at all, and long enough to be read as one" * 50)
    with pytest.raises(TrainedError, match=r"kept\.sqlite: .*: remove it, and it is made again"):
        Kept(tmp_path / "kept.sqlite", "m").ask([A], Counting())


def test_texts_are_kept_as_well_as_token_ids(tmp_path: Path) -> None:
    asked = [("a", "b c"), ("a b", "c"), ("a", "b", "c"), ("ä\ud800", '"')]
    seen: list[tuple[str, ...]] = []

    def compute(missing: Sequence[tuple[str, ...]]) -> Iterator[Mapping[int, float]]:
        seen.extend(missing)
        yield {place: float(place) for place in range(len(missing))}

    for _ in range(2):
        assert Kept(tmp_path / "kept.sqlite", "m").ask(asked, compute) == [0, 1, 2, 3]
    assert seen == asked


def test_without_a_file_nothing_is_kept() -> None:
    compute = Counting()
    kept = Kept(None, "m")
    for _ in range(2):
        assert kept.ask([A, B, A], compute) == [number(one) for one in (A, B, A)]
    assert len(compute.asked) == 4


def test_a_file_that_cannot_be_used_now_is_not_to_be_removed(tmp_path: Path) -> None:
    with pytest.raises(TrainedError, match=r"kept\.sqlite cannot be read or written now: unable to open"):
        Kept(tmp_path / "nowhere" / "kept.sqlite", "m").ask([A], Counting())
