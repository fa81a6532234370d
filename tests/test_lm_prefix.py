"""Soft prompts before prompts: as a naive forward over embeddings, in any batch, for any users together."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from penname.errors import BadInputError, PromptTooLongError
from penname.lm import ModelConfig
from penname.lm.base import Prefix, Sampling
from penname.lm.embedded import GGUFModel
from penname.lm.local import TransformersLM
from penname.lm.network import Network
from penname.lm.remote import RemoteLM
from tiny import CONTEXT

WIDTH = 32
GREEDY = Sampling(max_tokens=12, temperature=0)
PROMPTS = ["the cat sat on the mat and ", "the dog", "the cat sat on the mat. " * 8, "zebra"]
ENDS = [" sat", " the mat and the log", "x", " lay on the log"]


def prefix(key: str, rows: int = 4, width: int = WIDTH) -> Prefix:
    drawn = np.random.default_rng(sum(key.encode())).normal(0, 0.6, (rows, width))
    return Prefix(key, drawn.astype(np.float32))


USERS = [None, prefix("alice"), prefix("bob"), prefix("carol", 7)]


@pytest.fixture(scope="module", params=["plain", "adapter"])
def model(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> TransformersLM:
    if request.param == "plain":
        return TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora).save_pretrained(str(folder))
    return TransformersLM(ModelConfig(str(tiny_model), dtype="float32", adapter=str(folder)))


def naive(model: TransformersLM, prompt: str, completion: str, soft: Prefix | None) -> list[float]:
    """Log-probabilities of one pair over embeddings, without padding, masks or a cache."""
    network: Any = model._network.model
    tokenizer = AutoTokenizer.from_pretrained(model.name)
    before, after = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
    with torch.inference_mode():
        embedded = network.get_input_embeddings()(torch.tensor([before + after]))
        rows = np.zeros((0, WIDTH), np.float32) if soft is None else soft.rows
        whole = torch.cat([torch.from_numpy(rows)[None], embedded], dim=1)
        found = network(inputs_embeds=whole).logits[0].log_softmax(dim=-1)
    start = len(rows) + len(before) - 1
    return [float(found[start + i, token]) for i, token in enumerate(after)]


CASES = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.sampled_from(ENDS), st.integers(0, len(USERS) - 1)), max_size=12
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=CASES)
def test_scores_of_mixed_users_are_those_of_a_naive_forward(
    model: TransformersLM, cases: list[tuple[str, str, int]]
) -> None:
    scores = model.score(
        [prompt for prompt, _, _ in cases], [end for _, end, _ in cases], [USERS[i] for _, _, i in cases]
    )
    for (prompt, end, user), score in zip(cases, scores, strict=True):
        assert score.per_token == pytest.approx(naive(model, prompt, end, USERS[user]), abs=1e-4)


def test_a_long_prompt_is_read_once_for_each_user(
    model: TransformersLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, int]] = []
    forward = Network.forward

    def watched(self: Any, ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        passes.append((ids.shape[0], ids.shape[1]))
        return forward(self, ids, *rest, **options)

    model.score(["a", "a"], ["b", "b"])  # the look at what the model keeps
    monkeypatch.setattr(Network, "forward", watched)
    users = [USERS[1]] * 3 + [USERS[2]] * 3
    scores = model.score([PROMPTS[2]] * 6, [" a", " b", " c"] * 2, users)
    assert [rows for rows, _ in passes] == [2, 6]  # one reading a user, then the six ends
    assert scores[0].total != pytest.approx(scores[3].total, abs=1e-3)


def test_texts_of_a_mixed_batch_are_those_of_each_alone(model: TransformersLM) -> None:
    asked = [(prompt, user) for prompt in PROMPTS for user in USERS]
    together = model.generate([prompt for prompt, _ in asked], 1, GREEDY, [user for _, user in asked])
    alone = [model.generate([prompt], 1, GREEDY, [user])[0] for prompt, user in asked]
    assert [one.text for [one] in together] == [one.text for [one] in alone]
    for (prompt, user), [one] in zip(asked, together, strict=True):
        assert one.prompt_tokens == model.count(prompt) + (0 if user is None else len(user.rows))
    texts = {one.text for [one] in together[: len(USERS)]}
    assert len(texts) == len(USERS)  # of one prompt, each user's is another


def test_a_greedy_text_is_the_naive_one(model: TransformersLM) -> None:
    network: Any = model._network.model
    tokenizer = AutoTokenizer.from_pretrained(model.name)
    user = prefix("alice")
    ids = tokenizer(PROMPTS[0])["input_ids"]
    prompt_length = len(ids)
    with torch.inference_mode():
        for _ in range(GREEDY.max_tokens):
            embedded = network.get_input_embeddings()(torch.tensor([ids]))
            logits = network(inputs_embeds=torch.cat([torch.from_numpy(user.rows)[None], embedded], dim=1))
            ids.append(int(logits.logits[0, -1].argmax()))
            if ids[-1] in model._codec.ends:
                break
    wanted = tokenizer.decode(ids[prompt_length:], skip_special_tokens=True)
    assert model.generate([PROMPTS[0]], 1, GREEDY, [user])[0][0].text == wanted.rstrip("\ufffd")


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_stream_is_what_generate_gives(model: TransformersLM, temperature: float) -> None:
    sampling = Sampling(max_tokens=12, temperature=temperature, seed=3)
    for user in USERS:
        [[first, second]] = model.generate([PROMPTS[0]], 2, sampling, [user])
        assert "".join(model.stream(PROMPTS[0], sampling, user)) == first.text
        assert temperature == 0 or first.text != second.text


def test_none_before_any_prompt_is_as_without(model: TransformersLM) -> None:
    assert model.generate(PROMPTS, 1, GREEDY, [None] * 4) == model.generate(PROMPTS, 1, GREEDY)
    assert model.score(PROMPTS, ENDS, [None] * 4) == model.score(PROMPTS, ENDS)


def test_the_rows_count_in_the_context(model: TransformersLM) -> None:
    free = CONTEXT - model.count("the cat") - GREEDY.max_tokens
    model.generate(["the cat"], 1, GREEDY, [prefix("alice", free)])
    with pytest.raises(PromptTooLongError):
        model.generate(["the cat"], 1, GREEDY, [prefix("alice", free + 1)])
    with pytest.raises(PromptTooLongError):
        model.stream("the cat", GREEDY, prefix("alice", free + 1))
    with pytest.raises(PromptTooLongError):
        model.score(["the cat"], [" sat"], [prefix("alice", CONTEXT)])


def test_what_does_not_fit_is_refused(model: TransformersLM) -> None:
    for wrong in (
        prefix("bob", width=WIDTH + 1),
        Prefix("flat", np.zeros(WIDTH, np.float32)),
        prefix("x", 0),
    ):
        with pytest.raises(BadInputError, match="32 numbers"):
            model.generate(["a", "b"], 1, GREEDY, [None, wrong])
    with pytest.raises(BadInputError, match="2 prompts and 1 prefixes"):
        model.score(["a", "b"], ["c", "d"], [None])


def test_backends_without_soft_prompts_refuse_them() -> None:
    remote = RemoteLM(ModelConfig("http://127.0.0.1:9/v1#told"))
    quantised = GGUFModel.__new__(GGUFModel)
    quantised.name = "model.gguf"
    for backend in (remote, quantised):
        for ask in (
            lambda to=backend: to.generate(["a"], 1, GREEDY, [prefix("alice")]),
            lambda to=backend: list(to.stream("a", GREEDY, prefix("alice"))),
            lambda to=backend: to.score(["a"], ["b"], [prefix("alice")]),
        ):
            with pytest.raises(BadInputError, match=r"takes no soft prompts .* transformers"):
                ask()
