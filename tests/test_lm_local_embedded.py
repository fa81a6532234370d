"""The embedded model end to end: OpenVINO writes what transformers finds likely."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from penname import paths
from penname.errors import BadInputError, PromptTooLongError
from penname.lm import LanguageModel, ModelConfig, Sampling, gguf, load_embedder, load_model
from penname.lm.embedded import GGUFModel

LONG = "".join(f"Review: I saw film number {i} and it was good.\nStars: {i % 5 + 1}\n\n" for i in range(12))
PROMPTS = [
    "Italy: Rome\nSpain: Madrid\nFrance:",
    LONG + "Review: It was awful.\nStars:",
    "one, two, three, four,",
]
GREEDY = Sampling(max_tokens=12, temperature=0)
SAMPLING = Sampling(max_tokens=12, stop=("\n",))


def test_it_is_one_model_with_one_name_whatever_runs_it(embedded_model: LanguageModel) -> None:
    assert embedded_model.name == "smollm2-135m"
    assert embedded_model.fingerprint == gguf.EMBEDDED_SHA256
    assert embedded_model.shape == "completion"
    assert embedded_model.context == 8192
    by_file = load_model(str(gguf.find("smollm2-135m")))
    assert (by_file.fingerprint, by_file.shape) == (embedded_model.fingerprint, "completion")


def test_texts_do_not_depend_on_neighbours_n_or_cached_prefixes(embedded_model: LanguageModel) -> None:
    together = embedded_model.generate(PROMPTS, 2, SAMPLING)
    assert any(one.text != other.text for one, other in together)
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert embedded_model.generate([prompt], 1, SAMPLING) == [row[:1]]
    greedy = embedded_model.generate(PROMPTS, 1, GREEDY)
    assert [embedded_model.generate([prompt], 1, GREEDY)[0] for prompt in PROMPTS] == greedy


def test_a_stream_is_what_generate_gives_and_can_be_left_early(embedded_model: LanguageModel) -> None:
    for seed in range(3):
        sampling = Sampling(max_tokens=30, stop=(". ", "\n"), seed=seed)
        [[text]] = embedded_model.generate([PROMPTS[0]], 1, sampling)
        assert "".join(embedded_model.stream(PROMPTS[0], sampling)) == text.text
        assert not any(stop in text.text for stop in sampling.stop)
    left: Iterator[str] = embedded_model.stream(PROMPTS[2], Sampling(max_tokens=4000, temperature=1.2))
    next(left)
    del left  # closes it; what it held is free, or this would wait for 4,000 tokens
    assert embedded_model.generate([PROMPTS[2]], 1, GREEDY)[0][0].tokens > 0


def test_what_was_written_is_found_likely(embedded_model: LanguageModel) -> None:
    written = [row[0].text for row in embedded_model.generate(PROMPTS, 1, GREEDY)]
    for score in embedded_model.score(PROMPTS, written):
        assert score.per_token[0] > -4  # the likeliest of 49,152 tokens
        assert score.total / score.tokens > -2
    assert "Paris" in written[0]
    [shares] = embedded_model.choose([PROMPTS[0]], [[" Paris", " London", " Berlin"]])
    assert shares[0] == max(shares)


def test_transformers_writes_the_same_greedy_text_from_the_converted_weights(
    embedded_model: LanguageModel,
) -> None:
    folder = gguf.weights_folder(gguf.find("smollm2-135m"))
    peer = load_model(ModelConfig(str(folder), shape="completion", dtype="float32"))
    assert peer.generate(PROMPTS, 1, GREEDY) == embedded_model.generate(PROMPTS, 1, GREEDY)
    assert folder.is_relative_to(paths.cache_dir())
    assert (folder / "model.safetensors").is_file()
    assert [file for file in folder.parent.iterdir() if file.name.startswith(".")] == []


def test_scores_are_those_of_transformers_whatever_was_read_before(embedded_model: LanguageModel) -> None:
    whole_blocks = LONG
    while embedded_model.count(whole_blocks) % 32:  # what OpenVINO keeps then ends where the answer begins
        whole_blocks = whole_blocks[:-1]
    prompts = [LONG, f"{LONG}Review: It was awful.\nStars:", whole_blocks, "", PROMPTS[0]]
    texts = [" Review: I liked it.", " 1", " and so on, and so on", "Once upon a time", ""]
    embedded_model.generate(prompts, 1, GREEDY)
    folder = gguf.weights_folder(gguf.find("smollm2-135m"))
    peer = load_model(ModelConfig(str(folder), shape="completion", dtype="float32"))
    wanted = peer.score(prompts, texts)
    for _ in range(2):  # the second time all has been read, answers too
        for ours, theirs in zip(embedded_model.score(prompts, texts), wanted, strict=True):
            assert ours.tokens == theirs.tokens
            np.testing.assert_allclose(ours.per_token, theirs.per_token, atol=0.05)


def test_what_exceeds_the_context_is_refused() -> None:
    model = load_model(ModelConfig("smollm2-135m", context=64))
    with pytest.raises(PromptTooLongError, match="64"):
        model.generate([LONG], 1, SAMPLING)


def test_openvino_never_ignores_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="adapter"):
        GGUFModel(ModelConfig("smollm2-135m", adapter=str(tmp_path)))


def test_near_texts_have_near_vectors() -> None:
    embedder = load_embedder("cpu")
    vectors = embedder.embed(["a cat sleeps", "a kitten naps", "quarterly tax filing"])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    assert embedder.embed([]).shape == (0, 384)
    with pytest.raises(BadInputError, match="list of texts"):
        embedder.embed("a cat")
    assert len(embedder.fingerprint) == 64
