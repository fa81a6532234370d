"""One model for many threads: who comes joins, and neither texts nor prompts hang on another's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stores
from models import ToldModel
from penname.errors import ModelError, PromptTooLongError
from penname.lm import ModelConfig
from penname.lm.base import Asked, Generation, Prefix, Sampling
from penname.lm.local import TransformersLM
from penname.lm.prompt_cache import PromptCache
from penname.records import Document, Request
from penname.serve import engine as engine_module
from penname.serve.compute import compute
from penname.serve.engine import Alone, Batcher, owned, shared
from penname.serve.house import House
from penname.serve.settings import ServeSettings
from penname.serve.writing import Drafting
from serve_models import TogetherModel, TogetherSession, until_waiting

GREEDY = Sampling(max_tokens=8, temperature=0)


def test_what_waits_joins_together_whatever_its_settings() -> None:
    model = TogetherModel(lambda prompt: f"for {prompt}")
    told: list[int] = []
    batcher = Batcher(model, told=told.append)
    model.go.clear()
    users = ["ann", "bob", "eve"]
    prefixes = {user: Prefix(f"key of {user}", np.zeros((2, 4), np.float32)) for user in users}
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher.generate, ["first"])
        model.begun.wait()
        others = [
            pool.submit(batcher.generate, [f"of {user}"], 1, Sampling(seed=seed), [prefixes[user]])
            for seed, user in enumerate(users)
        ]
        stream = pool.submit(lambda: "".join(batcher.stream("streamed")))
        hot = pool.submit(batcher.generate, ["hot"], 1, Sampling(temperature=1.5))
        until_waiting(batcher, 5)
        model.go.set()
        assert first.result()[0][0].text == "for first"
        assert [other.result()[0][0].text for other in others] == [f"for of {user}" for user in users]
        assert stream.result() == "for streamed"
        assert hot.result()[0][0].text == "for hot"
    batcher.close()
    assert list(map(len, model.batches)) == [1, 5]
    expected = [("streamed", None), ("hot", None), *((f"of {user}", f"key of {user}") for user in users)]
    assert sorted(model.batches[1], key=str) == sorted(expected, key=str)
    assert told == [1, 6]  # the first was being written still
    assert len(model.sessions) == 1
    with pytest.raises(ModelError, match="stopping"):
        batcher.generate(["late"])
    with pytest.raises(ModelError, match="stopping"):
        batcher.score(["late"], ["text"])


class Threads(TogetherModel):
    """Remembers the threads that it was used in."""

    def __init__(self, used: set[str]) -> None:
        super().__init__()
        self.used = used

    def session(self) -> TogetherSession:
        self.used.add(threading.current_thread().name)
        return super().session()

    def _see(self, prefixes: Sequence[Prefix | None]) -> None:
        """Texts join, or are scored."""
        self.used.add(threading.current_thread().name)
        super()._see(prefixes)


def test_all_models_of_a_server_compute_in_one_thread() -> None:
    used: set[str] = set()
    batchers = [Batcher(Threads(used)) for _ in range(2)]
    alone: Any = Alone(Threads(used))  # as a reward is held
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(one.generate, ["a", "b"]) for one in batchers]
        scores = [pool.submit(one.score, ["a"], ["text"]) for one in (*batchers, alone)]
        for call in (*calls, *scores):
            call.result()
    for one in batchers:
        one.close()
    assert used == {"penname-compute_0"}
    assert alone.name == "together"


def test_what_goes_wrong_while_computing_is_raised_where_it_was_asked_for() -> None:
    with pytest.raises(ZeroDivisionError):
        compute(lambda: 1 // 0)
    assert compute(lambda: compute(lambda: 2)) == 2  # who computes already does not wait for itself


def test_calls_take_turns() -> None:
    model = TogetherModel()
    batcher = Batcher(model, rows=4)
    model.go.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher.generate, ["first"])
        model.begun.wait()
        large = pool.submit(batcher.generate, [f"large {i}" for i in range(9)])
        until_waiting(batcher, 1)
        small = pool.submit(batcher.generate, ["small"])
        until_waiting(batcher, 2)
        model.go.set()
        assert [len(call.result()) for call in (first, large, small)] == [1, 9, 1]
    batcher.close()
    assert ("small", None) in model.batches[1]
    assert all(len(batch) <= 4 for batch in model.batches)


def test_one_that_cannot_be_written_spoils_nobody_elses_text(tiny_model: Path) -> None:
    model = TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))
    [[alone]] = model.generate(["the cat"], 1, GREEDY)
    batcher = shared(model)
    assert isinstance(batcher, Batcher)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(batcher.generate, ["the cat"], 1, GREEDY) for _ in range(2)]
        long = pool.submit(batcher.generate, ["the cat " * 400], 1, GREEDY)
        assert [call.result() for call in calls] == [[[alone]]] * 2
        with pytest.raises(PromptTooLongError):
            long.result()
    batcher.close()


def test_many_threads_get_what_each_would_get_alone(tiny_model: Path) -> None:
    model = TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))
    batcher = Batcher(model, rows=5)
    prompts = ["the cat sat on ", "zebra", "the dog lay on the log. " * 4]
    asked = [
        (prompts[place % 3], Sampling(max_tokens=6 + place, temperature=place % 2, top_p=0.9, seed=place))
        for place in range(9)
    ]
    alone = [model.generate([prompt], 2, sampling) for prompt, sampling in asked]
    scores = model.score(prompts[:2], ["a", "b"])
    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(batcher.generate, [prompt], 2, sampling) for prompt, sampling in asked]
        scored = pool.submit(batcher.score, prompts[:2], ["a", "b"])
        assert [call.result() for call in calls] == alone
        for one, other in zip(scored.result(), scores, strict=True):
            assert one.per_token == pytest.approx(other.per_token, abs=1e-4)
    batcher.close()


def test_scores_come_between_the_steps_of_texts_that_never_end() -> None:
    model = TogetherModel(lambda prompt: "word " * 10**5)
    batcher = Batcher(model)
    stream = batcher.stream("endless")
    next(stream)
    assert [one.total for one in batcher.score(["a"], ["two words"])] == [-2.0]
    assert batcher.choose(["a"], [["b", "c"]]) == [[0.5, 0.5]]
    assert next(stream)
    stream.close()
    batcher.close()


def test_a_stream_that_is_closed_leaves_at_once() -> None:
    model = TogetherModel(lambda prompt: "one two three four " + "and " * 10**5)
    batcher = Batcher(model)
    stream = batcher.stream("x")
    assert next(stream) == "one"
    stream.close()
    batcher.close()
    [session] = model.sessions
    assert [one.prompt for one in session.left] == ["x"]


class Failing(TogetherModel):
    """A model of which a step fails once a text with the prompt "fail" is in it."""

    def join(self, texts: list[Asked]) -> list[Generation]:  # type: ignore[override]
        found = super().join(texts)
        if any(one.prompt == "fail" for one in texts):
            raise RuntimeError("the model broke")
        return found


def test_an_error_reaches_all_who_were_together_and_the_next_are_written() -> None:
    model = Failing(lambda prompt: "one two three")
    batcher = Batcher(model)
    model.go.clear()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(batcher.generate, ["x"])]
        model.begun.wait()
        calls.append(pool.submit(batcher.generate, ["fail"]))
        until_waiting(batcher, 1)
        model.go.set()
        for call in calls:
            with pytest.raises(RuntimeError, match="broke"):
                call.result()
    assert batcher.generate(["y"])[0][0].text == "one two three"
    with pytest.raises(ZeroDivisionError):
        batcher._engine.do(lambda: 1 // 0)
    batcher.close()
    assert len(model.sessions) == 2


def test_a_session_that_cannot_be_opened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TogetherModel()

    def broken(self: TogetherModel) -> TogetherSession:
        raise ModelError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(TogetherModel, "session", broken)
        batcher = Batcher(model)
        with pytest.raises(ModelError, match="no memory"):
            batcher.generate(["x"])
    assert batcher.generate(["x"])[0][0].text == "an answer"
    batcher.close()


def test_an_idle_thread_ends_and_another_one_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "IDLE", 0.0)
    batcher = Batcher(TogetherModel())
    for _ in range(3):
        assert batcher.generate(["x"])[0][0].text == "an answer"
        if (thread := batcher._engine._thread) is not None:
            thread.join()
        assert batcher._engine._thread is None
    batcher.close()


def test_a_model_that_batches_by_itself_is_left_as_it_is() -> None:
    model = ToldModel()
    assert shared(model) is model
    assert owned(model, {"ann": 1}) is model


# --- what prompts begin with


@pytest.fixture(scope="module")
def weights(tiny_model: Path) -> TransformersLM:
    return TransformersLM(ModelConfig(str(tiny_model), dtype="float32", shape="completion", context=250))


@pytest.fixture
def house(tmp_path: Path, weights: TransformersLM) -> Iterator[House]:
    weights.prompts = PromptCache()
    opened = House(ServeSettings(db=stores.fresh("sqlite", tmp_path)), model=weights)
    for user in ("ann", "bob"):
        opened.store.add_user(user).add([Document(text=f"a text of {user}")])
    yield opened
    opened.close()


def drafted(house: House, *users: str) -> Drafting:
    drafting = Drafting(
        house.writer("none", temperature=0, max_tokens=4), Request(input="the cat", users=users)
    )
    assert "".join(drafting.pieces()) == drafting.draft.text
    return drafting


def kept(house: House, weights: TransformersLM, *users: str) -> bool:
    """Whether anything of a prompt of these users is kept for them."""
    owner = frozenset(house.store.numbers(users).items())
    ids = weights._codec.prompt(drafted(house, "bob").draft.prompt)
    return weights.prompts.find(owner, "", ids) is not None


def test_prompts_are_kept_for_those_who_write_and_nobody_else(house: House, weights: TransformersLM) -> None:
    drafted(house, "ann")
    assert kept(house, weights, "ann")
    assert not kept(house, weights, "ann", "bob")
    drafted(house, "ann", "bob")
    assert kept(house, weights, "bob", "ann")
    before = weights.prompts.size
    drafted(house, "ann").write()
    assert weights.prompts.size == before


def test_an_erased_users_prompts_are_gone_and_do_not_come_back(house: House, weights: TransformersLM) -> None:
    drafted(house, "ann")
    drafted(house, "ann", "bob")
    drafted(house, "bob")
    ann = house.store.user("ann")
    owner, group = (frozenset(house.store.numbers(users).items()) for users in (["ann"], ["ann", "bob"]))
    late = Drafting(house.writer("none", max_tokens=4), Request(input="the cat", users=("ann",)))
    ids = weights._codec.prompt(late.draft.prompt)
    ann.erase()
    house.forget(ann)
    late.write()
    assert weights.prompts.find(owner, "", ids) is None
    assert weights.prompts.find(group, "", ids) is None
    assert kept(house, weights, "bob")
    house.store.add_user("ann")
    assert not kept(house, weights, "ann")  # a namesake


def test_prompts_of_who_was_erased_elsewhere_are_swept_out(house: House, weights: TransformersLM) -> None:
    drafted(house, "ann")
    drafted(house, "bob")
    assert isinstance(house.model, Batcher)
    before = weights.prompts.size
    house.store.user("ann").erase()
    house.sweep()
    assert 0 < weights.prompts.size < before
