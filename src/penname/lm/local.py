"""Any folder that holds a causal model, through transformers: on CPU or GPU, with adapters.

The sampling loop is our own: transformers' `generate` has one source of chance for a whole batch, and a text
must not change with its neighbours. In float32 it is the same in every batch but for the rounding of sums.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from penname.errors import BadInputError, ModelError
from penname.lm.base import Generation, Prefix, Sampling, Score, Shape, sample_seed
from penname.lm.batches import Group, Limits, by_length, shared, together
from penname.lm.config import ModelConfig
from penname.lm.decoding import Decoding, can_write
from penname.lm.files import fingerprint
from penname.lm.folders import check_adapter, check_model, end_tokens, loading, read_json
from penname.lm.libraries import quiet
from penname.lm.prefixes import FIRST, SoftPrompts
from penname.lm.rollout import Reading, Repeated, Row, batches, take, write
from penname.lm.sampling import check, check_fits, context_of, most_tokens
from penname.lm.scores import TokenPair, choose_by, of_tokens, read_pairs, score_of
from penname.lm.text import Codec, Showing, Writing, shown, streamed
from penname.records import Prompt

# A step of 128 texts takes little longer than one of 32: the weights are read once for all. 256 MB of logits.
_CPU = Limits(rows=128, tokens=32_768, logits=64_000_000, kept=32_768)
# Scoring on a CPU, 4,000 tokens keep it as busy as 10,000, whose buffers the system hands out anew for every
# layer, and that took more than half of the time.
_CPU_SCORES = replace(_CPU, rows=64, tokens=4_096)
# Keeps a GPU busy, in some 10 GB.
_GPU = Limits(rows=256, tokens=262_144, logits=1_000_000_000, kept=262_144)


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
        self.config = config
        self._folder = folder or Path(config.model).expanduser()
        self._adapter = None if config.adapter is None else Path(config.adapter).expanduser()
        check_model(self._folder)
        if self._adapter is not None:
            check_adapter(self._adapter)
        self.name = config.model
        self._settings = read_json(self._folder / "config.json")
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
        return self.config.shape or ("chat" if self._codec.has_template else "completion")

    @cached_property
    def context(self) -> int:
        """Tokens, prompt and completion together."""
        names = ("max_position_embeddings", "n_positions", "max_seq_len")
        limit = next((self._settings[name] for name in names if self._settings.get(name)), None)
        return context_of(self.config, limit)

    def count(self, prompt: Prompt) -> int:
        """As `LanguageModel.count`."""
        return len(self._codec.prompt(prompt))

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        sampling: Sampling = Sampling(),
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[list[Generation]]:
        """As `LanguageModel.generate`."""
        check(sampling, n)
        soft = self._soft(prefixes, len(prompts))
        read = self._read(prompts, soft, [sampling] * len(prompts))
        texts = [
            [
                Row(Writing(self._codec, ids, sampling), sample_seed(sampling.seed, prompt, number))
                for number in range(n)
            ]
            for prompt, ids in zip(prompts, read, strict=True)
        ]
        rows = [row for rows in texts for row in rows]
        for batch in batches(rows, sampling, self._vocabulary, self._limits, repeated=not self._plain):
            for _ in self._write(batch, sampling, soft):
                pass
        return [[row.writing.generation() for row in rows] for rows in texts]

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Generator[str, None, Generation]:
        """As `LanguageModel.stream`; returns the whole."""
        check(sampling)
        soft = self._soft([prefix], 1)
        writing = Writing(self._codec, self._read([prompt], soft, [sampling])[0], sampling)
        row = Row(writing, sample_seed(sampling.seed, prompt, 0))
        return streamed(writing, self._write([row], sampling, soft), sampling.stop)

    def stream_many(
        self,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        prefixes: Sequence[Prefix | None] | None = None,
        numbers: Sequence[int] | None = None,
        gone: Container[int] = (),
    ) -> Generator[list[tuple[int, str]], None, list[Generation]]:
        """Several texts as they are written together, each as it would be alone; returns them whole.

        After each step come the pieces that are new, each with the place of its text.

        Args:
            samplings: one for each prompt; all of one temperature and one top_p.
            numbers: which sample of its prompt each text is, as `generate` counts them; 0 where None.
            gone: places of texts that nobody waits for any more, looked at after each step: they end there.

        Raises:
            PromptTooLongError, BadInputError: as `generate`, before anything is written.
        """
        if len({(one.temperature, one.top_p) for one in samplings}) > 1:
            raise BadInputError("texts that are written together need one temperature and one top_p")
        for sampling in samplings:
            check(sampling)
        soft = self._soft(prefixes, len(prompts))
        read = self._read(prompts, soft, samplings)
        rows = []
        for at, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            number = 0 if numbers is None else numbers[at]
            seed = sample_seed(sampling.seed, prompt, number)
            rows.append(Row(Writing(self._codec, read[at], sampling), seed))
        if rows:
            place = {row: at for at, row in enumerate(rows)}
            # Room for the longest: the other settings are each text's own.
            longest = max(samplings, key=most_tokens)
            for batch in batches(rows, longest, self._vocabulary, self._limits, repeated=not self._plain):
                places = {place[row] for row in batch}
                texts = {at: Showing(rows[at].writing, samplings[at].stop) for at in places}
                yield from shown(texts, self._write(batch, longest, soft), gone)
        return [row.writing.generation() for row in rows]

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        """As `LanguageModel.score`. What several pairs begin with is read once; others are batched by length.

        An empty completion scores 0.

        Raises:
            BadInputError: not as many completions, or prefixes, as prompts; or a prefix of another width.
            PromptTooLongError: a prompt and its completion do not fit into the context.
        """
        soft = self._soft(prefixes, len(prompts))
        pairs = read_pairs(self._codec, prompts, completions, self.context, soft.ids)
        scores = [Score(0.0, 0, ())] * len(pairs)
        wanted = [i for i, (_, completion) in enumerate(pairs) if completion]
        for at, per_token in self._scored([pairs[i] for i in wanted], soft):
            scores[wanted[at]] = score_of(per_token)
        return scores

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """As `LanguageModel.choose`: the options' whole probabilities, made to sum to 1."""
        return choose_by(self.score, prompts, options)

    @cached_property
    def width(self) -> int:
        """Numbers of a token's embedding, and so of a soft prompt's row."""
        quiet()
        from transformers import AutoConfig

        with loading(self._folder):
            config = AutoConfig.from_pretrained(self._folder).get_text_config()
            return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)

    def take(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Write with these weights from now on: what is still being trained. The fingerprint is a new one.

        Args:
            weights: by their names in the causal model, rounded to its type; all others stay as they are.

        Raises:
            ModelError: the model has no such weight, or one of another shape; nothing is taken then.
        """
        own = dict(self._model[0].named_parameters())
        for name, new in weights.items():
            if name not in own or own[name].shape != new.shape:
                raise ModelError(f"{self.name} has no weight {name} of shape {tuple(new.shape)}")
        with torch.no_grad():
            for name, new in weights.items():
                own[name].copy_(new)
        self.fingerprint = uuid4().hex

    def _soft(self, prefixes: Sequence[Prefix | None] | None, count: int) -> SoftPrompts:
        # Only where there are any is the width of interest.
        return SoftPrompts(prefixes, count, self.width if any(prefixes or ()) else 0)

    def _read(
        self, prompts: Sequence[Prompt], soft: SoftPrompts, samplings: Sequence[Sampling]
    ) -> list[list[int]]:
        encoded = [
            before + self._codec.prompt(prompt) for before, prompt in zip(soft.ids, prompts, strict=True)
        ]
        for ids, sampling in zip(encoded, samplings, strict=True):
            check_fits(len(ids), most_tokens(sampling), self.context)
        return encoded

    @torch.inference_mode()
    def _write(self, rows: Sequence[Row], sampling: Sampling, soft: SoftPrompts) -> Iterator[None]:
        """Write a batch of texts to their ends, a token each a step; ended texts leave the batch."""
        prompts = list(dict.fromkeys(tuple(row.writing.prompt) for row in rows))  # samples share one reading
        ids, mask = self._pad(prompts)
        logits, cache = self._forward(ids, mask, keep=1, soft=soft)
        place = {prompt: at for at, prompt in enumerate(prompts)}
        origin = [place[tuple(row.writing.prompt)] for row in rows]
        first = logits[:, -1][origin]
        reading: Reading
        if self._plain:
            reading = Decoding(_inner(self._model[0]), cache, mask, origin, most_tokens(sampling))
        else:
            reading = Repeated(self._forward, cache, mask, origin)
        yield from write(rows, first, reading, sampling)

    def _scored(self, pairs: Sequence[TokenPair], soft: SoftPrompts) -> Iterator[tuple[int, list[float]]]:
        """The place of each pair, in any order, and the log-probability of each token of its completion."""
        limits = _CPU_SCORES if self._device == "cpu" else _GPU
        # A text's last token is not read: nothing is asked of what would follow it.
        texts = [prompt + completion[:-1] for prompt, completion in pairs]
        # The prompt's last token speaks of the completion's first: it is read with each completion.
        most = [len(prompt) - 1 for prompt, _ in pairs]
        groups = []
        if len(pairs) > 1 and self._can_share:
            groups = shared(texts, most, self._vocabulary, limits)
        for batch in together(groups, self._vocabulary, limits):
            members = [i for group in batch for i in group.members]
            found = self._after_common([pairs[i] for i in members], batch, soft)
            yield from zip(members, found, strict=True)
        grouped = {i for group in groups for i in group.members}
        alone = sorted((i for i in range(len(texts)) if i not in grouped), key=lambda i: len(texts[i]))
        sizes = [(len(texts[i]), len(pairs[i][1]) * self._vocabulary) for i in alone]
        for run in by_length(sizes, limits):
            yield from zip(alone[run], self._whole([pairs[i] for i in alone[run]], soft), strict=True)

    @torch.inference_mode()
    def _whole(self, pairs: Sequence[TokenPair], soft: SoftPrompts) -> list[list[float]]:
        """Log-probability of each token of each completion, each text read from its beginning."""
        ids, mask = self._pad([prompt + completion[:-1] for prompt, completion in pairs])
        keep = max(len(completion) for _, completion in pairs)
        logits, _ = self._forward(ids, mask, keep=keep, soft=soft)
        # Padded on the left, rows end together; the logits before a token are those that speak of it.
        return [
            of_tokens(row[-len(completion) :], completion)
            for row, (_, completion) in zip(logits, pairs, strict=True)
        ]

    @torch.inference_mode()
    def _after_common(
        self, pairs: Sequence[TokenPair], groups: Sequence[Group], soft: SoftPrompts
    ) -> list[list[float]]:
        """As `_whole`, with what a group's texts begin with read once; `pairs` are the groups' members."""
        origin = [at for at, group in enumerate(groups) for _ in group.members]
        firsts = [origin.index(at) for at in range(len(groups))]
        ids, mask = self._pad([pairs[i][0][: group.prefix] for i, group in zip(firsts, groups, strict=True)])
        _, cache = self._forward(ids, mask, keep=1, soft=soft)
        mask = take(origin, cache, mask)
        # Padded on the right, no rest has a gap before it: sliding windows count places, not tokens.
        skipped = [groups[at].prefix for at in origin]
        rests = [(p + c[:-1])[skip:] for skip, (p, c) in zip(skipped, pairs, strict=True)]
        ids, rest_mask = self._pad(rests, left=False)
        starts = [len(prompt) - 1 - skip for skip, (prompt, _) in zip(skipped, pairs, strict=True)]
        unread = min(starts)
        logits, _ = self._forward(ids, torch.cat([mask, rest_mask], dim=1), cache, keep=ids.shape[1] - unread)
        return [
            of_tokens(row[start - unread :][: len(completion)], completion)
            for row, start, (_, completion) in zip(logits, starts, pairs, strict=True)
        ]

    def _pad(self, rows: Sequence[Sequence[int]], *, left: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, (rows, longest), padded on the left or the right.

        The mask is made of lengths, not of ids: padding and end token are often one id.
        """
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            start = longest - len(row) if left else 0
            ids[i, start : start + len(row)] = torch.tensor(row)
            mask[i, start : start + len(row)] = 1
        return ids.to(self._device), mask.to(self._device)

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Any = None,
        *,
        keep: int,
        soft: SoftPrompts | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """Logits (rows, `keep`, vocabulary) of the last `keep` tokens, and the cache of keys and values.

        `soft` is given where `ids` may hold rows of soft prompts.
        """
        model, takes = self._model
        options: dict[str, Any] = {"input_ids": ids}
        if soft is not None and soft.rows is not None:
            options = {"inputs_embeds": _embedded(model.get_input_embeddings(), ids, soft.rows)}
        if "position_ids" in takes:
            options["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in takes:
            options["logits_to_keep"] = keep
        output = model(attention_mask=mask, past_key_values=cache, use_cache=True, **options)
        return output.logits[:, -keep:], output.past_key_values

    @cached_property
    def _can_share(self) -> bool:
        """Whether rows of what the model keeps of a text can be repeated, and read on from.

        Not so with recurrent layers: transformers' `batch_select_indices` leaves their states as they are, or
        is not there. Nor with adapters that put tokens of their own before each reading. So we look at what
        one token leaves behind.
        """
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        with torch.inference_mode():
            _, kept = self._forward(*self._pad([[0]]), keep=1)
        plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in kept.layers)
        return plain and kept.get_seq_length() == 1

    @cached_property
    def _plain(self) -> bool:
        """Whether `Decoding` writes with this model what its plain reading writes; looked at once.

        Where it does not, `Repeated` is what writes: a property of the model, known before the first text.
        """
        inner = _inner(self._model[0])
        return self._can_share and can_write(inner, self._pad, self._forward)

    @cached_property
    def _device(self) -> str:
        return self.config.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def _limits(self) -> Limits:
        return _CPU if self._device == "cpu" else _GPU

    @cached_property
    def _codec(self) -> Codec:
        quiet()
        from transformers import AutoTokenizer

        with loading(self._folder):
            tokenizer = AutoTokenizer.from_pretrained(self._folder)
        return Codec(tokenizer, end_tokens(self._folder))

    @cached_property
    def _model(self) -> tuple[Any, frozenset[str]]:
        """The model, and the names of what its `forward` takes."""
        quiet()
        from transformers import AutoModelForCausalLM

        fast = self._device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
        dtype = self.config.dtype or ("bfloat16" if fast else "float32")
        with loading(self._folder):
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._folder, dtype=getattr(torch, dtype), use_safetensors=True
            )
        takes = frozenset(inspect.signature(model.forward).parameters)
        if self._adapter is not None:
            from peft import PeftModel

            with loading(self._adapter), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
                model = PeftModel.from_pretrained(model, str(self._adapter))
        with loading(self._folder):
            model = model.to(self._device)
        return model.eval(), takes


def _embedded(embed: Any, ids: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """What the model reads for (n, tokens) ids: its own embeddings, and those of soft prompts as they are."""
    soft = ids >= FIRST
    read: torch.Tensor = embed(ids.masked_fill(soft, 0))
    read[soft] = torch.from_numpy(rows).to(read)[ids[soft] - FIRST]
    return read


def _inner(model: Any) -> Any:
    """The causal model, out of what peft may have put around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
