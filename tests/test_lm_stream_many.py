"""Several texts streamed together: each as it would be alone, whatever its neighbours, users and settings."""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penname.errors import BadInputError, PromptTooLongError
from penname.lm import ModelConfig
from penname.lm.base import Generation, Prefix, Sampling, Thinking
from penname.lm.local import TransformersLM
from penname.lm.text import Showing
from tiny import CONTEXT

T = TypeVar("T")
R = TypeVar("R")


def prefix(key: str) -> Prefix:
    drawn = np.random.default_rng(sum(key.encode())).normal(0, 0.6, (3, 32))
    return Prefix(key, drawn.astype(np.float32))


PROMPTS = ["the cat sat on the mat and ", "the dog", "the cat sat on the mat. " * 8, "zebra"]
USERS = [None, prefix("alice"), prefix("bob")]
SAMPLINGS = [
    Sampling(max_tokens=9, temperature=0.9),
    Sampling(max_tokens=30, temperature=0.9, seed=7),
    Sampling(max_tokens=30, temperature=0.9, stop=("t", "the"), seed=3),
    Sampling(max_tokens=8, temperature=0.9, thinking=Thinking("log", 12)),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TransformersLM:
    return TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))


def drained(stream: Generator[T, None, R]) -> tuple[list[T], R]:
    """All that came, and what is returned."""
    came = []
    while True:
        try:
            came.append(next(stream))
        except StopIteration as end:
            return came, end.value


def streamed(
    model: TransformersLM,
    prompts: Sequence[str],
    samplings: Sequence[Sampling],
    prefixes: Sequence[Prefix | None] | None = None,
    gone: Container[int] = (),
) -> tuple[list[str], list[Generation]]:
    """Each text as its pieces give it, and what is returned."""
    texts = [""] * len(prompts)
    steps, whole = drained(model.stream_many(prompts, samplings, prefixes, gone=gone))
    for place, piece in (new for step in steps for new in step):
        texts[place] += piece
    return texts, whole


CASES = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.sampled_from(SAMPLINGS), st.sampled_from(USERS)), max_size=6
)


@settings(max_examples=25, deadline=None)
@given(cases=CASES)
def test_each_text_is_what_it_is_alone(
    model: TransformersLM, cases: list[tuple[str, Sampling, Prefix | None]]
) -> None:
    prompts = [prompt for prompt, _, _ in cases]
    samplings = [sampling for _, sampling, _ in cases]
    prefixes = [soft for _, _, soft in cases]
    texts, whole = streamed(model, prompts, samplings, prefixes)
    assert texts == ["".join(model.stream(*case)) for case in cases]
    alone = [model.generate([prompt], 1, sampling, [soft])[0][0] for prompt, sampling, soft in cases]
    assert whole == alone


def test_a_stream_returns_the_whole(model: TransformersLM) -> None:
    pieces, whole = drained(model.stream(PROMPTS[0], SAMPLINGS[1]))
    [[alone]] = model.generate([PROMPTS[0]], 1, SAMPLINGS[1])
    assert whole == alone
    assert "".join(pieces) == alone.text


def test_samples_of_one_prompt_are_those_of_generate(model: TransformersLM) -> None:
    sampling = SAMPLINGS[1]
    _, whole = drained(model.stream_many([PROMPTS[0]] * 3, [sampling] * 3, numbers=[0, 1, 2]))
    assert [whole] == model.generate([PROMPTS[0]], 3, sampling)


def test_who_is_gone_leaves_and_the_others_stay_as_they_are(model: TransformersLM) -> None:
    sampling = Sampling(max_tokens=30, temperature=0.9, seed=7)
    prompts = PROMPTS[:3]
    texts, whole = streamed(model, prompts, [sampling] * 3, gone={1})
    assert whole[1].tokens == 1
    for place in (0, 2):
        assert texts[place] == "".join(model.stream(prompts[place], sampling))


def test_texts_of_several_batches_all_come(model: TransformersLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penname.lm.local._CPU", replace(model._limits, rows=2))
    samplings = [Sampling(max_tokens=6, temperature=0, seed=i) for i in range(5)]
    prompts = [PROMPTS[i % 4] for i in range(5)]
    texts, _ = streamed(model, prompts, samplings)
    assert texts == ["".join(model.stream(p, s)) for p, s in zip(prompts, samplings, strict=True)]


def test_what_cannot_be_written_is_refused_before_anything_is(model: TransformersLM) -> None:
    with pytest.raises(BadInputError, match="one temperature"):
        next(model.stream_many(["a", "b"], [Sampling(temperature=0), Sampling(temperature=1)]))
    with pytest.raises(PromptTooLongError):
        next(model.stream_many(["a"], [Sampling(max_tokens=CONTEXT)]))
    assert streamed(model, [], []) == ([], [])


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
