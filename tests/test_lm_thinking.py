"""Texts with a thought before the answer: the bridge comes in time, and stops count behind it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from penname.errors import BadInputError, PromptTooLongError
from penname.lm import ModelConfig
from penname.lm.base import Generation, Sampling, Thinking
from penname.lm.embedded import GGUFModel
from penname.lm.local import TransformersLM
from penname.lm.remote import RemoteLM
from penname.lm.stops import stop_at
from penname.lm.text import Codec, Writing
from tiny import CONTEXT

END = 2  # <|im_end|> of the tiny model
BRIDGE = "\nso:\n"
PROMPTS = ["the cat", "the dog sat on the log and", "", "é😀"]


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return Codec(PreTrainedTokenizerFast.from_pretrained(tiny_model))


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TransformersLM:
    return TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))


def thinking(budget: int, max_tokens: int = 8, bridge: str = BRIDGE, **others: object) -> Sampling:
    return Sampling(max_tokens=max_tokens, thinking=Thinking(bridge, budget), **others)  # type: ignore[arg-type]


def written(codec: Codec, sampling: Sampling, tokens: list[int]) -> tuple[Writing, list[int]]:
    """What comes of pushing tokens until the text ends, and those that were taken."""
    writing = Writing(codec, [0], sampling)
    taken = []
    for token in tokens:
        if writing.finish is not None:
            break
        taken.append(writing.push(token))
    return writing, taken


@given(
    drawn=st.lists(st.one_of(st.integers(3, 319), st.just(END)), max_size=40),
    comes=st.one_of(st.none(), st.integers(0, 12)),
    bridge=st.sampled_from([BRIDGE, "the", "aa", "é😀"]),
    spare=st.integers(0, 10),
    max_tokens=st.integers(1, 6),
    stop=st.sampled_from([(), ("a",), ("the", "\n")]),
)
def test_the_bridge_always_comes_in_time(
    codec: Codec,
    drawn: list[int],
    comes: int | None,
    bridge: str,
    spare: int,
    max_tokens: int,
    stop: tuple[str, ...],
) -> None:
    own = codec.completion(bridge)
    if comes is not None:
        drawn[comes:comes] = own
    budget = len(own) + spare
    tokens = [*drawn, *[5] * (budget + max_tokens)]  # enough to end any text
    writing, taken = written(codec, thinking(budget, max_tokens, bridge, stop=stop), tokens)
    # What is taken is what was pushed, but for bridge tokens and for an end token in the thought.
    kept = taken[:-1] if taken[-1] == END else taken
    assert writing.ids == kept
    assert END not in kept
    [before] = [
        number
        for number in range(1, len(kept) + 1)
        if bridge in whole(codec, kept[:number]) and bridge not in whole(codec, kept[: number - 1])
    ]
    assert before <= budget
    answer = kept[before:]
    assert len(answer) <= max_tokens
    thought = len(kept) - len(answer)
    forced = [at for at, (mine, theirs) in enumerate(zip(taken, tokens, strict=False)) if mine != theirs]
    assert all(at < thought for at in forced)
    if forced:  # then only where the budget was used up, or a text ended without an answer
        assert forced[0] >= budget - len(own) - len(own) or END in tokens[: thought + 1]
    generation = writing.generation()
    assert generation.tokens == len(kept)
    head, found, tail = generation.text.partition(bridge)
    assert found
    assert not any(one in tail for one in stop)
    everything = codec.decode(kept)
    if generation.finish == "length":
        assert len(answer) == max_tokens
        assert generation.text == everything.rstrip("\ufffd")
    elif taken[-1] != END:
        start = len(head) + len(bridge)
        assert generation.text == everything[: start + stop_at(everything[start:], stop)]


def whole(codec: Codec, ids: list[int]) -> str:
    """The text of tokens, without the bytes of half a character at its end."""
    return codec.decode(ids).rstrip("\ufffd")


def test_an_end_token_before_the_bridge_forces_it(codec: Codec) -> None:
    own = codec.completion(BRIDGE)
    thought, answer = codec.completion("hm"), codec.completion(" yes")
    writing, taken = written(codec, thinking(50), [*thought, END, *[END] * (len(own) - 1), *answer, END])
    assert taken == [*thought, *own, *answer, END]
    assert (writing.generation().text, writing.finish) == (f"hm{BRIDGE} yes", "stop")


def test_a_bridge_that_has_begun_when_it_is_due_is_finished(codec: Codec) -> None:
    own = codec.completion(BRIDGE)
    assert len(own) > 2
    answer = codec.completion("yes")
    writing, _ = written(codec, thinking(len(own) + 2), [*codec.completion("h")[:1], *own[:1], *answer * 9])
    assert writing.generation().text.startswith(f"h{BRIDGE}")
    writing, _ = written(codec, thinking(50), [*codec.completion("hm"), *own[:2], END, *[5] * 20])
    assert writing.generation().text.startswith(f"hm{BRIDGE}")
    assert writing.generation().text.count(BRIDGE.strip()) == 1


def test_a_bridge_that_comes_by_itself_is_not_put_there_again(codec: Codec) -> None:
    text = f"hm{BRIDGE}yes"
    writing, _ = written(codec, thinking(50), [*codec.completion(text), END])
    assert writing.generation().text == text


def test_the_bridges_last_token_may_reach_into_the_answer(codec: Codec) -> None:
    # The bridge ends within the token "the".
    [the] = codec.completion("the")
    before = codec.completion("x")
    sampling = thinking(20, 2, "xth", stop=("e",))
    writing, _ = written(codec, sampling, before)
    assert writing.answer is None
    writing, _ = written(codec, sampling, [*before, the])
    assert (writing.text, writing.answer, writing.finish) == ("xthe", 3, "stop")
    assert writing.generation().text == "xth"
    writing, _ = written(codec, thinking(20, 2, "xth"), [*before, the, *before, *before])
    assert (writing.generation().text, writing.finish) == ("xthexx", "length")


def test_a_budget_that_does_not_hold_the_bridge_is_refused(codec: Codec, model: TransformersLM) -> None:
    least = len(codec.completion(BRIDGE))
    assert model.generate(["a"], 1, thinking(least))[0][0].text.startswith(BRIDGE)
    for wrong, part in (
        (thinking(least - 1), "does not hold cue and bridge"),
        (thinking(9, 8, ""), "empty bridge"),
    ):
        with pytest.raises(BadInputError, match=part):
            model.generate(["a"], 1, wrong)
        with pytest.raises(BadInputError, match=part):
            model.stream("a", wrong)


def test_the_budget_counts_in_the_context(model: TransformersLM) -> None:
    free = CONTEXT - model.count("the cat") - 8
    model.generate(["the cat"], 1, thinking(free))
    for ask in (model.generate, lambda one, n, sampling: model.stream(one[0], sampling)):
        with pytest.raises(PromptTooLongError):
            ask(["the cat"], 1, thinking(free + 1))


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("stop", [(), ("e",)])
@pytest.mark.parametrize("repeated", [False, True])
def test_texts_of_a_batch_have_their_bridge_and_stream_alike(
    tiny_model: Path, temperature: float, stop: tuple[str, ...], repeated: bool
) -> None:
    model = TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))
    if repeated:
        model._network.__dict__["plain"] = False
    budget, max_tokens = 16, 10
    sampling = thinking(budget, max_tokens, stop=stop, temperature=temperature, top_p=1.0, seed=4)
    rows = model.generate(PROMPTS, 3, sampling)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        for one in row:
            _, bridge, answer = one.text.partition(BRIDGE)
            assert bridge
            assert not any(each in answer for each in stop)
            assert one.tokens <= budget + max_tokens
        assert "".join(model.stream(prompt, sampling)) == row[0].text
        assert model.generate([prompt], 1, sampling)[0][0] == row[0]


def test_a_model_reads_on_from_the_bridge_that_was_put_there(
    tiny_model: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token of a greedy answer is the likeliest after the prompt, the thought and the bridge."""
    found: list[Writing] = []
    own = Writing.generation

    def watched(self: Writing) -> Generation:
        found.append(self)
        return own(self)

    monkeypatch.setattr(Writing, "generation", watched)
    model = TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))
    model.generate(PROMPTS[:2], 1, thinking(14, 12, temperature=0))
    network: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    bridge = codec.completion(BRIDGE)
    for writing in found:
        assert writing.ids[14 - len(bridge) : 14] == bridge
        with torch.inference_mode():
            logits = network(torch.tensor([[*writing.prompt, *writing.ids]])).logits[0]
        likeliest = logits[len(writing.prompt) + 13 :].argmax(-1).tolist()
        assert writing.ids[14:] == likeliest[: len(writing.ids) - 14]


def test_a_cue_is_read_with_the_prompt_and_counts_in_the_budget(model: TransformersLM, codec: Codec) -> None:
    cue, bridge = " on the", codec.completion(BRIDGE)
    taken = len(codec.completion(cue))
    told = Sampling(max_tokens=6, thinking=Thinking(BRIDGE, 20 + taken, cue), temperature=0.9, seed=3)
    plain = Sampling(max_tokens=6, thinking=Thinking(BRIDGE, 20), temperature=0)
    [mine] = model.generate(["the cat"], 1, replace(told, temperature=0))[0]
    [written_in] = model.generate([f"the cat{cue}"], 1, plain)[0]
    assert mine == written_in
    for one in model.generate(["the cat"], 4, told)[0]:
        assert not one.text.startswith(cue)
        assert one.tokens <= 20 + 6
    with pytest.raises(BadInputError, match="does not hold cue and bridge"):
        model.generate(["a"], 1, replace(told, thinking=Thinking(BRIDGE, len(bridge) + taken - 1, cue)))


def test_a_cue_takes_no_more_of_the_context_than_the_budget(model: TransformersLM) -> None:
    free = CONTEXT - model.count("the cat") - 8
    model.generate(["the cat"], 1, Sampling(max_tokens=8, thinking=Thinking(BRIDGE, free, " on the log")))


def test_backends_that_force_no_bridge_refuse_thinking() -> None:
    remote = RemoteLM(ModelConfig("http://127.0.0.1:9/v1#told"))
    quantised = GGUFModel.__new__(GGUFModel)
    quantised.name = "model.gguf"
    for backend in (remote, quantised):
        with pytest.raises(BadInputError, match=r"forces no bridge .* transformers"):
            backend.generate(["a"], 1, thinking(50))
        with pytest.raises(BadInputError, match=r"forces no bridge .* transformers"):
            list(backend.stream("a", thinking(50)))
