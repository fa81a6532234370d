"""Any folder that holds a causal model, through transformers: on CPU or GPU, with adapters.

The sampling loop is our own: transformers' `generate` has one source of chance for a whole batch, and a text
must not change with its neighbours. In float32 it is the same in every batch but for the rounding of sums.
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penname.errors import BadInputError, ModelError, ModelNotFoundError
from penname.lm.base import Generation, Sampling, Score, Shape, sample_seed
from penname.lm.config import ModelConfig
from penname.lm.files import fingerprint
from penname.lm.libraries import quiet
from penname.lm.sampling import check, check_fits, context_of, draw
from penname.lm.stops import until_stop
from penname.lm.text import Codec, Writing
from penname.records import Prompt

_Pair = tuple[list[int], list[int]]  # token ids of a prompt and of its completion


@dataclass(frozen=True)
class _Limits:
    """What one batch may hold."""

    rows: int
    tokens: int  # padding, and tokens yet to be written, included
    logits: int  # numbers held at once


_CPU = _Limits(rows=64, tokens=32_768, logits=64_000_000)  # larger ones gain nothing; 256 MB in float32
# Scoring on a CPU, 4,000 tokens keep it as busy as 10,000, whose buffers the system hands out anew for every
# layer, and that took more than half of the time.
_CPU_SCORES = _Limits(rows=64, tokens=4_096, logits=64_000_000)
_GPU = _Limits(rows=256, tokens=262_144, logits=1_000_000_000)  # keeps a GPU busy, in some 10 GB


class TransformersLM:
    """A causal model of transformers in a folder. Implements `LanguageModel`.

    Args:
        config: `model` is the folder; `dtype` None is bfloat16 on a GPU and on a CPU with instructions for it
            (over twice as fast there, see benchmarks/models.py), else float32.
        folder: where the weights lie, if not at `config.model` (a converted GGUF file).

    Raises:
        ModelNotFoundError: the folder, or the adapter's, holds no model; the message says what is missing.
    """

    def __init__(self, config: ModelConfig, folder: Path | None = None) -> None:
        self._config = config
        self._folder = folder or Path(config.model).expanduser()
        self._adapter = None if config.adapter is None else Path(config.adapter).expanduser()
        _check_model(self._folder)
        if self._adapter is not None:
            _check_adapter(self._adapter)
        self.name = config.model
        self._settings = _read_json(self._folder / "config.json")
        self._vocabulary = int(self._settings.get("vocab_size") or 100_000)  # only for the size of batches

    @cached_property
    def fingerprint(self) -> str:
        """One hash over weights, tokenizer, configuration and adapter."""
        folders = [self._folder, *([self._adapter] if self._adapter else [])]
        kinds = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
        return fingerprint(file for folder in folders for kind in kinds for file in folder.glob(kind))

    @cached_property
    def shape(self) -> Shape:
        """What is configured; else "chat" where the model has a chat template."""
        return self._config.shape or ("chat" if self._codec.has_template else "completion")

    @cached_property
    def context(self) -> int:
        """Tokens, prompt and completion together."""
        names = ("max_position_embeddings", "n_positions", "max_seq_len")
        limit = next((self._settings[name] for name in names if self._settings.get(name)), None)
        return context_of(self._config, limit)

    def count(self, prompt: Prompt) -> int:
        """As `LanguageModel.count`."""
        return len(self._codec.prompt(prompt))

    def generate(
        self, prompts: Sequence[Prompt], n: int = 1, sampling: Sampling = Sampling()
    ) -> list[list[Generation]]:
        """As `LanguageModel.generate`."""
        check(sampling, n)
        texts = [
            [
                _Row(Writing(self._codec, ids, sampling), sample_seed(sampling.seed, prompt, number))
                for number in range(n)
            ]
            for prompt, ids in zip(prompts, self._read(prompts, sampling), strict=True)
        ]
        rows = sorted((row for rows in texts for row in rows), key=lambda row: len(row.writing.prompt))
        sizes = [(len(row.writing.prompt) + sampling.max_tokens, self._vocabulary) for row in rows]
        for batch in _batches(sizes, self._limits):
            for _ in self._write(rows[batch], sampling):
                pass
        return [[row.writing.generation() for row in rows] for rows in texts]

    def stream(self, prompt: Prompt, sampling: Sampling = Sampling()) -> Iterator[str]:
        """As `LanguageModel.stream`."""
        check(sampling)
        writing = Writing(self._codec, self._read([prompt], sampling)[0], sampling)
        row = _Row(writing, sample_seed(sampling.seed, prompt, 0))
        return until_stop(self._pieces(row, sampling), sampling.stop)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """As `LanguageModel.score`; batched by length.

        Prompt and completion are encoded apart and joined as tokens: what a completion scores must not hang
        on whether its first letters would merge with the prompt's last ones. An empty completion scores 0.

        Raises:
            BadInputError: not as many completions as prompts.
            PromptTooLongError: a prompt and its completion do not fit into the context.
        """
        if len(prompts) != len(completions):
            raise BadInputError(
                f"{len(prompts)} prompts and {len(completions)} completions: give one for each"
            )
        pairs = [
            (self._codec.prompt(p), self._codec.completion(c))
            for p, c in zip(prompts, completions, strict=True)
        ]
        for prompt, completion in pairs:
            check_fits(len(prompt), len(completion), self.context)
        scores = [Score(0.0, 0, ())] * len(pairs)
        order = sorted((i for i, (_, c) in enumerate(pairs) if c), key=lambda i: sum(map(len, pairs[i])))
        sizes = [(sum(map(len, pairs[i])), (len(pairs[i][1]) + 1) * self._vocabulary) for i in order]
        limits = _CPU_SCORES if self._device == "cpu" else _GPU
        for batch in _batches(sizes, limits):
            found = self._log_probabilities([pairs[i] for i in order[batch]])
            for i, per_token in zip(order[batch], found, strict=True):
                scores[i] = Score(math.fsum(per_token), len(per_token), tuple(per_token))
        return scores

    def choose(self, prompt: Prompt, options: Sequence[str]) -> list[float]:
        """As `LanguageModel.choose`: the options' whole probabilities, made to sum to 1."""
        if not options:
            raise BadInputError("options: none to choose from")
        totals = [score.total for score in self.score([prompt] * len(options), options)]
        weights = [math.exp(total - max(totals)) for total in totals]
        return [weight / sum(weights) for weight in weights]

    def _read(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
        encoded = [self._codec.prompt(prompt) for prompt in prompts]
        for ids in encoded:
            check_fits(len(ids), sampling.max_tokens, self.context)
        return encoded

    def _pieces(self, row: _Row, sampling: Sampling) -> Iterator[str]:
        shown = 0
        for _ in self._write([row], sampling):
            if piece := row.writing.text[shown:]:
                shown = len(row.writing.text)
                yield piece

    @torch.inference_mode()
    def _write(self, rows: list[_Row], sampling: Sampling) -> Iterator[None]:
        """Write a batch of texts to their ends, a token each a step; ended texts leave the batch."""
        prompts = list(dict.fromkeys(tuple(row.writing.prompt) for row in rows))  # samples share one reading
        ids, mask = self._pad(prompts)
        logits, cache = self._forward(ids, mask, keep=1)
        origin = [prompts.index(tuple(row.writing.prompt)) for row in rows]
        logits, mask = _take(origin, cache, logits, mask)
        while True:
            tokens = _draw(rows, logits[:, -1], sampling)
            yield
            unfinished = [i for i, row in enumerate(rows) if row.writing.finish is None]
            if not unfinished:
                return
            if len(unfinished) < len(rows):
                rows = [rows[i] for i in unfinished]
                tokens, mask = _take(unfinished, cache, tokens, mask)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            logits, cache = self._forward(tokens[:, None], mask, cache, keep=1)

    @torch.inference_mode()
    def _log_probabilities(self, pairs: Sequence[_Pair]) -> list[list[float]]:
        """Log-probability of each token of each completion; natural logarithms, taken in float32."""
        ids, mask = self._pad([prompt + completion for prompt, completion in pairs])
        keep = max(len(completion) for _, completion in pairs) + 1
        logits, _ = self._forward(ids, mask, keep=keep)
        result = []
        for row, (_, completion) in zip(logits, pairs, strict=True):
            # Padded on the left, rows end together; the logits before a token are those that speak of it.
            ahead = row[-len(completion) - 1 : -1].float()
            chosen = ahead.gather(-1, torch.tensor(completion, device=row.device)[:, None])[:, 0]
            result.append((chosen - ahead.logsumexp(dim=-1)).tolist())
        return result

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, (rows, longest), padded on the left.

        The mask is made of lengths, not of ids: padding and end token are often one id.
        """
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = 1
        return ids.to(self._device), mask.to(self._device)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: Any = None, *, keep: int
    ) -> tuple[torch.Tensor, Any]:
        """Logits (rows, `keep`, vocabulary) of the last `keep` tokens, and the cache of keys and values."""
        model, takes = self._model
        options: dict[str, Any] = {}
        if "position_ids" in takes:
            options["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in takes:
            options["logits_to_keep"] = keep
        output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options)
        return output.logits[:, -keep:], output.past_key_values

    @cached_property
    def _device(self) -> str:
        return self._config.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def _limits(self) -> _Limits:
        return _CPU if self._device == "cpu" else _GPU

    @cached_property
    def _codec(self) -> Codec:
        quiet()
        from transformers import AutoTokenizer

        with _loading(self._folder):
            tokenizer = AutoTokenizer.from_pretrained(self._folder)
        return Codec(tokenizer, _end_tokens(self._folder))

    @cached_property
    def _model(self) -> tuple[Any, frozenset[str]]:
        """The model, and the names of what its `forward` takes."""
        quiet()
        from transformers import AutoModelForCausalLM

        fast = self._device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
        dtype = self._config.dtype or ("bfloat16" if fast else "float32")
        with _loading(self._folder):
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._folder, dtype=getattr(torch, dtype), use_safetensors=True
            )
        takes = frozenset(inspect.signature(model.forward).parameters)
        if self._adapter is not None:
            from peft import PeftModel

            with _loading(self._adapter), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
                model = PeftModel.from_pretrained(model, str(self._adapter))
        with _loading(self._folder):
            model = model.to(self._device)
        return model.eval(), takes


class _Row:
    """One text of a batch, with a source of chance of its own."""

    def __init__(self, writing: Writing, seed: int) -> None:
        self.writing = writing
        self.chance = np.random.default_rng(seed)


def _draw(rows: Sequence[_Row], logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The next token of each row, (rows,), given to its text."""
    uniform = torch.tensor([row.chance.random() for row in rows], dtype=torch.float64)
    tokens = draw(logits, sampling, uniform)
    for row, token in zip(rows, tokens.tolist(), strict=True):
        row.writing.push(token)
    return tokens


def _take(
    rows: list[int], cache: Any, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The given rows of the cache, in place, and of two tensors; rows may repeat."""
    index = torch.tensor(rows, device=first.device)
    cache.batch_select_indices(index)
    return first[index], second[index]


def _batches(sizes: Sequence[tuple[int, int]], limits: _Limits) -> Iterator[slice]:
    """Runs of texts that fit together, from the (tokens, logits) of each, ascending in tokens."""
    start = 0
    most_logits = 0
    for end, (tokens, logits) in enumerate(sizes):
        rows = end - start + 1
        most_logits = max(most_logits, logits)
        if rows > 1 and (
            rows > limits.rows or rows * tokens > limits.tokens or rows * most_logits > limits.logits
        ):
            yield slice(start, end)
            start, most_logits = end, logits
    if sizes:
        yield slice(start, len(sizes))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{file} cannot be read: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _end_tokens(folder: Path) -> set[int]:
    """The ids that the model's configuration says end a text: none, one or several."""
    ends: set[int] = set()
    for file in (folder / "config.json", folder / "generation_config.json"):
        found = _read_json(file).get("eos_token_id") if file.is_file() else None
        ends.update(found if isinstance(found, list) else [] if found is None else [found])
    return ends


def _check_model(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"no model {str(folder)!r}: it is none of smollm2-135m, a folder, a GGUF file and a server's URL"
        )
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} holds no model: config.json is missing")
    if not any(folder.glob("*.safetensors")):
        raise ModelNotFoundError(
            f"{folder} holds no weights: *.safetensors is missing (pickled weights are not read)"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelNotFoundError(f"{folder} holds no tokenizer: tokenizer.json is missing")


def _check_adapter(folder: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelNotFoundError(f"{folder} holds no adapter: {name} is missing")


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Say which folder it was that a library could not load."""
    try:
        yield
    except Exception as error:  # the libraries raise of every kind
        raise ModelError(f"cannot load {folder}: {type(error).__name__}: {error}") from error
