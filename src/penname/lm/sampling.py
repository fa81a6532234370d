"""How a text is drawn: checked settings, and the next token from its probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penname.errors import BadInputError, PromptTooLongError
from penname.lm.base import Sampling
from penname.lm.config import ModelConfig

if TYPE_CHECKING:
    import torch

_CANDIDATES = 1024  # tokens that nearly always hold a nucleus; sorting a whole vocabulary costs far more


def check(sampling: Sampling, n: int = 1) -> None:
    """Refuse settings that mean nothing.

    Raises:
        BadInputError: the message names the setting.
    """
    if n < 1:
        raise BadInputError(f"n: {n} texts a prompt; at least 1")
    if sampling.max_tokens < 1:
        raise BadInputError(f"max_tokens: {sampling.max_tokens}; at least 1")
    if not 0 <= sampling.temperature < float("inf"):
        raise BadInputError(f"temperature: {sampling.temperature}; 0 or more")
    if not 0 < sampling.top_p <= 1:
        raise BadInputError(f"top_p: {sampling.top_p}; above 0 and at most 1")
    if "" in sampling.stop:
        raise BadInputError("stop: an empty stop string would end every text at once")


def context_of(config: ModelConfig, limit: int | None) -> int:
    """Tokens of the context: what is set, at most the model's own `limit` (None: it says none).

    Raises:
        BadInputError: more is set than the model has, or neither says a number.
    """
    if config.context is None and limit is None:
        raise BadInputError(f"{config.model} does not say how long its context is: set 'context'")
    if config.context is not None and limit is not None and config.context > limit:
        raise BadInputError(f"context: {config.context:,} tokens; {config.model} has {limit:,}")
    return config.context or limit or 0


def check_fits(prompt_tokens: int, max_tokens: int, context: int) -> None:
    """Refuse what would overrun the context.

    Raises:
        PromptTooLongError: the message holds the numbers.
    """
    if prompt_tokens + max_tokens > context:
        raise PromptTooLongError(
            f"the prompt has {prompt_tokens:,} tokens, and with {max_tokens:,} to write exceeds the model's "
            f"context of {context:,}: shorten the prompt or lower max_tokens"
        )


def draw(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor) -> torch.Tensor:
    """The next token of each row.

    Args:
        logits: (rows, vocabulary), any float type.
        uniform: (rows,) numbers in [0, 1), one a row: the only chance in it.

    Returns:
        (rows,) token ids.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    shifted = logits.float() - logits.float().amax(
        dim=-1, keepdim=True
    )  # a tiny temperature must not overflow
    weights = nucleus((shifted / sampling.temperature).softmax(dim=-1), sampling.top_p)
    # In the vocabulary's order, not sorted: rounding then moves borders a little, and never swaps tokens.
    reached = weights.double().cumsum(dim=-1)
    wanted = uniform.to(reached)[:, None] * reached[:, -1:]
    return (reached <= wanted).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """`probabilities` (rows, vocabulary) with 0 for all outside the smallest set that holds `top_p`.

    Tokens as likely as the last of the set stay in it. Holtzman et al. 2020, section 3.1.
    """
    if top_p >= 1:
        return probabilities
    vocabulary = probabilities.shape[-1]
    top = probabilities.topk(min(_CANDIDATES, vocabulary), dim=-1).values
    if bool((top.sum(dim=-1) < top_p).any()):
        top = probabilities.sort(dim=-1, descending=True).values
    kept = (top.cumsum(dim=-1) - top < top_p).sum(dim=-1, keepdim=True)
    least = top.gather(-1, kept - 1)
    return probabilities.masked_fill(probabilities < least, 0.0)
