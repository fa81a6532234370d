"""Any folder that holds a causal model, through transformers: on CPU or GPU, with adapters.

The sampling loop is our own: transformers' `generate` has one source of chance for a whole batch, and a text
must not change with its neighbours. In float32 it is the same in every batch but for the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import torch

from penname.errors import ModelError
from penname.lm.base import Asked, Generation, Prefix, Sampling, Score, Shape, sample_seed
from penname.lm.config import ModelConfig
from penname.lm.files import fingerprint
from penname.lm.folders import check_adapter, check_model, end_tokens, loading, read_json
from penname.lm.libraries import quiet
from penname.lm.network import Network
from penname.lm.prefixes import SoftPrompts
from penname.lm.prompt_cache import MEMORY, PromptCache
from penname.lm.rollout import Batch, Row, batches, write
from penname.lm.sampling import check, check_fits, context_of, most_tokens
from penname.lm.scores import choose_by, read_pairs, score_of
from penname.lm.scoring import scored
from penname.lm.session import Session
from penname.lm.text import Codec, Writing, streamed
from penname.records import Prompt


class TransformersLM:
    """A causal model of transformers in a folder. Implements `LanguageModel`.

    Args:
        config: `model` is the folder; `dtype` None is bfloat16 on a GPU and on a CPU with instructions for it
            (over twice as fast there, see benchmarks/models.py), else float32.
        folder: where the weights lie, if not at `config.model` (a converted GGUF file).
        memory: bytes for what owners' prompts begin with, in `session`; see `PromptCache`.

    Raises:
        ModelNotFoundError: the folder, or the adapter's, holds no model; the message says what is missing.
    """

    def __init__(self, config: ModelConfig, folder: Path | None = None, memory: int = MEMORY) -> None:
        self.config = config
        self._folder = folder or Path(config.model).expanduser()
        self._adapter = None if config.adapter is None else Path(config.adapter).expanduser()
        check_model(self._folder)
        if self._adapter is not None:
            check_adapter(self._adapter)
        self.name = config.model
        self._settings = read_json(self._folder / "config.json")
        vocabulary = int(self._settings.get("vocab_size") or 100_000)  # only for the size of batches
        self._network = Network(self._folder, self._adapter, config.dtype, config.device, vocabulary)
        self.prompts = PromptCache(memory)
        """What owners' prompts begin with; filled by `session`."""

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
        read = self._read(prompts, soft, sampling)
        texts = [
            [
                Row(Writing(self._codec, ids, sampling), sample_seed(sampling.seed, prompt, number))
                for number in range(n)
            ]
            for prompt, ids in zip(prompts, read, strict=True)
        ]
        rows = [row for rows in texts for row in rows]
        network = self._network
        for batch in batches(rows, sampling, network.vocabulary, network.limits, repeated=not network.plain):
            for _ in self._write(batch, sampling, soft):
                pass
        return [[row.writing.generation() for row in rows] for rows in texts]

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Generator[str, None, Generation]:
        """As `LanguageModel.stream`; returns the whole."""
        check(sampling)
        soft = self._soft([prefix], 1)
        writing = Writing(self._codec, self._read([prompt], soft, sampling)[0], sampling)
        row = Row(writing, sample_seed(sampling.seed, prompt, 0))
        return streamed(writing, self._write([row], sampling, soft), sampling.stop)

    def session(self) -> Session:
        """Texts that are to be written together, and that others may join while they are written."""

        def row(asked: Asked) -> Row:
            sampling = asked.sampling
            check(sampling)
            [ids] = self._read([asked.prompt], self._soft([asked.prefix], 1), sampling)
            seed = sample_seed(sampling.seed, asked.prompt, asked.number)
            return Row(Writing(self._codec, ids, sampling), seed)

        return Session(self._network, self.prompts, row, lambda prefixes: self._soft(prefixes, len(prefixes)))

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
        for at, per_token in scored(self._network, [pairs[i] for i in wanted], soft):
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
        own = dict(self._network.model.named_parameters())
        for name, new in weights.items():
            if name not in own or own[name].shape != new.shape:
                raise ModelError(f"{self.name} has no weight {name} of shape {tuple(new.shape)}")
        with torch.no_grad():
            for name, new in weights.items():
                own[name].copy_(new)
        self.prompts.clear()
        self.fingerprint = uuid4().hex

    def _soft(self, prefixes: Sequence[Prefix | None] | None, count: int) -> SoftPrompts:
        # Only where there are any is the width of interest.
        return SoftPrompts(prefixes, count, self.width if any(prefixes or ()) else 0)

    def _read(self, prompts: Sequence[Prompt], soft: SoftPrompts, sampling: Sampling) -> list[list[int]]:
        encoded = [
            before + self._codec.prompt(prompt) for before, prompt in zip(soft.ids, prompts, strict=True)
        ]
        for ids in encoded:
            check_fits(len(ids), most_tokens(sampling), self.context)
        cue = self._codec.thinking(sampling.thinking)[0] if sampling.thinking else []
        return [ids + cue for ids in encoded]

    @torch.inference_mode()
    def _write(self, rows: Sequence[Row], sampling: Sampling, soft: SoftPrompts) -> Iterator[None]:
        """Write a batch of texts to their ends, a token each a step; ended texts leave the batch."""
        prompts = list(dict.fromkeys(tuple(row.writing.prompt) for row in rows))  # samples share one reading
        ids, mask = self._network.pad(prompts)
        logits, cache = self._network.forward(ids, mask, keep=1, soft=soft)
        place = {prompt: at for at, prompt in enumerate(prompts)}
        origin = [place[tuple(row.writing.prompt)] for row in rows]
        first = logits[:, -1][origin]
        reading = self._network.reading(cache, mask, origin, most_tokens(sampling))
        yield from write(Batch(rows, first, reading))

    @cached_property
    def _codec(self) -> Codec:
        quiet()
        from transformers import AutoTokenizer

        with loading(self._folder):
            tokenizer = AutoTokenizer.from_pretrained(self._folder)
        return Codec(tokenizer, end_tokens(self._folder))
