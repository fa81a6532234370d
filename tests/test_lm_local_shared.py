"""One reading of what several texts begin with: scores of a naive loop, no limit overrun, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from penname.lm import ModelConfig
from penname.lm import network as network_module
from penname.lm.batches import Limits, by_length, shared, together
from penname.lm.local import TransformersLM
from tiny import save_tiny_model

HEADS = ["the cat sat on the mat. " * 10, "the cat sat on the mat. " * 9 + "the dog", "zebra! " * 15, ""]
MIDDLES = ["", "and the log", "and the dog lay on the log and the cat", "é"]
COMPLETIONS = [" sat", " the mat and the log", "x", "", " the mat and the dog " * 3]
CASES = st.lists(st.tuples(*(st.sampled_from(parts) for parts in (HEADS, MIDDLES, COMPLETIONS))), max_size=14)
LIMITS = Limits(rows=5, tokens=300, logits=40_000, kept=900)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TransformersLM:
    return TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))


def naive(folder: Path) -> Callable[[str, str], list[float]]:
    """Log-probabilities of one pair, without padding, masks or a cache."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def score(prompt: str, completion: str) -> list[float]:
        before = tokenizer(prompt)["input_ids"] or [0]
        after = tokenizer(completion)["input_ids"]
        with torch.inference_mode():
            found = network(torch.tensor([before + after])).logits[0].log_softmax(dim=-1)
        return [float(found[len(before) - 1 + i, token]) for i, token in enumerate(after)]

    return score


@pytest.fixture(scope="module")
def peer(tiny_model: Path) -> Callable[[str, str], list[float]]:
    known: dict[tuple[str, str], list[float]] = {}
    score = naive(tiny_model)

    def kept(prompt: str, completion: str) -> list[float]:
        if (prompt, completion) not in known:
            known[prompt, completion] = score(prompt, completion)
        return known[prompt, completion]

    return kept


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=CASES, narrow=st.booleans())
def test_scores_are_those_of_a_naive_loop_however_pairs_share(
    model: TransformersLM,
    peer: Callable[[str, str], list[float]],
    monkeypatch: pytest.MonkeyPatch,
    cases: list[tuple[str, str, str]],
    narrow: bool,
) -> None:
    monkeypatch.setattr(
        network_module, "_CPU_SCORES", LIMITS if narrow else replace(LIMITS, rows=64, kept=9999)
    )
    prompts = [head + middle for head, middle, _ in cases]
    completions = [completion for _, _, completion in cases]
    scores = model.score(prompts, completions)
    for prompt, completion, score in zip(prompts, completions, scores, strict=True):
        wanted = peer(prompt, completion) if completion else []
        assert score.per_token == pytest.approx(wanted, abs=1e-4)
        assert score.total == pytest.approx(sum(wanted), abs=1e-3)
        assert score.tokens == len(wanted)


def test_a_choice_reads_its_prompt_once(model: TransformersLM, read: list[tuple[int, int]]) -> None:
    options = [" sat", " sat on the mat", " lay", " lay on the log", " x", " the", " and", " dog"]
    alone = [model.choose([HEADS[0]], [[option, " cat"]])[0] for option in options]
    read.clear()
    [found] = model.choose([HEADS[0]], [options])
    assert [rows for rows, _ in read] == [1, len(options)]
    assert sum(rows * tokens for rows, tokens in read) < model.count(HEADS[0]) + len(options) * 16
    ratios = [mine / other for mine, other in alone]
    assert [share / sum(ratios) for share in ratios] == pytest.approx(found, rel=1e-3)


def test_little_in_common_is_not_worth_a_pass_of_its_own(
    model: TransformersLM, read: list[tuple[int, int]]
) -> None:
    model.score(["the cat", "the cat"], [" sat", " lay on the log"])
    assert [rows for rows, _ in read] in ([2], [1, 2])  # with the look at what the model keeps, or without
    read.clear()
    model.score(["the cat", "the cat"], [" sat", " lay on the log"])
    assert [rows for rows, _ in read] == [2]


def sized(**settings: Any) -> Any:
    """The settings of a tiny model of any kind, for the tiny model's tokenizer."""
    common = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    return common | {"num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 2} | settings


def other_model(folder: Path, config: Any) -> TransformersLM:
    save_tiny_model(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return TransformersLM(ModelConfig(str(folder), dtype="float32"))


def matches_a_naive_loop(model: TransformersLM, folder: Path) -> None:
    prompts, completions = [HEADS[0]] * 4 + [HEADS[2]] * 3, [*COMPLETIONS[:3], " a", " b", *COMPLETIONS[1:3]]
    score = naive(folder)
    for prompt, completion, found in zip(
        prompts, completions, model.score(prompts, completions), strict=True
    ):
        assert found.per_token == pytest.approx(score(prompt, completion), abs=1e-4)


def test_sliding_windows_share(tmp_path: Path, read: list[tuple[int, int]]) -> None:
    from transformers import MistralConfig

    model = other_model(
        tmp_path, MistralConfig(**sized(num_hidden_layers=2, sliding_window=16, initializer_range=0.4))
    )
    matches_a_naive_loop(model, tmp_path)
    assert len([rows for rows, _ in read if rows > 1]) >= 1
    assert sum(rows * tokens for rows, tokens in read) < 7 * model.count(HEADS[2])


def test_a_recurrent_model_reads_every_text_whole(tmp_path: Path, read: list[tuple[int, int]]) -> None:
    from transformers import Lfm2Config

    kinds = ["conv", "full_attention"]
    config = Lfm2Config(
        **sized(num_hidden_layers=2, layer_types=kinds, block_ff_dim=64, initializer_range=0.4)
    )
    model = other_model(tmp_path, config)
    matches_a_naive_loop(model, tmp_path)
    assert not model._network.can_share
    assert sum(rows for rows, _ in read) == 1 + 7


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Position ids are not supported")
def test_an_adapter_that_puts_tokens_before_each_reading_is_not_shared(
    tiny_model: Path, tmp_path: Path, read: list[tuple[int, int]]
) -> None:
    from peft import PromptTuningConfig, get_peft_model

    config: Any = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(str(tmp_path))
    model = TransformersLM(ModelConfig(str(tiny_model), dtype="float32", adapter=str(tmp_path)))
    together = model.score([HEADS[0]] * 2, [" sat", " lay"])
    assert [rows for rows, _ in read] == [1, 2]
    apart = [model.score([HEADS[0]], [completion])[0] for completion in (" sat", " lay")]
    assert [s.total for s in together] == pytest.approx([s.total for s in apart], abs=1e-4)


# Planning, without a model

TEXTS = st.lists(
    st.tuples(
        st.sampled_from([[1] * 70, [1] * 40 + [2] * 40, [3] * 90, []]),
        st.lists(st.integers(1, 3), min_size=1, max_size=30),
        st.integers(0, 100),
    ).map(lambda parts: (parts[0] + parts[1], min(parts[2], len(parts[0] + parts[1]) - 1))),
    max_size=30,
)


@given(TEXTS)
def test_groups_share_what_they_say_within_limits(cases: list[tuple[list[int], int]]) -> None:
    texts, most = [text for text, _ in cases], [most for _, most in cases]
    vocabulary = 10
    groups = shared(texts, most, vocabulary, LIMITS)
    members = [i for group in groups for i in group.members]
    assert len(members) == len(set(members))
    for group in groups:
        assert len({tuple(texts[i][: group.prefix]) for i in group.members}) == 1
        assert all(0 < group.prefix <= most[i] for i in group.members)
        assert max(len(texts[i]) for i in group.members) == group.prefix + group.rest
        alone = sum(len(texts[i]) for i in group.members)
        assert group.prefix + len(group.members) * group.rest <= alone - 64
    batches = list(together(groups, vocabulary, LIMITS))
    assert sorted(group.members for batch in batches for group in batch) == sorted(g.members for g in groups)
    for batch in batches:
        rows = sum(len(group.members) for group in batch)
        prefix, rest = max(group.prefix for group in batch), max(group.rest for group in batch)
        assert rows <= LIMITS.rows
        assert rows * (prefix + rest) <= LIMITS.kept
        assert rows * rest <= LIMITS.tokens
        assert rows * rest * vocabulary <= LIMITS.logits


def test_the_deeper_of_two_common_beginnings_is_shared_where_it_saves_more() -> None:
    profile, one, other = [1] * 100, [2] * 200, [3] * 200
    texts = [[*profile, *one, 4], [*profile, *one, 5], [*profile, *other, 4], [*profile, *other, 5]]
    wide = Limits(rows=64, tokens=10_000, logits=1_000_000, kept=10_000)
    groups = shared(texts, [300] * 4, 10, wide)
    assert [(group.members, group.prefix, group.rest) for group in groups] == [
        ((0, 1), 300, 1),
        ((2, 3), 300, 1),
    ]
    assert [len(batch) for batch in together(groups, 10, wide)] == [2]
    assert [group.members for group in shared(texts, [100] * 4, 10, wide)] == [(0, 1, 2, 3)]


def test_batches_by_length_keep_their_limits_and_lose_nothing() -> None:
    sizes = [(tokens, tokens * 3) for tokens in range(1, 40)]
    limits = Limits(rows=5, tokens=60, logits=200, kept=60)
    batches = [sizes[batch] for batch in by_length(sizes, limits)]
    assert [size for batch in batches for size in batch] == sizes
    for batch in batches:
        longest = max(tokens for tokens, _ in batch)
        assert len(batch) == 1 or (
            len(batch) <= 5 and len(batch) * longest <= 60 and len(batch) * longest * 3 <= 200
        )
    assert list(by_length([], limits)) == []
