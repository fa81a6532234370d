"""What the local backends share when they score: pairs of texts to tokens, log-probabilities to scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from penname.errors import BadInputError
from penname.lm.base import Score, check_options, shares
from penname.lm.sampling import check_fits
from penname.lm.text import Codec
from penname.records import Prompt

if TYPE_CHECKING:
    import torch

TokenPair = tuple[list[int], list[int]]
"""Token ids of a prompt and of its completion."""


def read_pairs(
    codec: Codec,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    context: int,
    before: Sequence[list[int]] | None = None,
) -> list[TokenPair]:
    """The pairs as tokens, each prompt with what stands `before` it.

    Prompt and completion are encoded apart: what a completion scores must not hang on whether its first
    letters would merge with the prompt's last ones.

    Raises:
        BadInputError: not as many completions as prompts.
        PromptTooLongError: a prompt and its completion do not fit into the context.
    """
    if len(prompts) != len(completions):
        raise BadInputError(f"{len(prompts)} prompts and {len(completions)} completions: give one for each")
    encoded = {prompt: codec.prompt(prompt) for prompt in dict.fromkeys(prompts)}
    pairs = [
        (head + encoded[p], codec.completion(c))
        for head, p, c in zip(before or [[]] * len(prompts), prompts, completions, strict=True)
    ]
    for prompt, completion in pairs:
        check_fits(len(prompt), len(completion), context)
    return pairs


def score_of(per_token: Sequence[float]) -> Score:
    """The score of a completion of these tokens."""
    return Score(math.fsum(per_token), len(per_token), tuple(per_token))


def choose_by(
    score: Callable[[Sequence[Prompt], Sequence[str]], list[Score]],
    prompts: Sequence[Prompt],
    options: Sequence[Sequence[str]],
) -> list[list[float]]:
    """`LanguageModel.choose` by whole options: their probabilities, made to sum to 1."""
    check_options(prompts, options)
    asked = [prompt for prompt, mine in zip(prompts, options, strict=True) for _ in mine]
    totals = iter(one.total for one in score(asked, [option for mine in options for option in mine]))
    return [shares([next(totals) for _ in mine]) for mine in options]


def of_tokens(ahead: torch.Tensor, tokens: list[int]) -> list[float]:
    """Log-probability of each of the (n,) tokens, taken in float32 from the (n, vocabulary) logits."""
    import torch

    ahead = ahead.float()
    chosen = ahead.gather(-1, torch.tensor(tokens, device=ahead.device)[:, None])[:, 0]
    return (chosen - ahead.logsumexp(dim=-1)).tolist()
