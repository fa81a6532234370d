"""What benchmarks read: splits, tasks, real texts, versions; and what they refuse."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from evaluate_helpers import PROPOSALS, club, request, write_proposals
from penname.errors import (
    BadInputError,
    UnknownBenchmarkError,
    UnknownSplitError,
    UnknownTaskError,
)
from penname.evaluate.benchmarks import BENCHMARKS, Loaded, load
from penname.store import Store
from penname.tasks import TASKS
from stores import fresh


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(fresh("sqlite", tmp_path)) as opened:
        yield opened


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def lamp(folder: Path, task: int, ids: str = "123", split: str = "dev", golds: str | None = None) -> Path:
    entry = {"id": "p", "title": "Old roads", "text": "We map.", "abstract": "We map."}
    asked = [{"id": one, "input": f"article: Question {one}?", "profile": [entry, entry]} for one in ids]
    answers = [{"id": one, "output": f"gold {one}"} for one in (ids if golds is None else golds)]
    dump(folder / f"{split}_questions.json", asked)
    dump(folder / f"{split}_outputs.json", {"task": f"LaMP_{task}", "golds": answers})
    return folder


def ids(found: Loaded, task: str) -> list[str]:
    return [one.id for one in found.requests if one.task == task]


def test_lamp_s_tasks_lie_in_folders_and_share_no_user(store: Store, tmp_path: Path) -> None:
    lamp(tmp_path / "LaMP_4", 4)
    lamp(tmp_path / "LaMP-6", 6)
    told = list[str]()
    found = load("lamp", store, data=tmp_path, note=told.append)
    assert ids(found, "LaMP-4") == ["LaMP-4/1", "LaMP-4/2", "LaMP-4/3"]
    assert ids(found, "LaMP-6") == ["LaMP-6/1", "LaMP-6/2", "LaMP-6/3"]
    assert {user.id for user in store.users()} == {f"LaMP-{task}/{n}" for task in (4, 6) for n in (1, 2, 3)}
    assert told == ["lamp has no example of LaMP-1, LaMP-2, LaMP-3, LaMP-5, LaMP-7"]
    assert found.split == "dev"
    with pytest.raises(BadInputError, match="no example with a real text for LaMP-5"):
        load("lamp", store, data=tmp_path, tasks=["LaMP-4", "LaMP-5"])


def test_one_task_s_folder_or_file_is_enough(store: Store, tmp_path: Path) -> None:
    lamp(tmp_path, 4)
    found = load("lamp", store, data=tmp_path, tasks=["LaMP-4"])
    assert len(found.requests) == 3
    file = load("lamp", store, data=tmp_path / "dev_questions.json", tasks=["LaMP-4"])
    assert (file.requests, file.split) == (found.requests, "")
    assert file.data == f"lamp {file.version}"
    with pytest.raises(BadInputError, match="say which with --task"):
        load("lamp", store, data=tmp_path / "dev_questions.json")
    with pytest.raises(BadInputError, match="no split to choose"):
        load("lamp", store, data=tmp_path / "dev_questions.json", tasks=["LaMP-4"], split="test")
    with pytest.raises(BadInputError, match="name the folder of one task"):
        load("lamp", store, data=tmp_path)


def test_a_question_without_a_gold_and_the_reverse_are_told_and_counted(store: Store, tmp_path: Path) -> None:
    told = list[str]()
    found = load(
        "lamp", store, data=lamp(tmp_path, 4, "123", golds="234"), tasks=["LaMP-4"], note=told.append
    )
    assert ids(found, "LaMP-4") == ["LaMP-4/2", "LaMP-4/3"]
    assert found.remarks == ("2 rows of the files could not be used and were left out",)
    assert any("the question '1' has no gold" in one for one in told)
    assert any("the gold '4' has no question" in one for one in told)


def test_an_id_that_is_there_twice_is_told_and_counted_once(store: Store, tmp_path: Path) -> None:
    lamp(tmp_path / "lamp", 4, "122")
    found = load("lamp", store, data=tmp_path / "lamp", tasks=["LaMP-4"])
    assert ids(found, "LaMP-4") == ["LaMP-4/1", "LaMP-4/2"]
    entry = {"id": "p", "title": "T", "abstract": "We map roads.", "year": 2020}
    rows = [
        {"id": "7", "name": "ann", "input": f"Items: {n}", "output": f"Text {n}", "profile": [entry]}
        for n in (1, 2)
    ]
    dump(tmp_path / "longlamp" / "abstract" / "val.json", rows)
    told = list[str]()
    found = load("longlamp", store, data=tmp_path / "longlamp", tasks=["LongLaMP-abstract"], note=told.append)
    assert [(one.id, one.gold) for one in found.requests] == [("LongLaMP-abstract/7", "Text 1")]
    assert found.remarks == ("1 row of the files could not be used and were left out",)
    assert told == ["longlamp: a second example of LongLaMP-abstract with the id 'LongLaMP-abstract/7'"]


def test_a_gold_that_is_no_label_is_told(store: Store, tmp_path: Path) -> None:
    told = list[str]()
    with pytest.raises(BadInputError, match="no example"):
        load("lamp", store, data=lamp(tmp_path, 3), tasks=["LaMP-3"], note=told.append)
    assert told[0] == "lamp: the real answer 'gold 1' of 'LaMP-3/1' is none of the labels of LaMP-3"


def test_longlamp_s_tasks_lie_in_folders(store: Store, tmp_path: Path) -> None:
    topic = {
        "author": "ann",
        "input": "I",
        "output": "O",
        "profile": [{"id": 1, "summary": "s", "content": "c"}],
    }
    mail = {"id": "ann", "input": "I", "output": "O", "profile": [{"id": 1, "title": "s", "text": "c"}]}
    dump(tmp_path / "topic" / "val.json", [topic])
    dump(tmp_path / "LongLaMP-email" / "val.json", [mail])
    dump(tmp_path / "LongLaMP-email" / "test.json", [mail, {**mail, "id": "ben"}])
    found = load("longlamp", store, data=tmp_path)
    assert [(one.task, one.users) for one in found.requests] == [
        ("LongLaMP-email", ("LongLaMP-email/ann",)),
        ("LongLaMP-topic", ("LongLaMP-topic/ann",)),
    ]
    two = load("longlamp", store, data=tmp_path, split="test", tasks=["LongLaMP-email"])
    assert len(two.requests) == 2


def personamem(folder: Path, size: str) -> Path:
    row = {
        "persona_id": "7",
        "question_id": "q1",
        "user_question_or_message": "What now?",
        "correct_answer": "(b)",
        "all_options": "['(a) Tea.', '(b) Coffee.']",
        "shared_context_id": "c1",
        "end_index_in_shared_context": "2",
    }
    with (folder / f"questions_{size}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    turns = [{"role": "user", "content": f"User: I like {what}."} for what in ("coffee", "tea", "milk")]
    (folder / f"shared_contexts_{size}.jsonl").write_text(json.dumps({"c1": turns}) + "\n")
    return folder


def test_personamem_s_sizes_are_its_splits(store: Store, tmp_path: Path) -> None:
    personamem(personamem(tmp_path, "32k"), "128k")
    [one] = load("personamem", store, data=tmp_path, split="128k").requests
    assert (one.task, one.gold, one.options) == ("choice", "(b)", ("(a) Tea.", "(b) Coffee."))
    assert len(store.user("7").documents(exclude=one.exclude)) == 2
    assert load("personamem", store, data=tmp_path).split == "32k"
    assert load("personamem", store, data=tmp_path / "questions_128k.csv").split == "", "not 32k"


def test_one_s_own_store_is_a_benchmark(store: Store) -> None:
    club(store)
    asked = [
        request("e1", "ann"),
        request("e2", "ben", "ann"),
        request("e3", "cas", gold=None),
        request("e4", "dot", task="post"),
    ]
    for one in asked:
        store.user(one.users[0]).add_request(one)
    found = load("store", store)
    assert [one.id for one in found.requests] == ["e1", "e2", "e4"], "each once, and those with a real text"
    assert [one.id for one in load("store", store, tasks=["post"]).requests] == ["e4"]
    store.user("ann").add_request(request("e5", "ann"))
    assert load("store", store).version != found.version
    with pytest.raises(UnknownTaskError, match="did you mean 'post'"):
        load("store", store, tasks=["pots"])
    with pytest.raises(BadInputError, match="no example with a real text for email"):
        load("store", store, tasks=["email"])


def test_an_empty_store_has_nothing_to_evaluate(store: Store) -> None:
    with pytest.raises(BadInputError, match="store holds no example"):
        load("store", store)


def test_the_sample_comes_with_penname(store: Store) -> None:
    found = load("sample", store)
    assert (found.split, found.remarks) == ("", ())
    assert len(found.requests) == 26
    assert all(one.gold for one in found.requests)
    assert found.data == f"sample {found.version}"


# --- what holds for all


def test_the_version_is_of_what_was_read(store: Store, tmp_path: Path) -> None:
    path = write_proposals(tmp_path / "p.jsonl")
    first = load("proposals", store, data=path)
    assert (len(first.version), load("proposals", store, data=path).version) == (12, first.version)
    assert load("proposals", store, data=write_proposals(tmp_path / "copy.jsonl")).version == first.version
    write_proposals(path, [*PROPOSALS[:-1], {**PROPOSALS[-1], "category": "EIP"}])
    assert load("proposals", store, data=path).version != first.version
    folder = lamp(tmp_path / "lamp", 4)
    one = load("lamp", store, data=folder, tasks=["LaMP-4"])
    lamp(folder, 4, "1234")
    assert load("lamp", store, data=folder, tasks=["LaMP-4"]).version != one.version


@pytest.mark.parametrize("seed", [0, 1])
def test_a_larger_limit_keeps_the_examples_of_a_smaller(store: Store, tmp_path: Path, seed: int) -> None:
    folder = lamp(tmp_path, 4, "123456789")
    drawn = [
        load("lamp", store, data=folder, tasks=["LaMP-4"], limit=limit, seed=seed).requests
        for limit in range(1, 12)
    ]
    assert [len(requests) for requests in drawn] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9]
    for fewer, more in pairwise(drawn):
        assert more[: len(fewer)] == fewer
    assert Counter(drawn[-1]) == Counter(load("lamp", store, data=folder, tasks=["LaMP-4"]).requests)
    other = load("lamp", store, data=folder, tasks=["LaMP-4"], limit=9, seed=seed + 1).requests
    assert other != drawn[-1]


def test_a_limit_is_of_each_task(store: Store, tmp_path: Path) -> None:
    found = load("proposals", store, data=write_proposals(tmp_path / "p.jsonl"), limit=1)
    assert Counter(one.task for one in found.requests) == dict.fromkeys(("P-1", "P-2", "P-3", "P-4"), 1)
    assert len({one.id for one in found.requests}) == 1, "of one text, as far as it has all tasks"


def test_unknown_names_are_refused_with_the_nearest(store: Store, tmp_path: Path) -> None:
    path = write_proposals(tmp_path / "p.jsonl")
    with pytest.raises(UnknownBenchmarkError, match="did you mean 'proposals'"):
        load("proposal", store)
    with pytest.raises(UnknownTaskError, match=r"did you mean .*'P-4'"):
        load("proposals", store, data=path, tasks=["P4"])
    with pytest.raises(UnknownTaskError, match="'email'; there are P-1, P-2, P-3, P-4"):
        load("proposals", store, data=path, tasks=["email"])
    with pytest.raises(UnknownSplitError, match="did you mean 'test'"):
        load("proposals", store, data=path, split="tset")
    with pytest.raises(BadInputError, match="has no splits"):
        load("sample", store, split="test")
    with pytest.raises(BadInputError, match="reads no files"):
        load("sample", store, data=path)
    assert list(store.users()) == [], "nothing is read before"


def test_missing_data_are_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENNAME_DATA", raising=False)
    with pytest.raises(BadInputError, match="name them with --data, or the folder that holds"):
        load("proposals", store)
    monkeypatch.setenv("PENNAME_DATA", str(tmp_path))
    with pytest.raises(BadInputError, match=r"nothing at .*proposals\.jsonl\.gz"):
        load("proposals", store)
    lamp(tmp_path / "lamp", 4)
    assert len(load("lamp", store, tasks=["LaMP-4"]).requests) == 3
    with pytest.raises(BadInputError, match=r"no test_questions\.json"):
        load("lamp", store, tasks=["LaMP-4"], split="test")


def test_a_split_without_examples_is_told(store: Store, tmp_path: Path) -> None:
    path = write_proposals(tmp_path / "p.jsonl", PROPOSALS[:4])
    with pytest.raises(BadInputError, match="the test split of proposals holds no example"):
        load("proposals", store, data=path)


def test_every_benchmark_says_what_it_is() -> None:
    for name, one in BENCHMARKS.items():
        assert one.name == name
        assert one.help
        assert set(one.tasks) <= set(TASKS)
