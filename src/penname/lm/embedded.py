"""A GGUF file as one language model: OpenVINO GenAI writes and scores; transformers scores what it cannot.

Each is loaded when it is first used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from penname.errors import BadInputError
from penname.lm import gguf
from penname.lm.base import Generation, Prefix, Sampling, Score, Shape
from penname.lm.config import ModelConfig
from penname.lm.files import sha256
from penname.lm.openvino import OpenVINOWriter, read_codec
from penname.lm.prefixes import refuse
from penname.lm.sampling import context_of, refuse_thinking
from penname.lm.scores import choose_by, read_pairs, score_of
from penname.lm.text import Codec
from penname.records import Prompt

if TYPE_CHECKING:
    from penname.lm.local import TransformersLM


class GGUFModel:
    """The embedded model or any GGUF file, on the CPU. Implements `LanguageModel`.

    Raises:
        MissingPackageError: the embedded model's package is not installed.
        ModelNotFoundError: no such file, no GGUF file, or not the embedded model's bytes.
        BadInputError: an adapter or another device is named: OpenVINO would ignore the adapter beside a GGUF
            file without a word.
    """

    def __init__(self, config: ModelConfig) -> None:
        if config.adapter is not None:
            raise BadInputError(
                f"adapter: OpenVINO cannot lay {config.adapter} over a GGUF file; use load_model, which runs "
                "such a model with transformers, or merge the adapter into the model"
            )
        if config.device not in (None, "cpu"):
            raise BadInputError(f"device: OpenVINO writes on the CPU here, not on {config.device!r}")
        self.config = config
        self._file = gguf.find(config.model)
        self.name = config.model
        self.fingerprint = sha256(self._file)

    @cached_property
    def shape(self) -> Shape:
        """The embedded model follows completion prompts better than its own chat template."""
        if self.config.shape is not None:
            return self.config.shape
        if gguf.is_embedded(self._file) or not self._codec.has_template:
            return "completion"
        return "chat"

    @cached_property
    def context(self) -> int:
        """Tokens, prompt and completion together."""
        return context_of(self.config, self._read[1])

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
        """As `LanguageModel.generate`, without soft prompts and thinking: OpenVINO takes none."""
        refuse(prefixes, self.name)
        refuse_thinking(sampling, self.name)
        return self._writer.generate(prompts, n, sampling)

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Iterator[str]:
        """As `LanguageModel.stream`, without soft prompts and thinking."""
        refuse([prefix], self.name)
        refuse_thinking(sampling, self.name)
        return self._writer.stream(prompt, sampling)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        """As `LanguageModel.score`, without soft prompts.

        What was written after the same prompt, or scored after one that begins alike, has been read already.
        """
        refuse(prefixes, self.name)
        pairs = read_pairs(self._codec, prompts, completions, self.context)
        scores = [Score(0.0, 0, ())] * len(pairs)
        wanted = [i for i, (_, completion) in enumerate(pairs) if completion]
        missing = []
        for i, per_token in zip(wanted, self._writer.score([pairs[i] for i in wanted]), strict=True):
            if per_token is None:
                missing.append(i)
            else:
                scores[i] = score_of(per_token)
        if missing:
            again = self._scorer.score([prompts[i] for i in missing], [completions[i] for i in missing])
            for i, score in zip(missing, again, strict=True):
                scores[i] = score
        return scores

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """As `LanguageModel.choose`."""
        return choose_by(self.score, prompts, options)

    @cached_property
    def _read(self) -> tuple[Codec, int]:
        return read_codec(self._file)

    @property
    def _codec(self) -> Codec:
        return self._read[0]

    @cached_property
    def _writer(self) -> OpenVINOWriter:
        return OpenVINOWriter(self._file, self._codec, self.context, self.config.dtype)

    @cached_property
    def _scorer(self) -> TransformersLM:
        from penname.lm.local import TransformersLM

        return TransformersLM(self.config, gguf.weights_folder(self._file))
