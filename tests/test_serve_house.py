"""What requests share: names of methods and runs, models that write for many at once, the latest drafts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import stores
from models import ToldModel
from penname.errors import (
    BadInputError,
    TrainedError,
    UnknownMethodError,
    UnknownRetrieverError,
)
from penname.lm import ModelConfig
from penname.lm.embedded import GGUFModel
from penname.lm.local import TransformersLM
from penname.records import Document, Draft, Request
from penname.serve.drafts import Drafts, Kept
from penname.serve.engine import Batcher
from penname.serve.house import House
from penname.serve.settings import ServeSettings
from penname.serve.writing import Drafting
from retrieve_helpers import WordEmbedder
from trained_runs import ROWS, WIDTH, rows, save_card, save_run

NOW = datetime(2024, 3, 1, tzinfo=UTC)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    opened = House(ServeSettings(db=stores.fresh("sqlite", tmp_path)), model=ToldModel())
    yield opened
    opened.close()


# --- names of methods and runs


def test_a_method_goes_by_its_client_name(house: House, tmp_path: Path) -> None:
    for name, method in (("mine", "p-dpo"), ("liked", "p-rm"), ("better", "pit-rl"), ("half", "pit-gap")):
        house.store.add_trained(save_card(tmp_path / name, "individual", method=method), method)
    house.store.add_trained(tmp_path / "gone", "p-dpo")
    assert set(house.runs()) == {"mine", "liked", "better", "half"}
    assert house.models() == [
        "penname/none",
        "penname/retrieval",
        "penname/step-back",
        "penname/step-back+retrieval",
        "penname/p-dpo:mine",
        "penname/p-rm:liked",
        "penname/pit:better",
    ]
    named = {
        "penname": "step-back+retrieval",
        "penname/none": "none",
        "retrieval:recency": "retrieval:recency",
        "penname/p-dpo:mine": "p-dpo:mine",
        "penname/mine": "p-dpo:mine",
        "penname/step-back+mine+better": "step-back+p-dpo:mine+pit:better",
        "penname/p-dpo+pit": "p-dpo:mine+pit:better",  # the only ones that there are
        "penname/p-rm:mine": "p-rm:mine",  # the implicit reward of p-dpo
    }
    for name, method in named.items():
        assert house.method(name) == method
        assert house.method(method) == method


@pytest.mark.parametrize(
    "name",
    [
        "p-dpo:/etc",
        "p-dpo:../mine",
        "p-dpo:..",
        "pit:..",
        "pit:mine",
        "rest-pg",
        "p-dpo:gone",
        "half",
        "",
        "penname/",
        "penname/penname",
        "p-dpo:",
        "/etc/passwd",
        "none+p-dpo:.",
        "p-dpo:mine/",
        "p-dpo:./mine",
        "gpt-4",
    ],
)
def test_what_is_no_run_of_the_server_is_unknown(house: House, tmp_path: Path, name: str) -> None:
    for run, method in (("mine", "p-dpo"), ("half", "pit-gap")):
        house.store.add_trained(save_card(tmp_path / run, "individual", method=method), method)
    for ask in (house.method, house.writer):
        with pytest.raises(UnknownMethodError) as error:
            ask(name)
        assert str(tmp_path) not in str(error.value)


def test_an_absolute_path_is_unknown_too(house: House, tmp_path: Path) -> None:
    folder = save_card(tmp_path / "mine", "individual")
    house.store.add_trained(folder, "p-dpo")
    with pytest.raises(UnknownMethodError):
        house.method(f"p-dpo:{folder}")


def test_what_cannot_be_joined_is_bad_input(house: House) -> None:
    for name in ("none+retrieval", "retrieval+retrieval", "step-back:x"):
        with pytest.raises(BadInputError):
            house.method(name)
    with pytest.raises(UnknownRetrieverError):
        house.method("retrieval:../x")


def test_of_several_runs_of_a_stage_one_must_be_named(house: House, tmp_path: Path) -> None:
    for name in ("one", "two"):
        house.store.add_trained(save_card(tmp_path / name, "individual"), "p-dpo")
    with pytest.raises(UnknownMethodError, match="p-dpo:one"):
        house.method("p-dpo")


def test_folders_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    folders = [save_card(tmp_path / part / "run", "individual") for part in ("a", "b")]
    house = House(ServeSettings(db=stores.fresh("sqlite", tmp_path), runs=(folders[0],)), model=ToldModel())
    assert set(house.runs()) == {"run"}
    house.store.add_trained(folders[1], "p-dpo")
    assert len(house.runs()) == 2
    assert all(name.startswith("run-") for name in house.runs())
    house.close()


def test_a_folder_that_cannot_be_served_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(TrainedError, match="no-run"):
        House(
            ServeSettings(db=stores.fresh("sqlite", tmp_path), runs=(tmp_path / "no-run",)), model=ToldModel()
        )
    with pytest.raises(BadInputError, match="rename"):
        House(
            ServeSettings(db=stores.fresh("sqlite", tmp_path), runs=(save_card(tmp_path / "a+b", "none"),)),
            model=ToldModel(),
        )


# --- trained parts


def test_a_run_is_opened_once_and_writes_for_mixed_users_together(tmp_path: Path, tiny_model: Path) -> None:
    vectors = {user: rows(seed, ROWS, WIDTH) for seed, user in enumerate(("ann", "bob"))}
    run = save_run(tmp_path / "mine", tiny_model, "individual", vectors)
    house = House(
        ServeSettings(db=stores.fresh("sqlite", tmp_path), runs=(run,)),
        model=TransformersLM(ModelConfig(str(tiny_model), dtype="float32", shape="completion")),
    )
    try:
        for user in vectors:
            house.store.add_user(user)
        writers = [house.writer("mine", temperature=0, max_tokens=8) for _ in range(2)]
        assert writers[0].personal is writers[1].personal
        assert isinstance(writers[0].writes, Batcher)
        requests = [Request(input="the cat sat", users=(user,)) for user in vectors]

        def draft(request: Request) -> str:
            drafting = Drafting(house.writer("mine", temperature=0, max_tokens=8), request)
            text = "".join(drafting.pieces())
            assert drafting.draft.text == text
            return text

        alone = [draft(request) for request in requests]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(draft, requests * 2))
        assert together == alone * 2
        assert len(set(alone)) == 2
    finally:
        house.close()


# --- drafts


def kept(
    id: str,  # noqa: A002
    *users: str,
    text: str = "a text",
) -> Kept:
    request = Request(input="something", users=users)
    return Kept(id, NOW, (Draft(text=text, request=request, method="none", model="told", finish="stop"),))


def test_a_draft_is_found_by_its_own_users_alone() -> None:
    drafts = Drafts()
    for one in (kept("1", "ann"), kept("2", "bob"), kept("3", "ann", "bob")):
        drafts.keep(one)
    assert drafts.get("1", ["ann"]) is not None
    assert drafts.get("2", ["ann"]) is None
    assert drafts.get("3", ["ann"]) is None
    assert drafts.get("3", ["bob", "ann", "eve"]) is not None
    assert [one.id for one in drafts.latest(["ann"])] == ["1"]
    assert [one.id for one in drafts.latest(["ann", "bob"])] == ["3", "2", "1"]
    assert drafts.forget("ann") == 2
    assert [one.id for one in drafts.latest(["ann", "bob"])] == ["2"]


def test_the_latest_of_each_user_are_kept_within_the_memory() -> None:
    drafts = Drafts(latest=2)
    for number in range(5):
        drafts.keep(kept(str(number), "ann"))
    drafts.keep(kept("b", "bob"))
    assert [one.id for one in drafts.latest(["ann", "bob"])] == ["b", "4", "3"]
    small = Drafts(memory=5_000)
    for number in range(10):
        small.keep(kept(str(number), f"user {number}", text="word " * 200))
    assert small.size <= 5_000
    assert 0 < len(small.latest([f"user {number}" for number in range(10)])) < 5
    small.keep(kept("huge", "ann", text="x" * 10_000))
    assert small.get("huge", ["ann"]) is None
    assert small.size == 0


def test_nothing_is_kept_of_who_was_erased_meanwhile(house: House) -> None:
    house.store.add_user("ann").add([Document(text="a text")])
    drafting = Drafting(house.writer("none"), Request(input="something", users=("ann",)))
    drafting.write()
    house.keep("1", "none", [drafting.draft])
    assert house.drafts.get("1", ["ann"]) is not None
    house.store.user("ann").erase()
    house.keep("2", "none", [drafting.draft])
    assert house.drafts.latest(["ann"]) == []


def test_a_kept_draft_tells_no_path_of_the_server(house: House) -> None:
    house.store.add_user("ann")
    drafting = Drafting(house.writer("none"), Request(input="something", users=("ann",)))
    draft = drafting.write().model_copy(update={"method": "p-dpo:/srv/run", "model": "/srv/models/base"})
    house.keep("1", "p-dpo:run", [draft])
    found = house.drafts.get("1", ["ann"])
    assert found is not None
    assert (found.drafts[0].method, found.drafts[0].model) == ("p-dpo:run", "base")


def test_retrievers_are_shared_between_requests(house: House) -> None:
    house.store.add_user("ann").add([Document(title="x", text="a text")])
    writers = [house.writer(name) for name in ("retrieval", "step-back+retrieval", "penname")]
    assert len({id(writer.search) for writer in writers}) == 1
    writers[0].write(Request(input="x", users=("ann",)))
    assert house.forget(house.store.user("ann")) == 0


def test_stops_and_lengths_are_told_of_a_stream(house: House) -> None:
    house.model.answer = lambda prompt: "one two STOP three"  # type: ignore[attr-defined]
    house.store.add_user("ann")
    request = Request(input="something", users=("ann",))
    drafting = Drafting(house.writer("none"), request, stop=["STOP"])
    assert drafting.write().text == "one two "
    short = Drafting(house.writer("none", max_tokens=3), request)
    assert "".join(short.pieces()) == "one two STOP three"
    assert short.draft.finish == "length"


@pytest.mark.parametrize("name", ["dense", "fusion"])
def test_what_retrieval_embeds_is_computed_where_all_else_is(
    house: House, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    used: set[str] = set()

    class Told(WordEmbedder):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            used.add(threading.current_thread().name)
            return super().embed(texts)

    monkeypatch.setattr("penname.serve.house.load_embedder", Told)
    house.store.add_user("ann").add([Document(id=text, title=text, text=text) for text in ("bees", "tea")])
    writer = house.writer(f"retrieval:{name}", k=1)
    draft = Drafting(writer, Request(input="bees", users=("ann",))).write()
    assert [hit.document.id for hit in draft.documents] == ["bees"]
    assert used == {"penname-compute_0"}


def test_a_users_prompts_are_kept_for_that_user_alone_unless_the_server_may_share_them(
    tmp_path: Path, tiny_model: Path
) -> None:
    db = stores.fresh("sqlite", tmp_path)
    for model, shape in ((None, "completion"), (str(tiny_model), "chat")):
        house = House(ServeSettings(db=db, model=model))
        assert isinstance(house.model, Batcher), "not OpenVINO, which keeps all prompts together"
        assert house.model.shape == shape
        house.close()
    house = House(ServeSettings(db=db, share_prompts=True))
    assert isinstance(house.model, GGUFModel)
    house.close()
