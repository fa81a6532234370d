"""Writing by `Decoding`: the texts of transformers' own cache, from the model's own distribution."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM, AutoTokenizer

from penname.lm import ModelConfig
from penname.lm import network as network_module
from penname.lm.base import Prefix, Sampling
from penname.lm.batches import Limits
from penname.lm.decoding import NAME, Decoding
from penname.lm.local import TransformersLM
from penname.lm.rollout import Row, batches, filled
from penname.lm.sampling import draw, nucleus
from penname.lm.text import Codec, Writing
from tiny import save_tiny_model

PROMPTS = ["the cat sat on the mat and ", "the dog", "", "the cat sat on the mat. " * 8, "é😀", "the dog"]
SOFT = Prefix("alice", np.random.default_rng(5).normal(0, 0.6, (5, 32)).astype(np.float32))


def pair(folder: Path, **settings: Any) -> tuple[TransformersLM, TransformersLM]:
    """The same model twice: as it is, and one that writes by transformers' own cache."""
    plain, repeated = (TransformersLM(ModelConfig(str(folder), **settings)) for _ in range(2))
    repeated._network.__dict__["plain"] = False
    return plain, repeated


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> tuple[TransformersLM, TransformersLM]:
    return pair(tiny_model, dtype="float32")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each step of `Decoding` read, from here on."""
    steps: list[int] = []
    own = Decoding.read

    def watched(self: Decoding, tokens: torch.Tensor) -> torch.Tensor:
        steps.append(len(tokens))
        return own(self, tokens)

    monkeypatch.setattr(Decoding, "read", watched)
    return steps


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.sampled_from(PROMPTS), max_size=7),
    n=st.integers(1, 4),
    sampling=st.builds(
        Sampling,
        max_tokens=st.sampled_from([1, 2, 30]),
        temperature=st.sampled_from([0.0, 0.7, 1.3]),  # the hotter, the earlier some texts end
        top_p=st.sampled_from([0.9, 1.0]),
        stop=st.sampled_from([(), ("e",)]),
        seed=st.integers(0, 99),
    ),
    soft=st.booleans(),
    narrow=st.booleans(),
)
def test_texts_are_those_of_transformers_cache(
    models: tuple[TransformersLM, TransformersLM],
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[str],
    n: int,
    sampling: Sampling,
    soft: bool,
    narrow: bool,
) -> None:
    plain, repeated = models
    limits = Limits(rows=5, tokens=300, logits=40_000, kept=300) if narrow else network_module._GPU
    monkeypatch.setattr(network_module, "_CPU", limits)
    prefixes = [SOFT if soft and place % 2 else None for place in range(len(prompts))]
    assert plain.generate(prompts, n, sampling, prefixes) == repeated.generate(prompts, n, sampling, prefixes)


def test_the_tiny_model_is_plain_and_ended_texts_leave(
    models: tuple[TransformersLM, TransformersLM], read: list[int]
) -> None:
    plain, _ = models
    assert plain._network.plain
    assert plain._network.model.config._attn_implementation == NAME
    read.clear()
    [texts] = plain.generate([PROMPTS[0]], 40, Sampling(max_tokens=40, temperature=1.0, top_p=1.0))
    ended = [one.tokens for one in texts if one.finish == "stop"]
    assert ended
    # A text that has written t tokens when it ends was read t times: never again after its end token.
    assert sum(read) == sum(one.tokens - (one.finish == "length") for one in texts)
    assert read == sorted(read, reverse=True)


def test_other_reading_is_as_before(models: tuple[TransformersLM, TransformersLM]) -> None:
    plain, repeated = models
    plain.generate(["a"], 1, Sampling(max_tokens=4))
    pairs = PROMPTS, [" sat", " the mat and the log", "x", " a", " b", " and"]
    for one, other in zip(plain.score(*pairs), repeated.score(*pairs), strict=True):
        assert one.per_token == pytest.approx(other.per_token, abs=1e-6)


def other_pair(folder: Path, config: Any) -> tuple[TransformersLM, TransformersLM]:
    save_tiny_model(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return pair(folder, dtype="float32")


def sized(**settings: Any) -> Any:
    common = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "max_position_embeddings": 256, "num_hidden_layers": 2}
    return common | more | {"pad_token_id": 2, "initializer_range": 0.4} | settings


def kinds() -> list[Any]:
    from transformers import GPT2Config, Lfm2Config, MistralConfig, Qwen3Config

    mixed = ["conv", "full_attention"]
    return [
        pytest.param(Qwen3Config(**sized(head_dim=16)), True, id="qwen3"),
        pytest.param(
            GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=256), True, id="gpt2"
        ),
        pytest.param(MistralConfig(**sized(sliding_window=16)), False, id="a sliding window"),
        pytest.param(Lfm2Config(**sized(layer_types=mixed, block_ff_dim=64)), False, id="recurrent"),
    ]


@pytest.mark.parametrize(("config", "is_plain"), kinds())
def test_only_plain_models_are_written_with_so(config: Any, is_plain: bool, tmp_path: Path) -> None:
    plain, repeated = other_pair(tmp_path, config)
    assert plain._network.plain == is_plain
    if not plain._network.can_share:
        return  # transformers' cache of a recurrent model has no rows that could leave it
    sampling = Sampling(max_tokens=20, temperature=1.0)
    assert plain.generate(PROMPTS, 3, sampling) == repeated.generate(PROMPTS, 3, sampling)


def test_an_adapter_is_written_with(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora).save_pretrained(str(tmp_path))
    plain, repeated = pair(tiny_model, dtype="float32", adapter=str(tmp_path))
    sampling = Sampling(max_tokens=20, temperature=1.0)
    found = plain.generate(PROMPTS, 3, sampling)
    assert plain._network.plain
    assert found == repeated.generate(PROMPTS, 3, sampling)
    assert found != TransformersLM(ModelConfig(str(tiny_model), dtype="float32")).generate(
        PROMPTS, 3, sampling
    )


def test_bfloat16_logits_come_near_those_of_a_whole_reading(tiny_model: Path) -> None:
    model, _ = pair(tiny_model, dtype="bfloat16")
    assert model._network.plain


def test_the_first_two_tokens_come_as_often_as_the_model_says(
    models: tuple[TransformersLM, TransformersLM], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = models
    written: list[list[int]] = []
    own = Writing.generation

    def watched(self: Writing) -> Any:
        written.append(self.ids)
        return own(self)

    monkeypatch.setattr(Writing, "generation", watched)
    count, prompt = 4000, PROMPTS[0]
    plain.generate([prompt], count, Sampling(max_tokens=2, temperature=0.7, top_p=1.0, seed=11))
    network: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(tiny_model)(prompt)["input_ids"]
    end = sorted(plain._codec.ends)[0]
    with torch.inference_mode():
        first = (network(torch.tensor([ids])).logits[0, -1] / 0.7).softmax(-1)
        batch = torch.tensor([[*ids, token] for token in range(len(first))])
        second = (network(batch).logits[:, -1] / 0.7).softmax(-1)
    second = first[:, None] * second  # of both
    for token in plain._codec.ends:  # after an end comes nothing
        second[token] = 0.0
        second[token, end] = first[token]
    ended = {token: first[token].item() for token in plain._codec.ends}
    assert sum(ended.values()) < 0.5
    firsts = np.bincount([row[0] if row else end for row in written], minlength=len(first))
    merged = first.double().clone()
    for token in ended:
        merged[token] = 0.0
    merged[end] = sum(ended.values())
    assert chi_square(firsts, merged.numpy()) > 0.01
    pairs = np.bincount(
        [row[0] * len(first) + row[1] for row in written if len(row) == 2], minlength=len(first) ** 2
    )
    both = second.double()
    for token in ended:
        both[:, token] = 0.0
    both = both.flatten() / both.sum()
    assert chi_square(pairs, both.numpy()) > 0.01


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """How likely counts as far off as these are; what is rare is taken together."""
    expected = counts.sum() * probabilities
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


# Without a model


@given(seed=st.integers(0, 9999), top_p=st.floats(0.05, 1.0), scale=st.sampled_from([0.0, 1.0, 4.0, 12.0]))
def test_a_wide_vocabulary_is_drawn_from_as_a_sorted_one(seed: int, top_p: float, scale: float) -> None:
    chance = np.random.default_rng(seed)
    # Whole numbers at times: many tokens are then equally likely.
    logits = torch.from_numpy(chance.normal(size=(6, 5003)) * scale).round(decimals=seed % 3).float()
    uniform = torch.from_numpy(chance.random(6))
    found = draw(logits, Sampling(temperature=0.8, top_p=top_p), uniform)
    shifted = (logits - logits.amax(-1, keepdim=True)) / 0.8
    weights = nucleus(shifted.softmax(-1), top_p).double()
    reached = weights.cumsum(-1) / weights.sum(-1, keepdim=True)
    wanted = (reached <= uniform[:, None]).sum(-1)
    assert found.tolist() == wanted.tolist()


def test_no_chance_draws_a_token_outside_the_nucleus() -> None:
    logits = torch.full((2, 5000), -40.0)
    logits[:, 3000:3003] = 1.0
    for uniform in (0.0, float(np.nextafter(1.0, 0.0))):
        drawn = draw(logits, Sampling(top_p=0.9), torch.full((2,), uniform, dtype=torch.float64))
        assert set(drawn.tolist()) == {3000 if uniform == 0 else 3002}


@given(st.sets(st.integers(0, 60), min_size=1))
def test_places_are_filled_from_the_end_and_nothing_is_lost(staying: set[int]) -> None:
    order = filled(sorted(staying))
    assert sorted(order) == sorted(staying)
    assert all(text == place or text >= len(staying) for place, text in enumerate(order))


@given(
    lengths=st.lists(st.integers(1, 50), max_size=12),
    n=st.integers(1, 6),
    repeated=st.booleans(),
)
def test_batches_hold_their_limits_and_keep_prompts_together(
    tiny_codec: Codec, lengths: list[int], n: int, repeated: bool
) -> None:
    sampling = Sampling(max_tokens=10)
    rows = [Row(Writing(tiny_codec, [1] * length, sampling), 0) for length in lengths for _ in range(n)]
    limits = Limits(rows=7, tokens=90, logits=80, kept=150)
    found = list(batches(rows, sampling, 10, limits, repeated=repeated))
    assert sorted(map(id, rows)) == sorted(id(row) for batch in found for row in batch)
    for batch in found:
        sizes = [len(row.writing.prompt) for row in batch]
        assert sizes == sorted(sizes)
        held = (len(sizes) if repeated else len(set(sizes))) * max(sizes)
        assert len(batch) == 1 or (len(batch) <= 7 and held + 10 * len(batch) <= 150)


@pytest.fixture(scope="module")
def tiny_codec(tiny_model: Path) -> Codec:
    return Codec(AutoTokenizer.from_pretrained(tiny_model))
