"""A folder through transformers: scores against a naive loop, texts that do not hang on their neighbours."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penname.errors import BadInputError, ModelError, ModelNotFoundError, PromptTooLongError
from penname.lm import LanguageModel, ModelConfig, Sampling, load_model
from penname.lm import network as network_module
from penname.lm.local import TransformersLM
from penname.records import Message
from tiny import CONTEXT, save_tiny_model

PROMPTS = ["the cat", "the dog sat on the log and", "", "mat " * 30, "é😀"]
COMPLETIONS = [" sat", " the mat", "x", " and the log and the cat", ""]
SAMPLING = Sampling(max_tokens=20, temperature=1.0, top_p=0.9)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return load_model(ModelConfig(str(tiny_model), dtype="float32"))


def naive_score(folder: Path, prompt: str, completion: str) -> list[float]:
    """Log-probabilities one pair at a time, without padding, masks or batches."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before = tokenizer(prompt)["input_ids"] or [0]
    after = tokenizer(completion)["input_ids"]
    with torch.inference_mode():
        found = network(torch.tensor([before + after])).logits[0].log_softmax(dim=-1)
    return [float(found[len(before) - 1 + i, token]) for i, token in enumerate(after)]


def test_scores_are_those_of_a_naive_loop_over_pairs(model: LanguageModel, tiny_model: Path) -> None:
    scores = model.score(PROMPTS, COMPLETIONS)
    for prompt, completion, score in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        assert score.per_token == pytest.approx(naive_score(tiny_model, prompt, completion), abs=1e-4)
        assert score.tokens == len(score.per_token)
        assert score.total == pytest.approx(sum(score.per_token))
    assert (scores[-1].total, scores[-1].tokens) == (0.0, 0)


def test_greedy_text_is_that_of_transformers(model: LanguageModel, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    network: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])
    peer = network.generate(ids, do_sample=False, max_new_tokens=20, attention_mask=torch.ones_like(ids))
    [[ours]] = model.generate([PROMPTS[1]], 1, Sampling(max_tokens=20, temperature=0))
    written = peer[0, ids.shape[1] :].tolist()
    plain = tokenizer.decode(written, skip_special_tokens=True).rstrip("\ufffd")
    assert ours.text == plain.replace("\x00", ""), "no database keeps NUL"
    assert ours.prompt_tokens == ids.shape[1]


def test_samples_differ_and_do_not_depend_on_neighbours_or_n(model: LanguageModel) -> None:
    texts = [[g.text for g in row] for row in model.generate(PROMPTS, 4, SAMPLING)]
    assert all(len(set(row)) > 1 for row in texts)
    for prompt, row in zip(PROMPTS, texts, strict=True):
        alone = [g.text for g in model.generate([prompt], 2, SAMPLING)[0]]
        assert alone == row[:2]
    other = model.generate(PROMPTS, 4, replace(SAMPLING, seed=1))
    assert [[g.text for g in row] for row in other] != texts


def test_samples_do_not_depend_on_how_batches_are_cut(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = model.generate(PROMPTS, 3, SAMPLING)
    monkeypatch.setattr(network_module, "_CPU", replace(network_module._CPU, rows=2))
    assert model.generate(PROMPTS, 3, SAMPLING) == together


@pytest.mark.parametrize("seed", range(6))
def test_a_text_ends_before_its_first_stop_and_streams_as_it_is_written(
    model: LanguageModel, seed: int
) -> None:
    free = replace(SAMPLING, seed=seed, max_tokens=40)
    [[whole]] = model.generate(["the cat"], 1, free)
    middle = len(whole.text) // 2
    stopped = replace(free, stop=(whole.text[middle : middle + 3], whole.text[middle + 1 : middle + 4]))
    for sampling in (free, stopped):
        [[text]] = model.generate(["the cat"], 1, sampling)
        pieces = list(model.stream("the cat", sampling))
        assert "".join(pieces) == text.text
        assert all(pieces)
        assert not any(stop in text.text for stop in sampling.stop)
    assert whole.text.startswith(text.text)
    assert text.finish == "stop"


def test_the_limit_and_the_end_token_say_why_a_text_ended(model: LanguageModel) -> None:
    drawn = [
        g for row in model.generate(PROMPTS, 20, replace(SAMPLING, top_p=1.0, max_tokens=40)) for g in row
    ]
    assert {g.finish for g in drawn} == {"stop", "length"}
    for g in drawn:
        assert g.tokens == 40 if g.finish == "length" else g.tokens < 40


def test_what_exceeds_the_context_is_refused_with_the_numbers(model: LanguageModel) -> None:
    long = "z" * (CONTEXT - 10)
    assert model.context == CONTEXT
    assert model.count(long) == CONTEXT - 10
    model.generate([long], 1, Sampling(max_tokens=10))
    with pytest.raises(PromptTooLongError, match=r"246 tokens.* 11 .*256"):
        model.generate(["short", long], 1, Sampling(max_tokens=11))
    with pytest.raises(PromptTooLongError, match="246 tokens"):
        model.stream(long, Sampling(max_tokens=11))
    with pytest.raises(PromptTooLongError, match="246 tokens"):
        model.score([long], ["z" * 11])


def test_choices_sum_to_one_and_order_as_scores_do(model: LanguageModel) -> None:
    options = [" sat", " lay on the log", " the mat", " x"]
    [shares] = model.choose(["the cat"], [options])
    totals = [score.total for score in model.score(["the cat"] * 4, options)]
    assert sum(shares) == pytest.approx(1)
    ranked = sorted(range(4), key=lambda i: totals[i])
    assert all(shares[a] < shares[b] for a, b in pairwise(ranked))
    assert math.log(shares[0] / shares[1]) == pytest.approx(totals[0] - totals[1], abs=1e-5)
    several = model.choose(["the cat", "the dog"], [options, options[1:]])
    assert several[0] == pytest.approx(shares, abs=1e-5)
    assert several[1] == pytest.approx(model.choose(["the dog"], [options[1:]])[0], abs=1e-5)
    for prompts, given in ((["the cat"], [[]]), (["the cat"], [["a", ""]]), (["the cat"], [["a"], ["b"]])):
        with pytest.raises(BadInputError, match="options"):
            model.choose(prompts, given)
    assert model.choose([], []) == []


def test_as_many_completions_as_prompts(model: LanguageModel) -> None:
    with pytest.raises(BadInputError, match="2 prompts and 1 completions"):
        model.score(["a", "b"], ["c"])
    assert model.score([], []) == []
    assert model.generate([]) == []


def test_a_model_with_a_chat_template_wants_chat_unless_told(model: LanguageModel, tmp_path: Path) -> None:
    assert model.shape == "chat"
    asked = (Message(role="user", content="the cat"),)
    [[text]] = model.generate([asked], 1, SAMPLING)
    assert text.prompt_tokens == model.count(asked) > model.count("the cat")
    bare = save_tiny_model(tmp_path, template=False)
    assert load_model(str(bare)).shape == "completion"
    assert load_model(ModelConfig(str(bare), shape="chat")).shape == "chat"


def test_bfloat16_scores_come_near_those_of_float32(model: LanguageModel, tiny_model: Path) -> None:
    short = load_model(ModelConfig(str(tiny_model), dtype="bfloat16"))
    for one, other in zip(model.score(PROMPTS, COMPLETIONS), short.score(PROMPTS, COMPLETIONS), strict=True):
        assert one.per_token == pytest.approx(other.per_token, abs=0.3)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_changes_scores_and_fingerprint(
    model: LanguageModel, tiny_model: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    network: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    config: Any = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(network, config).save_pretrained(str(tmp_path))
    adapted = load_model(ModelConfig(str(tiny_model), adapter=str(tmp_path)))
    assert adapted.fingerprint != model.fingerprint
    assert adapted.score(PROMPTS, COMPLETIONS)[0].total != model.score(PROMPTS, COMPLETIONS)[0].total
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"adapter_model\.safetensors is missing"):
        load_model(ModelConfig(str(tiny_model), adapter=str(tmp_path)))


def test_a_fingerprint_is_of_the_weights_not_of_the_place(
    model: LanguageModel, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENNAME_CACHE", str(tmp_path / "cache"))
    copied = shutil.copytree(tiny_model, tmp_path / "copy")
    assert load_model(str(copied)).fingerprint == model.fingerprint
    other = bytearray((copied / "model.safetensors").read_bytes())
    other[-1] ^= 1
    (copied / "model.safetensors").write_bytes(other)
    assert load_model(str(copied)).fingerprint != model.fingerprint


def test_broken_weights_are_an_error_that_names_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_model, tmp_path / "copy")
    (copied / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"cannot load .*copy"):
        load_model(str(copied)).score(["a"], ["b"])
    (copied / "config.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match=r"config\.json cannot be read"):
        TransformersLM(ModelConfig(str(copied)))
