"""The benchmark of improvement proposals: its splits, its tasks, its openings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate_helpers import PROPOSALS, proposal, write_proposals
from penname.errors import BadInputError
from penname.evaluate.benchmarks import Loaded, load
from penname.evaluate.proposals import OPENING, opening
from penname.store import Store
from penname.tasks import TASKS
from stores import fresh


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(fresh("sqlite", tmp_path)) as opened:
        yield opened


def ids(found: Loaded, task: str) -> list[str]:
    return [one.id for one in found.requests if one.task == task]


def test_splits_go_by_date_and_need_earlier_documents(store: Store, tmp_path: Path) -> None:
    path = write_proposals(tmp_path / "p.jsonl")
    found = {
        split: load("proposals", store, data=path, split=split) for split in ("train", "validation", "test")
    }
    assert ids(found["train"], "P-4") == ["erc-3"], "of ann, who has two earlier ones"
    assert ids(found["validation"], "P-4") == ["erc-4"], "of ann as well, though ben has one"
    assert ids(found["test"], "P-4") == ["erc-6", "erc-7"], "not erc-8, which has no title"
    assert load("proposals", store, data=path).requests == found["test"].requests
    assert found["test"].data == f"proposals {found['test'].version}, test split"
    assert found["test"].remarks == ()


def test_what_was_written_on_the_same_day_is_not_earlier(store: Store, tmp_path: Path) -> None:
    rows = [proposal(n, "2024-08-01" if n < 3 else "2024-08-02", "ann") for n in (1, 2, 3, 4)]
    found = load("proposals", store, data=write_proposals(tmp_path / "p.jsonl", rows), tasks=["P-4"])
    assert ids(found, "P-4") == ["erc-3", "erc-4"]
    assert all(one.before == datetime(2024, 8, 2, tzinfo=UTC) for one in found.requests)


def test_each_task_is_given_its_parts(store: Store, tmp_path: Path) -> None:
    found = load("proposals", store, data=write_proposals(tmp_path / "p.jsonl"))
    six = {one.task: one for one in found.requests if one.id == "erc-6"}
    assert {task: (one.input, one.gold) for task, one in six.items()} == {
        "P-1": ("Title 4", "Title 6"),
        "P-2": ("Title 4\nTitle 6", "Motivation 6."),
        "P-3": ("Title 6\nMotivation 6.", "Abstract 6."),
        "P-4": ("Abstract 6.", "Title 6"),
    }
    for one in six.values():
        assert (one.users, one.exclude) == (("cas", "ann"), ("erc-6",))
    assert ids(found, "P-1") == ["erc-6", "erc-7"], "a number is as good as its digits"
    lacks = load("proposals", store, data=write_proposals(tmp_path / "p.jsonl"), split="validation")
    assert [one.task for one in lacks.requests] == ["P-4"], "no motivation, and builds on nothing"


def test_documents_show_the_tasks_done(store: Store, tmp_path: Path) -> None:
    load("proposals", store, data=write_proposals(tmp_path / "p.jsonl"))
    third = store.user("ann").document("erc-3")
    assert third.fields["builds_on"] == "Title 1; Title 2"
    assert TASKS["P-2"].example(third) == ("Title 1; Title 2\nTitle 3", "Motivation 3.")
    assert [one.id for one in store.user("cas").documents()] == ["erc-5", "erc-6", "erc-8"]


@given(st.text(alphabet="ab .!?\n", max_size=60), st.integers(5, 30))
def test_an_opening_is_a_beginning_of_whole_sentences(text: str, limit: int) -> None:
    found = opening(text, limit)
    assert text.strip().startswith(found)
    assert len(found) <= limit
    following = text.strip()[len(found) :]
    assert not following or following[0].isspace() or not any(one.isspace() for one in found)
    assert not following or found[-1] in ".!?" or not re.search(r"[.!?]\s", found)


def test_a_long_motivation_is_cut_to_its_opening(store: Store, tmp_path: Path) -> None:
    long = "This is a sentence of ours. " * 60
    rows = [*PROPOSALS, proposal(9, "2025-02-01", "ann", motivation=long, requires=["1"])]
    found = load("proposals", store, data=write_proposals(tmp_path / "p.jsonl", rows), tasks=["P-2"])
    gold = found.requests[-1].gold
    assert gold is not None
    assert gold.endswith("ours.")
    assert OPENING - 28 < len(gold) <= OPENING
    assert opening("word " * 500) == ("word " * 160).strip()


def test_rows_that_cannot_be_used_are_told_and_counted(store: Store, tmp_path: Path) -> None:
    path = write_proposals(tmp_path / "p.jsonl", [*PROPOSALS, proposal(1, "2025-01-01", "ann")])
    with path.open("a") as file:
        file.write("nonsense\n")
    told = list[str]()
    found = load("proposals", store, data=path, note=told.append)
    assert found.remarks == ("2 rows of the files could not be used and were left out",)
    assert len(told) == 2
    assert any("a second document 'erc-1' of 'ann'" in one for one in told)
    assert any(f"{path}:10: " in one for one in told)
    assert store.user("ann").document("erc-1").written_at == datetime(2020, 1, 1, tzinfo=UTC)


def test_documents_without_a_date_are_refused(store: Store, tmp_path: Path) -> None:
    rows = [*PROPOSALS, {key: value for key, value in proposal(9, "", "ann").items() if key != "created"}]
    with pytest.raises(BadInputError, match="'erc-9' has no date"):
        load("proposals", store, data=write_proposals(tmp_path / "p.jsonl", rows))


def test_the_real_proposals_are_split_as_agreed(store: Store, shared_data: Path) -> None:
    kept = {"test": (216, 105), "validation": (60, 25), "train": (284, 100)}
    for split, (number, together) in kept.items():
        found = load("proposals", store, data=shared_data / "proposals.jsonl.gz", split=split, tasks=["P-4"])
        assert len(found.requests) == number
        assert found.remarks == ()
        earlier = [
            sum(len(store.user(user).documents(one.before, one.exclude)) >= 2 for user in one.users)
            for one in found.requests
        ]
        assert all(earlier)
        assert sum(count >= 2 for count in earlier) == together
