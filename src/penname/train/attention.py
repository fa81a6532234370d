"""Attention over prompts and what follows them, laid end to end in one row without padding.

A tree is a prompt and its branches: [prompt | branch | branch …]. A branch sees the prompt and itself, never
another branch; so a prompt is read once for all answers to it. Trees see nothing of one another.

All of a model but attention works on the row as it is. Attention takes blocks of similar size side by side,
padded: at the lengths of texts its arithmetic is little, and what costs is the number of small operations.

On a CPU the backward pass is our own: torch's fused one takes three to ten times as long as its forward pass
in bfloat16, and plain matrix products are what the processor has units for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from penname.errors import ModelError

NAME = "penname_trees"

_WASTE = 1.3  # blocks are padded together as long as that makes at most this many times the pairs of tokens
_SPARE = 32  # columns for what a product is to subtract: processors multiply bfloat16 in blocks of 32
_PAIRS = 2**22  # of tokens in one batch at most, but for a block that has more by itself: bounds memory


@dataclass(frozen=True)
class Span:
    """Where a tree lies in the row: its first token, and the tokens of the prompt and of each branch."""

    start: int
    prompt: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class _Block:
    """Tokens that see the same: all of `before`, and of their own those up to their own place."""

    before: range
    own: range

    @property
    def seen(self) -> int:
        return len(self.before) + len(self.own)

    @property
    def pairs(self) -> int:
        return len(self.own) * self.seen


@dataclass(frozen=True, eq=False)
class Batch:
    """Blocks of similar size, padded to the largest; no two have a token in common.

    queries: (blocks, n), each token's place in the row; padding has any place.
    keys: (blocks, m), places as well.
    real, given: (blocks, n) and (blocks, m), false where it is padding.
    asking, answering: (tokens,), the places of the queries and of the keys without padding.
    unseen: (blocks, n, m), true where the first token does not see the second.
    bias: (blocks, 1, n, m), 0 or −∞; padding sees a token, so that no row is empty.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    real: torch.Tensor
    given: torch.Tensor
    asking: torch.Tensor
    answering: torch.Tensor
    unseen: torch.Tensor
    bias: torch.Tensor


def batches(spans: Sequence[Span], dtype: torch.dtype, device: torch.device) -> tuple[Batch, ...]:
    """The trees' blocks in batches, made once for all layers of a reading. A token is a query of just one."""
    return tuple(_batch(some, dtype, device) for some in _together(spans))


def _blocks(span: Span) -> Iterator[_Block]:
    """The prompt goes with its first branch: together they are plain causal text."""
    at = span.start + span.prompt
    prompt = range(span.start, at)
    first = span.branches[0] if span.branches else 0
    yield _Block(range(at, at), range(span.start, at + first))
    at += first
    for length in span.branches[1:]:
        yield _Block(prompt, range(at, at + length))
        at += length


def _together(spans: Sequence[Span]) -> Iterator[list[_Block]]:
    """Blocks that go side by side: of each tree the first, the second, and so on, the largest first."""
    ranks: dict[int, list[_Block]] = defaultdict(list)
    for span in spans:
        for rank, block in enumerate(_blocks(span)):
            if block.own:
                ranks[rank].append(block)
    for blocks in ranks.values():
        taken: list[_Block] = []
        for block in sorted(blocks, key=lambda block: -block.pairs):
            wider = [*taken, block]
            padded = len(wider) * max(len(one.own) for one in wider) * max(one.seen for one in wider)
            if taken and padded > min(_WASTE * sum(one.pairs for one in wider), _PAIRS):
                yield taken
                wider = [block]
            taken = wider
        yield taken


def _batch(blocks: Sequence[_Block], dtype: torch.dtype, device: torch.device) -> Batch:
    n, m = max(len(block.own) for block in blocks), max(block.seen for block in blocks)
    queries, keys = (torch.zeros(len(blocks), size, dtype=torch.long) for size in (n, m))
    real, given = (torch.zeros(len(blocks), size, dtype=torch.bool) for size in (n, m))
    unseen = torch.ones(len(blocks), n, m, dtype=torch.bool)
    for place, block in enumerate(blocks):
        own, seen, before = len(block.own), block.seen, len(block.before)
        queries[place, :own] = torch.arange(block.own.start, block.own.stop)
        keys[place, :before] = torch.arange(block.before.start, block.before.stop)
        keys[place, before:seen] = queries[place, :own]
        real[place, :own] = True
        given[place, :seen] = True
        unseen[place, :own, :seen] = torch.ones(own, seen, dtype=torch.bool).triu_(before + 1)
    bias = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, float("-inf"))
    bias[:, :, 0] = 0.0  # the first is seen by all
    tensors = (queries, keys, real, given, queries[real], keys[given], unseen, bias[:, None])
    return Batch(*(one.to(device) for one in tensors))


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    blocks: Sequence[Batch] | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers calls it; (1, heads, tokens, width) in, tokens before heads out.

    Raises:
        ModelError: the model's attention does what is not done here (soft caps, sinks), or a text is longer
            than its sliding window.
    """
    del module, attention_mask
    for name in ("softcap", "s_aux"):
        if others.get(name) is not None:
            raise ModelError(f"training by packed reading cannot do this model's attention ({name})")
    if blocks is None or query.shape[0] != 1:
        raise ModelError("a model made for packed reading was called in another way")
    if sliding_window is not None and any(some.keys.shape[1] > sliding_window for some in blocks):
        raise ModelError(f"a text is longer than the model's sliding window of {sliding_window} tokens")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (one[0].transpose(0, 1) for one in (query, key, value))
    if query.device.type == "cpu":
        mixed = _Trees.apply(q, k, v, scale, tuple(blocks))  # type: ignore[no-untyped-call]
    else:
        mixed = _fused(q, k, v, scale, blocks)
    return mixed[None], None


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, blocks: Sequence[Batch]
) -> torch.Tensor:
    """(tokens, heads, width) by torch's own attention."""
    mixed = torch.zeros_like(query)
    for some in blocks:
        q = query[some.queries].transpose(1, 2)
        k, v = (one[some.keys].transpose(1, 2) for one in (key, value))
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=some.bias, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        mixed = mixed.index_put((some.asking,), out.transpose(1, 2)[some.real])
    return mixed


class _Trees(torch.autograd.Function):
    """The fused forward pass, and a backward pass of matrix products. All tensors (tokens, heads, width)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        blocks: tuple[Batch, ...],
    ) -> torch.Tensor:
        """Mixed values, from queries of that shape, and keys and values of perhaps fewer heads."""
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        log_sums = torch.empty(query.shape[:2], dtype=torch.float32)  # log of the sum of exponentials
        repeat = query.shape[1] // key.shape[1]
        for some in blocks:
            q = query[some.queries].transpose(1, 2)
            k, v = (one[some.keys].repeat_interleave(repeat, 2).transpose(1, 2) for one in (key, value))
            out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, False, attn_mask=some.bias, scale=scale
            )
            mixed[some.asking] = out.transpose(1, 2)[some.real]
            log_sums[some.asking] = log_sum.transpose(1, 2)[some.real]
        ctx.save_for_backward(query, key, value, mixed, log_sums)
        ctx.scale, ctx.blocks = scale, blocks
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The attention weights are computed anew from the sums that were kept: nothing of the size of
        (tokens, tokens) lives on between the passes.

        The two subtractions of the derivative, of the sum's logarithm and of a row's mean, are done inside
        the matrix products, by columns of their own: each pass over (tokens, tokens) that is saved counts.
        """
        [grad] = grads
        query, key, value, mixed, log_sums = ctx.saved_tensors
        groups, width = key.shape[1], query.shape[2]
        inner = (grad.float() * mixed.float()).sum(-1)  # (tokens, heads)
        log_sums = log_sums / ctx.scale
        d_query = torch.empty(query.shape, dtype=query.dtype)
        d_key, d_value = (torch.zeros(one.shape, dtype=one.dtype) for one in (key, value))
        for some in ctx.blocks:
            q, d_out = _less(query, log_sums, some, groups), _less(grad, inner, some, groups)
            k, v = _keys(key, some), _keys(value, some)
            share = torch.bmm(q, k.transpose(1, 2)).mul_(ctx.scale).exp_()
            share.view(len(some.keys), query.shape[1], *some.unseen.shape[1:]).masked_fill_(
                some.unseen[:, None], 0.0
            )
            d_score = torch.bmm(d_out, v.transpose(1, 2)).mul_(share)
            d_q = torch.bmm(d_score, k[..., :width]).mul_(ctx.scale)
            d_k = torch.bmm(d_score.transpose(1, 2), q[..., :width]).mul_(ctx.scale)
            d_v = torch.bmm(share.transpose(1, 2), d_out[..., :width])
            d_query[some.asking] = _rows(d_q, some.real)
            # A key's place comes just once: blocks have no token in common.
            d_key[some.answering] += _rows(d_k, some.given)
            d_value[some.answering] += _rows(d_v, some.given)
        return d_query, d_key, d_value, None, None


def _less(rows: torch.Tensor, less: torch.Tensor, some: Batch, groups: int) -> torch.Tensor:
    """(blocks · groups, heads of a group · n, width + spare): heads that share their keys are further rows.

    `less` (tokens, heads), float32, is what a product with `_keys` is less by: the two last columns are its
    negative in the rows' type, and what that rounding leaves.
    """
    blocks, n = some.queries.shape
    width = rows.shape[2] + _SPARE
    wide = torch.zeros(blocks, rows.shape[1], n, width, dtype=rows.dtype)
    wide[..., :-_SPARE] = rows[some.queries].transpose(1, 2)
    exact = -less[some.queries].transpose(1, 2)
    wide[..., -2] = exact
    wide[..., -1] = exact - wide[..., -2].float()
    return wide.view(blocks * groups, -1, width)


def _keys(rows: torch.Tensor, some: Batch) -> torch.Tensor:
    """(blocks · groups, m, width + spare), the last two columns being 1."""
    blocks, m = some.keys.shape
    width = rows.shape[2] + _SPARE
    wide = torch.zeros(blocks, rows.shape[1], m, width, dtype=rows.dtype)
    wide[..., :-_SPARE] = rows[some.keys].transpose(1, 2)
    wide[..., -2:] = 1.0
    return wide.view(blocks * rows.shape[1], m, width)


def _rows(part: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """(tokens, heads, width) of a batch's product, padding left out."""
    found = part.view(len(real), -1, real.shape[1], part.shape[-1])
    return found.transpose(1, 2)[real]
