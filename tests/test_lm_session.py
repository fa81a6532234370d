"""Texts written together: each is what it would be alone, whoever joins and leaves, whatever the settings."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penname.errors import BadInputError, PromptTooLongError
from penname.lm import ModelConfig
from penname.lm import decoding as decoding_module
from penname.lm import network as network_module
from penname.lm.base import Asked, Generation, Prefix, Sampling, Thinking
from penname.lm.batches import Limits
from penname.lm.decoding import Decoding, _attend
from penname.lm.local import TransformersLM
from penname.lm.sampling import draw, draw_each
from penname.lm.text import Showing
from tiny import CONTEXT


def prefix(key: str) -> Prefix:
    drawn = np.random.default_rng(sum(key.encode())).normal(0, 0.6, (3, 32))
    return Prefix(key, drawn.astype(np.float32))


PROMPTS = ["the cat sat on the mat and ", "the dog", "the cat sat on the mat. " * 8, "zebra"]
USERS = [None, prefix("alice"), prefix("bob")]
SAMPLINGS = [
    Sampling(max_tokens=9, temperature=0.9),
    Sampling(max_tokens=30, temperature=0),
    Sampling(max_tokens=40, temperature=1, top_p=1, seed=5),
    Sampling(max_tokens=30, temperature=1.2, top_p=0.8, stop=("t", "the"), seed=3),
    Sampling(max_tokens=8, temperature=0.9, thinking=Thinking("log", 12)),
]
LONG = SAMPLINGS[2]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TransformersLM:
    return TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))


@pytest.fixture(scope="module")
def batchwise(tiny_model: Path) -> TransformersLM:
    """A model that is not plain, as far as it is told."""
    model = TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))
    model._network.__dict__["plain"] = False
    return model


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each step wrote, from here on."""
    steps: list[int] = []
    own = draw_each

    def watched(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        steps.append(len(logits))
        return own(logits, *rest)

    monkeypatch.setattr("penname.lm.rollout.draw_each", watched)
    return steps


class Written:
    """What has come of each text, in a session to which texts are added before the steps of their numbers.

    A text leaves after as many steps as `leaving` says.
    """

    def __init__(
        self,
        model: TransformersLM,
        texts: Sequence[Asked],
        steps: Sequence[int] = (),
        leaving: dict[int, int] | None = None,
    ) -> None:
        self.pieces: dict[Asked, str] = dict.fromkeys(texts, "")
        self.whole: dict[Asked, Generation] = {}
        self.together: list[int] = []  # texts that each step was for
        self.session = model.session()
        steps = [*steps, *[0] * (len(texts) - len(steps))]
        for number in range(400):
            for text, step in zip(texts, steps, strict=True):
                if step == number:
                    self.session.add(text)
            for place, step in (leaving or {}).items():
                if step == number:
                    self.session.leave(texts[place])
            if not len(self.session) and number >= max(steps, default=0):
                return
            self.together.append(len(self.session))
            for asked, came in self.session.step():
                assert asked not in self.whole
                if isinstance(came, Generation):
                    self.whole[asked] = came
                else:
                    self.pieces[asked] += came
        raise AssertionError("it does not end")


def alone(model: TransformersLM, asked: Asked) -> Generation:
    rows = model.generate([asked.prompt], asked.number + 1, asked.sampling, [asked.prefix])
    return rows[0][asked.number]


CASES = st.lists(
    st.tuples(
        st.builds(
            Asked,
            st.sampled_from(PROMPTS),
            st.sampled_from(SAMPLINGS),
            st.sampled_from(USERS),
            st.integers(0, 1),
        ),
        st.integers(0, 25),  # the step at which it joins
        st.sampled_from([None, None, None, 1, 12]),  # that after which it leaves
    ),
    max_size=7,
)


@settings(max_examples=15)
@given(cases=CASES, plain=st.booleans())
def test_each_text_is_what_it_is_alone(
    model: TransformersLM,
    batchwise: TransformersLM,
    cases: list[tuple[Asked, int, int | None]],
    plain: bool,
) -> None:
    texts = [text for text, _, _ in cases]
    leaving = {place: at + after for place, (_, at, after) in enumerate(cases) if after is not None}
    written = Written(model if plain else batchwise, texts, [at for _, at, _ in cases], leaving)
    for place, text in enumerate(texts):
        wanted = alone(model, text)
        if place not in leaving:
            assert written.whole[text] == wanted
        if text in written.whole:
            assert written.pieces[text] == written.whole[text].text
        assert wanted.text.startswith(written.pieces[text])


def test_a_newcomer_joins_what_is_being_written(model: TransformersLM, rows: list[int]) -> None:
    texts = [Asked(PROMPTS[0], replace(SAMPLINGS[1], max_tokens=12)) for _ in range(4)]
    Written(model, texts, [0, 3, 3, 6])
    assert rows[:7] == [1, 1, 1, 3, 3, 3, 4]


def test_a_model_that_is_not_plain_writes_batch_by_batch(batchwise: TransformersLM) -> None:
    texts = [Asked(PROMPTS[1], replace(LONG, seed=1)), Asked("a", SAMPLINGS[1])]
    wanted = [alone(batchwise, text) for text in texts]
    written = Written(batchwise, texts, [0, 1])
    assert [written.whole[text] for text in texts] == wanted
    assert list(written.whole) == texts
    # The second begins when the first has ended: together they take as many steps as both alone.
    assert len(written.together) >= sum(one.tokens for one in wanted)


def test_columns_do_not_grow_for_ever(model: TransformersLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_module, "_COLUMNS", 4)
    columns = []
    own = Decoding.read

    def watched(self: Decoding, tokens: torch.Tensor) -> torch.Tensor:
        columns.append((self.written, self.layers[0].keys.shape[2]))
        return own(self, tokens)

    sampling = Sampling(max_tokens=10, temperature=1, top_p=1)
    texts = [Asked(PROMPTS[place % 4], replace(sampling, seed=place)) for place in range(30)]
    wanted = [alone(model, text) for text in texts]
    monkeypatch.setattr(Decoding, "read", watched)
    written = Written(model, texts, [3 * place for place in range(30)])
    assert [written.whole[text] for text in texts] == wanted
    assert len(columns) > 60
    assert max(written for written, _ in columns) < 20
    assert max(room for _, room in columns) <= 24


@pytest.mark.parametrize(
    "limits",
    [
        Limits(rows=2, tokens=9999, logits=10**9, kept=9999),
        Limits(rows=9, tokens=9999, logits=320 * 3, kept=9999),
        Limits(rows=9, tokens=9999, logits=10**9, kept=200),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_what_does_not_fit_waits_and_those_before_it_come_first(
    model: TransformersLM,
    batchwise: TransformersLM,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[int],
    limits: Limits,
    plain: bool,
) -> None:
    monkeypatch.setattr(network_module, "_CPU", limits)
    texts = [Asked(PROMPTS[place % 4], replace(SAMPLINGS[0], seed=place)) for place in range(6)]
    wanted = [alone(model, text) for text in texts]
    rows.clear()
    written = Written(model if plain else batchwise, texts, [0, 0, 0, 2, 2, 2])
    assert [written.whole[text] for text in texts] == wanted
    assert max(rows) <= min(limits.rows, limits.logits // 320)
    if limits.kept == 200:  # the third prompt alone takes more
        assert max(rows) <= 3


def test_who_is_gone_leaves_at_once(model: TransformersLM) -> None:
    texts = [Asked(prompt, LONG) for prompt in PROMPTS[:3]]
    session = model.session()
    for text in texts:
        session.add(text)
    session.leave(texts[2])  # while it waits
    session.step()
    session.leave(texts[0])
    session.leave(texts[0])
    assert len(session) == 1
    assert {asked for _ in range(10) for asked, _ in session.step()} == {texts[1]}


def test_one_that_cannot_be_written_is_refused_alone(model: TransformersLM) -> None:
    good = Asked(PROMPTS[0], LONG)
    session = model.session()
    session.add(good)
    session.step()
    with pytest.raises(PromptTooLongError):
        session.add(Asked("a", Sampling(max_tokens=CONTEXT)))
    with pytest.raises(BadInputError, match="soft prompt"):
        session.add(Asked("a", prefix=Prefix("wide", np.zeros((2, 5), np.float32))))
    with pytest.raises(BadInputError, match="top_p"):
        session.add(Asked("a", Sampling(top_p=0)))
    with pytest.raises(BadInputError, match="bridge"):
        session.add(Asked("a", Sampling(max_tokens=5, thinking=Thinking("", 5))))
    pieces = []
    while len(session):
        pieces += session.step()
    assert pieces[-1] == (good, alone(model, good))
    assert session.step() == []


def test_long_newcomers_do_not_hold_up_the_others_for_more_than_one_pass(
    model: TransformersLM, read: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "_CPU_SCORES", Limits(9, 150, 10**9, 9999))
    session = model.session()
    session.add(Asked("the dog", LONG))
    session.step()
    for place in range(4):
        session.add(Asked(f"{PROMPTS[2]}{place}", replace(LONG, seed=place)))
    session.add(Asked("zebra", LONG))
    wide = model.count(PROMPTS[2] + "0")
    assert 2 * wide <= 150 < 3 * wide
    read.clear()
    session.step()
    assert read == [(2, wide)]
    session.step()
    session.step()
    assert read[1:] == [(2, wide), (1, model.count("zebra"))]  # a short one is not read as a long one


def test_samples_of_one_prompt_are_read_once(model: TransformersLM, read: list[tuple[int, int]]) -> None:
    texts = [Asked(PROMPTS[0], LONG, number=number) for number in range(3)]
    written = Written(model, texts)
    assert [rows for rows, _ in read] == [1]
    assert [[written.whole[text] for text in texts]] == model.generate([PROMPTS[0]], 3, LONG)


def test_rows_are_drawn_by_their_own_settings() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 500, generator=chance) * 4
    uniform = torch.rand(6, generator=chance, dtype=torch.float64)
    samplings = [
        Sampling(temperature=t, top_p=p) for t, p in [(0, 1), (1, 0.5), (0, 1), (1, 1), (1, 0.5), (2, 0.9)]
    ]
    found = draw_each(logits, samplings, uniform)
    for row, sampling in enumerate(samplings):
        assert found[row] == draw(logits[[row]], sampling, uniform[[row]])[0]


def test_long_hidden_stretches_leave_no_trace() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 2, 1, 16), torch.randn(2, 2, 1500, 16), torch.randn(2, 2, 1500, 16)
    bias = torch.zeros(2, 1, 1, 2000)[..., :1500]
    bias[1, ..., :1400] = float("-inf")
    mixed, sums = _attend(query, key, value, bias, 0.25)
    own, own_sums = _attend(query[1:], key[1:, :, 1400:], value[1:, :, 1400:], None, 0.25)
    assert torch.allclose(mixed[1:], own, atol=1e-6)
    assert torch.allclose(sums[1:], own_sums, atol=1e-5)


def drained(stream: Generator[str, None, Generation]) -> tuple[list[str], Generation]:
    """All that came, and what is returned."""
    came = []
    while True:
        try:
            came.append(next(stream))
        except StopIteration as end:
            return came, end.value


def test_a_stream_returns_the_whole(model: TransformersLM) -> None:
    pieces, whole = drained(model.stream(PROMPTS[0], LONG))
    assert whole == alone(model, Asked(PROMPTS[0], LONG))
    assert "".join(pieces) == whole.text


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    class Told:
        text, finish, answer = "", None, 0

        def generation(self) -> Generation:
            return Generation(self.text, 1, 1, "stop")

    told = Told()
    showing = Showing(told, ("\nEnd",))  # type: ignore[arg-type]
    pieces = []
    for text in ("one", "one\n", "one\nE", "one\nEgg", "one\nEgg\n"):
        told.text = text
        pieces.append(showing.new())
    assert pieces == ["one", "", "", "\nEgg", ""]
    told.finish = "stop"  # type: ignore[assignment]
    assert showing.new() == "\n"
