"""How a text is drawn: checked settings, and the next token from its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penname.errors import BadInputError, PromptTooLongError
from penname.lm.base import Sampling
from penname.lm.config import ModelConfig

if TYPE_CHECKING:
    import torch

_CANDIDATES = 1024  # tokens that nearly always hold a nucleus; sorting a whole vocabulary costs far more
_FEW = 64  # tokens that mostly do
_BLOCK = 32  # neighbours in a vocabulary that are looked at together first


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


def refuse_thinking(sampling: Sampling, name: str) -> None:
    """What a backend that cannot put a bridge into a text does with `thinking`.

    Raises:
        BadInputError: it is asked for; the message says which backend does it.
    """
    if sampling.thinking is not None:
        raise BadInputError(
            f"{name} forces no bridge after a budget of thought (thinking): a model that transformers runs "
            "does, from a folder or with an adapter"
        )


def most_tokens(sampling: Sampling) -> int:
    """Tokens of a text at most, with those before its answer."""
    return sampling.max_tokens + (0 if sampling.thinking is None else sampling.thinking.budget)


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
    import torch

    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    weights = logits.to(torch.float32, copy=True)
    weights -= weights.amax(dim=-1, keepdim=True)  # a tiny temperature must not overflow
    weights /= sampling.temperature
    weights = weights.softmax(dim=-1)
    uniform = uniform.to(weights.device)
    if sampling.top_p < 1:
        return _draw_nucleus(weights, sampling.top_p, uniform, _FEW)
    return _pick(weights, uniform)


def draw_each(logits: torch.Tensor, samplings: Sequence[Sampling], uniform: torch.Tensor) -> torch.Tensor:
    """As `draw`, each row by its own settings; rows that are alike are drawn together."""
    import torch

    ways: dict[tuple[float, float], list[int]] = {}
    for row, sampling in enumerate(samplings):
        ways.setdefault((sampling.temperature, sampling.top_p), []).append(row)
    if len(ways) == 1:
        return draw(logits, samplings[0], uniform)
    tokens = logits.new_empty(len(samplings), dtype=torch.long)
    for rows in ways.values():
        tokens[rows] = draw(logits[rows], samplings[rows[0]], uniform[rows])
    return tokens


def _draw_nucleus(probabilities: torch.Tensor, top_p: float, uniform: torch.Tensor, few: int) -> torch.Tensor:
    """As `_pick` of the nucleus, (rows,): looked for among the `few` likeliest, and if need be among more."""
    if 2 * few * _BLOCK > probabilities.shape[-1]:
        return _pick(nucleus(probabilities, top_p), uniform)
    likely, ids = _likeliest(probabilities, few)
    tokens = ids.gather(-1, _pick(nucleus(likely, top_p), uniform)[:, None])[:, 0]
    # Of those as likely as the least likely here, there may be more.
    sure = likely.masked_fill(likely <= likely.amin(dim=-1, keepdim=True), 0.0).sum(dim=-1) >= top_p
    if not bool(sure.all()):
        rest = ~sure
        tokens[rest] = _draw_nucleus(probabilities[rest], top_p, uniform[rest], 8 * few)
    return tokens


def _likeliest(probabilities: torch.Tensor, few: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `few` highest of each row and their token ids, (rows, few), in the order of ids.

    They lie in the `few` blocks of the vocabulary with the highest maxima; to sort only those is far less.
    """
    blocks = _blocks(probabilities)
    best = blocks.amax(dim=-1).topk(few, dim=-1, sorted=False).indices.sort(dim=-1).values
    among = blocks.gather(1, best[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    places = among.topk(few, dim=-1, sorted=False).indices.sort(dim=-1).values
    ids = best.gather(-1, places // _BLOCK) * _BLOCK + places % _BLOCK
    return among.gather(-1, places), ids


def _pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first place of each row (rows,) where the sum of `weights` up to it passes its share `uniform`.

    In the vocabulary's order, not sorted: rounding then moves borders a little, and never swaps tokens.
    """
    import torch

    blocks = _blocks(weights)
    sums = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    wanted = uniform[:, None] * sums[:, -1:]
    # Below the last sum as well: rounding must not end behind the last weight that is not 0.
    block = ((sums <= wanted) & (sums < sums[:, -1:])).sum(dim=-1, keepdim=True)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(dim=-1)
    wanted = wanted - sums.gather(-1, (block - 1).clamp(min=0)).masked_fill(block == 0, 0.0)
    place = ((inside <= wanted) & (inside < inside[:, -1:])).sum(dim=-1, keepdim=True)
    return (block * _BLOCK + place)[:, 0]


def _blocks(rows: torch.Tensor) -> torch.Tensor:
    """(rows, blocks, _BLOCK) of (rows, vocabulary), the last block filled with zeros."""
    from torch.nn.functional import pad

    if rest := -rows.shape[-1] % _BLOCK:
        rows = pad(rows, (0, rest))
    return rows.view(len(rows), -1, _BLOCK)


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
