"""Users' soft prompts on a server: what vLLM is sent, what it writes, and what it refuses."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Generator, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_server import Reply, Scripted, error, events
from penname.errors import (
    BadInputError,
    ModelError,
    ModelNotFoundError,
    PromptTooLongError,
    ServerError,
    ServerRefusedError,
    TrainedError,
)
from penname.lm import ModelConfig, parse
from penname.lm.base import Generation, Prefix, Sampling
from penname.lm.embeddings import InputEmbeddings
from penname.methods.prlhf.method import Personal, open_personal
from penname.records import Message
from tiny import CONTEXT, save_tiny_model
from trained_runs import ROWS, WIDTH, rows, save_run
from vllm_server import BASE, LORA, VLLM

GREEDY = Sampling(max_tokens=12, temperature=0)
CHAT = (Message(role="system", content="Be brief."), Message(role="user", content="the cat"))
SOFT = Prefix("a key", rows(5, ROWS, WIDTH))


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Path:
    vectors = {"alice": rows(11, ROWS, WIDTH), "bob": rows(12, ROWS, WIDTH)}
    return save_run(tmp_path / "run", tiny_model, "individual", vectors)


def config(server: Scripted, name: str = LORA, **settings: Any) -> ModelConfig:
    return server.model(name, **settings).config


def local(run: Path, base: Path) -> Personal:
    return open_personal(run, ModelConfig(str(base), dtype="float32", device="cpu"))


def ended(stream: Iterator[str]) -> tuple[list[str], Generation]:
    """The pieces of a stream, and what it returns."""
    assert isinstance(stream, Generator)
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


# What is written


def test_a_run_on_a_server_writes_what_it_writes_here(serve, run: Path, tiny_model: Path) -> None:
    server = serve(VLLM(tiny_model, run / "adapter"))
    here, there = local(run, tiny_model), open_personal(run, config(server))
    assert (there.model.shape, there.model.context) == (here.model.shape, CONTEXT)
    asked = [(prompt, user) for prompt in ("the cat", CHAT, "") for user in ("alice", "bob", "new")]
    prompts = [prompt for prompt, _ in asked]
    assert [there.model.count(prompt) for prompt in prompts] == [here.model.count(p) for p in prompts]
    wanted = here.model.generate(prompts, 1, GREEDY, [here.prefix(user) for _, user in asked])
    found = there.model.generate(prompts, 1, GREEDY, [there.prefix(user) for _, user in asked])
    for [one], [other] in zip(found, wanted, strict=True):
        assert (one.text, one.prompt_tokens, one.finish) == (other.text, other.prompt_tokens, other.finish)
    assert len({one.text for [one] in found}) > 6
    for prompt, user in asked[:4]:
        pieces, whole = ended(there.model.stream(prompt, GREEDY, there.prefix(user)))
        [[one]] = here.model.generate([prompt], 1, GREEDY, [here.prefix(user)])
        assert "".join(pieces) == whole.text == one.text
        assert (whole.prompt_tokens, whole.finish) == (one.prompt_tokens, one.finish)
    assert set(server.paths) == {"/models", "/completions"}
    assert all("prompt" not in body and "messages" not in body for body in server.bodies)


def test_merged_weights_write_the_same(serve, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    served = VLLM(tiny_model, run / "adapter")
    merged = served.models[LORA].merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    served.tokenizer.save_pretrained(tmp_path / "merged")
    server = serve(VLLM(tmp_path / "merged"))
    here, there = local(run, tiny_model), open_personal(run, config(server, BASE))
    [[wanted]] = here.model.generate(["the dog"], 1, GREEDY, [here.prefix("alice")])
    [[found]] = there.model.generate(["the dog"], 1, GREEDY, [there.prefix("alice")])
    assert found.text == wanted.text


def test_a_run_of_all_weights_needs_no_base_here(serve, run: Path, tiny_model: Path) -> None:
    shutil.rmtree(run / "adapter")
    shutil.copytree(tiny_model, run / "model")
    card = json.loads((run / "penname.json").read_text())
    (run / "penname.json").write_text(json.dumps(card | {"model": "gone"}))
    there = open_personal(run, config(serve(VLLM(tiny_model)), BASE))
    here = open_personal(run)
    [[wanted]] = here.model.generate(["the dog"], 1, GREEDY, [here.prefix("alice")])
    [[found]] = there.model.generate(["the dog"], 1, GREEDY, [there.prefix("alice")])
    assert found.text == wanted.text


def test_prompts_with_and_without_a_soft_prompt_go_their_own_ways(serve, run: Path, tiny_model: Path) -> None:
    server = serve(VLLM(tiny_model, run / "adapter"))
    here, there = local(run, tiny_model), open_personal(run, config(server, concurrency=1))
    found = there.model.generate([CHAT, CHAT], 1, GREEDY, [None, there.prefix("alice")])
    wanted = here.model.generate([CHAT, CHAT], 1, GREEDY, [None, here.prefix("alice")])
    assert [one.text for [one] in found] == [one.text for [one] in wanted]
    assert server.paths == ["/chat/completions", "/completions"]


def test_what_a_request_says(serve, run: Path, tiny_model: Path) -> None:
    server = serve(VLLM(tiny_model, run / "adapter"))
    there = open_personal(run, config(server))
    prefix = there.prefix("alice")
    assert prefix is not None
    sampling = Sampling(max_tokens=6, temperature=0.8, top_p=0.9, stop=("cat",), seed=3)
    [texts] = there.model.generate(["the cat"], 3, sampling, [prefix])
    [again] = there.model.generate(["the cat"], 3, sampling, [prefix])
    assert texts == again
    assert len({one.text for one in texts}) > 1
    assert all("cat" not in one.text for one in texts)
    body = server.bodies[0]
    sent = torch.load(BytesIO(base64.b64decode(body.pop("prompt_embeds"))), weights_only=True)
    assert (sent.dtype, sent.shape) == (torch.float32, (ROWS + there.model.count("the cat"), WIDTH))
    assert sent[:ROWS].numpy() == pytest.approx(prefix.rows)
    assert isinstance(body.pop("seed"), int)
    ends = body.pop("stop_token_ids")
    assert set(ends) >= set(VLLM(tiny_model).tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    assert body == {
        "model": LORA,
        "n": 3,
        "max_tokens": 6,
        "temperature": 0.8,
        "top_p": 0.9,
        "stop": ["cat"],
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


# The embeddings


def test_embeddings_are_read_of_any_file_in_the_type_they_have(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "shards"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    found = InputEmbeddings(str(folder))
    ids = found.codec.prompt("the cat")
    wanted = model.get_input_embeddings()(torch.tensor(ids))
    sent = torch.load(BytesIO(base64.b64decode(found.encoded("the cat", SOFT))), weights_only=True)
    assert sent.dtype == torch.bfloat16
    assert torch.equal(sent[ROWS:], wanted)
    assert torch.equal(sent[:ROWS], torch.from_numpy(SOFT.rows).bfloat16())
    more = InputEmbeddings(str(folder), "float32").encoded("the cat", SOFT)
    assert torch.equal(torch.load(BytesIO(base64.b64decode(more)))[:ROWS], torch.from_numpy(SOFT.rows))


def test_the_embedding_may_go_without_the_models_own_first_name(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "bare"
    shutil.copytree(tiny_model, folder)
    held = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): one for name, one in held.items()}, folder / "model.safetensors")
    assert InputEmbeddings(str(folder)).encoded("x", SOFT) == InputEmbeddings(str(tiny_model)).encoded(
        "x", SOFT
    )
    save_file({"other": held["lm_head.weight"]}, folder / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"no input embeddings: none of model\.embed_tokens\.weight"):
        _ = InputEmbeddings(str(folder)).width


def test_embeddings_that_are_more_than_a_table_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import Gemma3TextConfig

    folder = tmp_path / "scaled"
    shutil.copytree(tiny_model, folder)
    Gemma3TextConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"more than a table .*ScaledWordEmbedding"):
        InputEmbeddings(str(folder)).encoded("x", SOFT)


# What is refused


def test_a_server_that_was_not_told_to_take_embeddings(serve, run: Path, tiny_model: Path) -> None:
    there = open_personal(run, config(serve(VLLM(tiny_model, run / "adapter", enabled=False))))
    for asked in (
        lambda: there.model.generate(["x"], 2, replace(GREEDY, temperature=1), [there.prefix("alice")]),
        lambda: list(there.model.stream("x", GREEDY, there.prefix("alice"))),
    ):
        with pytest.raises(
            ServerRefusedError, match=r"vLLM, started with --enable-prompt-embeds; it says: You"
        ):
            asked()


def test_a_server_of_another_model(serve, run: Path, tiny_model: Path) -> None:
    server = serve(VLLM(tiny_model, run / "adapter", width=64))
    there = open_personal(run, config(server))
    with pytest.raises(ServerRefusedError, match=r"'mine' is not the one .* hidden_size 32 does not match"):
        there.model.generate(["x"], 1, GREEDY, [there.prefix("alice")])
    there = open_personal(run, config(server, "mime"))
    with pytest.raises(ServerRefusedError, match=r"no model 'mime' \(did you mean 'mine'\?\)"):
        there.model.generate(["x"], 1, GREEDY, [there.prefix("alice")])


def test_a_prompt_that_does_not_fit(serve, run: Path, tiny_model: Path) -> None:
    there = open_personal(run, config(serve(VLLM(tiny_model, run / "adapter"))))
    with pytest.raises(PromptTooLongError):
        there.model.generate(["cat " * CONTEXT], 1, GREEDY, [there.prefix("alice")])


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 1, "completion_tokens": 2}])
def test_a_server_that_leaves_the_embeddings_out_is_not_believed(serve, run: Path, usage: Any) -> None:
    choice = {"index": 0, "text": "anything", "finish_reason": "stop"}

    def answer(path: str, body: dict[str, Any]) -> Reply:
        whole = {"choices": [choice], "usage": usage}
        return events(whole) if body.get("stream") else Reply(whole)

    there = open_personal(run, config(serve(answer)))
    with pytest.raises(ServerError, match=r"did not read the .* rows of embeddings"):
        there.model.generate(["x"], 1, GREEDY, [there.prefix("alice")])
    shown: list[str] = []
    with pytest.raises(ServerError, match="did not read"):
        shown.extend(there.model.stream("x", GREEDY, there.prefix("alice")))
    assert not shown


def test_no_error_repeats_what_was_sent(serve, run: Path) -> None:
    def answer(path: str, body: dict[str, Any]) -> Reply:
        return error(422, f"prompt_embeds: bad value {body['prompt_embeds'][400:]}")

    there = open_personal(run, config(serve(answer)))
    with pytest.raises(ServerRefusedError, match="explanation is left out") as refused:
        there.model.generate(["x"], 1, GREEDY, [there.prefix("alice")])
    assert len(str(refused.value)) < 400


def test_a_setting_that_a_server_refuses_is_not_taken_for_the_embeddings(serve, run: Path) -> None:
    there = open_personal(run, config(serve(lambda path, body: error(400, "top_p must be below 1"))))
    with pytest.raises(ServerRefusedError, match=r"check .* the sampling settings; it says: top_p must"):
        there.model.generate(["x"], 1, GREEDY, [there.prefix("alice")])


def test_soft_prompts_need_the_models_embeddings_here(serve, tiny_model: Path) -> None:
    server = serve(VLLM(tiny_model))
    plain = server.model(BASE)
    for asked in (
        lambda: plain.generate(["x"], 1, GREEDY, [SOFT]),
        lambda: list(plain.stream("x", GREEDY, SOFT)),
    ):
        with pytest.raises(BadInputError, match=r"takes no soft prompts .* `embeddings` names the folder"):
            asked()
    known = server.model(BASE, embeddings=str(tiny_model))
    with pytest.raises(BadInputError, match="must have 32 numbers"):
        known.generate(["x"], 1, GREEDY, [Prefix("wide", np.zeros((2, 33), np.float32))])
    with pytest.raises(BadInputError, match="2 prompts and 1 prefixes"):
        known.generate(["x", "y"], 1, GREEDY, [SOFT])
    with pytest.raises(BadInputError, match=r"takes no soft prompts .* to score after"):
        known.score(["x"], ["y"], [SOFT])
    with pytest.raises(ModelNotFoundError, match="no model 'nowhere'"):
        server.model(BASE, embeddings="nowhere").count("x")
    assert not server.bodies


def test_a_base_that_is_not_here_or_another_is_refused(
    serve, run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    server = serve(VLLM(tiny_model, run / "adapter"))
    card = json.loads((run / "penname.json").read_text())
    (run / "penname.json").write_text(json.dumps(card | {"model": str(tmp_path / "gone")}))
    with pytest.raises(TrainedError, match=r"gone.* cannot be opened .* `embeddings` in a model's TOML file"):
        open_personal(run, config(server))
    other = save_tiny_model(tmp_path / "other", template=False)
    with pytest.raises(TrainedError, match="its own base model only"):
        open_personal(run, config(server, embeddings=str(other)))
    there = open_personal(run, config(server, embeddings=str(tiny_model)))
    assert there.model.generate(["x"], 1, GREEDY, [there.prefix("alice")])


def test_how_the_embeddings_are_named(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    file = tmp_path / "served.toml"
    file.write_text('model = "http://127.0.0.1:9/v1#mine"\nembeddings = "base"\n')
    assert parse(str(file)).embeddings == str(tmp_path / "base")
    with pytest.raises(BadInputError, match="embeddings: only a model on a server"):
        ModelConfig(str(tiny_model), embeddings=str(tiny_model))
