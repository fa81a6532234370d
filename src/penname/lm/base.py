"""What every language model can do, whatever runs it. Backends import this; callers `penname.lm`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from penname.errors import BadInputError
from penname.records import Prompt

if TYPE_CHECKING:
    import numpy as np

Shape = Literal["completion", "chat"]
Owner = frozenset[tuple[str, int]]
"""Users who write together, each by id and number in the store, which no namesake gets who comes later."""


@dataclass(frozen=True)
class Thinking:
    """What stands in a text before its answer: anything up to a bridge, which is put there if it is late."""

    bridge: str  # ends what is thought; the answer follows
    budget: int  # tokens before the answer at most, those of cue and bridge among them
    cue: str = ""  # opens what is thought: read with the prompt, and no part of the text


@dataclass(frozen=True)
class Sampling:
    """How to draw a text."""

    max_tokens: int = 256  # tokens generated at most; of the answer alone, where there is `thinking`
    temperature: float = 0.7  # 0: greedy
    top_p: float = 0.95  # nucleus; 1: off
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    seed: int = 0  # same seed, prompts and backend: same texts
    thinking: Thinking | None = None  # before the answer; only a model that transformers runs takes it


@dataclass(frozen=True)
class Generation:
    """One text that a model wrote; `finish` is "length" where it was cut at `max_tokens`."""

    text: str
    prompt_tokens: int
    tokens: int
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class Score:
    """How likely a completion is after its prompt. Natural logarithms.

    `total` is the sum over the completion's `tokens` tokens; `per_token` holds them one by one, in order.
    """

    total: float
    tokens: int
    per_token: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Prefix:
    """A user's soft prompt: rows in a model's embedding space that stand before the prompt's first token.

    Two of one key are taken to be the same.
    """

    key: str  # content hash of `rows`
    rows: np.ndarray  # (T, d) float32


@dataclass(frozen=True, eq=False)
class Asked:
    """One text that somebody waits for, to be written together with others."""

    prompt: Prompt
    sampling: Sampling = Sampling()
    prefix: Prefix | None = None
    number: int = 0  # which sample of its prompt it is, as `LanguageModel.generate` counts them
    owner: Owner = frozenset()  # for whom what the prompt begins with may be kept; nobody: it is not


def sample_seed(seed: int, prompt: Prompt, number: int) -> int:
    """The seed of sample `number` (from 0) of `prompt`, from 0 to 2^31 - 1; the same on every machine.

    It hangs on the prompt's content and not on its place in a batch, so that a batch can be cut in any way.
    """
    content = prompt if isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt]
    digest = hashlib.sha256(json.dumps([seed, content, number]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # 31 bits: some servers keep seeds as signed integers


def check_options(prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> None:
    """Refuse what `LanguageModel.choose` cannot choose from.

    Raises:
        BadInputError: the message says what is wrong.
    """
    if len(prompts) != len(options):
        raise BadInputError(f"{len(prompts)} prompts and {len(options)} lists of options: give one for each")
    if not all(mine and all(mine) for mine in options):
        raise BadInputError("choose needs options for every prompt, and none of them empty")


def shares(logarithms: Sequence[float]) -> list[float]:
    """Softmax: the probabilities in proportion, made to sum to 1, of natural logarithms."""
    top = max(logarithms)
    weights = [math.exp(one - top) for one in logarithms]
    return [weight / sum(weights) for weight in weights]


class LanguageModel(Protocol):
    """A language model behind one interface."""

    # Read-only here, for what is not set but found out on first use.
    @property
    def name(self) -> str:
        """What a person called it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the weights (or the server's model) change: part of every cache key."""
        ...

    @property
    def shape(self) -> Shape:
        """Which of the two shapes of a request it wants."""
        ...

    @property
    def context(self) -> int:
        """Tokens, prompt and completion together."""
        ...

    def count(self, prompt: Prompt) -> int:
        """Tokens of `prompt` as this model would see it (chat template included)."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        sampling: Sampling = Sampling(),
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[list[Generation]]:
        """`n` texts for each prompt, in the prompts' order.

        `prefixes` are the prompts' soft prompts, of any users in one call, and None for a prompt without.
        Their rows count as tokens of the prompt.

        Samples of one prompt differ (each has a seed of its own, derived from `sampling.seed`, its prompt's
        content and its number), and do not depend on which other prompts share the batch, as far as
        the backend's arithmetic allows.

        Raises:
            PromptTooLongError: a prompt and `max_tokens` do not fit into the context.
            BadInputError: a backend that takes no soft prompts gets one, or one is of another model's width.
        """
        ...

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Iterator[str]:
        """The text as it is written, piece by piece; joined it is what `generate` gives."""
        ...

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        """log p(completion | prompt) for each pair, after the prompt's soft prompt where it has one."""
        ...

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Probability of each option as the continuation of its prompt; a prompt's options sum to 1.

        All are 0 where a server lists the likeliest continuations and none of them begins an option.
        `options[i]` are those of `prompts[i]`. No option should begin another one: the shorter would always
        be the likelier of the two.

        Raises:
            BadInputError: not as many lists of options as prompts, an empty list, or an empty option.
        """
        ...
