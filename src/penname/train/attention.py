"""Attention over prompts and what follows them, laid end to end in one row without padding.

A tree is a prompt and its branches: [prompt | branch | branch …]. A branch sees the prompt and itself, never
another branch; so a prompt is read once for all answers to it. Trees see nothing of one another.

On a CPU the backward pass is our own: torch's fused one takes three to ten times as long as its forward pass
in bfloat16, and plain matrix products are what the processor has units for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from penname.errors import ModelError

NAME = "penname_trees"


@dataclass(frozen=True)
class Span:
    """Where a tree lies in the row: its first token, and the tokens of the prompt and of each branch."""

    start: int
    prompt: int
    branches: tuple[int, ...]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    spans: Sequence[Span] | None = None,
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
    if spans is None or query.shape[0] != 1:
        raise ModelError("a model made for packed reading was called in another way")
    if sliding_window is not None and any(one.prompt + max(one.branches) > sliding_window for one in spans):
        raise ModelError(f"a text is longer than the model's sliding window of {sliding_window} tokens")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu":
        mixed = _Trees.apply(query[0], key[0], value[0], scale, tuple(spans))  # type: ignore[no-untyped-call]
    else:
        mixed = _fused(query, key, value, scale, spans)
    return mixed.transpose(0, 1)[None], None


@dataclass(frozen=True)
class _Block:
    """Queries that see the same keys: all of the `before`, and those up to their own place of `own`."""

    own: slice
    before: slice


def _blocks(spans: Sequence[Span]) -> Iterator[_Block]:
    """The prompt goes with its first branch: together they are plain causal text."""
    for span in spans:
        at = span.start + span.prompt
        prompt = slice(span.start, at)
        first = span.branches[0] if span.branches else 0
        yield _Block(slice(span.start, at + first), slice(span.start, span.start))
        at += first
        for length in span.branches[1:]:
            yield _Block(slice(at, at + length), prompt)
            at += length


def _seen(block: _Block, tensor: torch.Tensor) -> torch.Tensor:
    """The keys or values, (heads, seen, width), that the block's queries see."""
    if block.before.start == block.before.stop:
        return tensor[:, block.own]
    return torch.cat([tensor[:, block.before], tensor[:, block.own]], dim=1)


def _mask(block: _Block, device: torch.device) -> torch.Tensor:
    """(queries, seen): true where a query sees."""
    own = block.own.stop - block.own.start
    before = block.before.stop - block.before.start
    return torch.ones(own, before + own, dtype=torch.bool, device=device).tril_(before)


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, spans: Sequence[Span]
) -> torch.Tensor:
    """(heads, tokens, width) by torch's own attention, block by block."""
    mixed = [
        functional.scaled_dot_product_attention(
            query[:, :, block.own],
            _seen(block, key[0])[None],
            _seen(block, value[0])[None],
            attn_mask=_mask(block, query.device),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )[0]
        for block in _blocks(spans)
        if block.own.stop > block.own.start
    ]
    return torch.cat(mixed, dim=1)


class _Trees(torch.autograd.Function):
    """Attention of all blocks at once: the fused forward pass, and a backward pass of matrix products."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        spans: tuple[Span, ...],
    ) -> torch.Tensor:
        """(heads, tokens, width), from queries of that shape, and keys and values of perhaps fewer heads."""
        mixed = torch.empty_like(query)
        weights = torch.empty(query.shape[:2], dtype=torch.float32)  # log of the sum of exponentials
        repeat = query.shape[0] // key.shape[0]
        for block in _blocks(spans):
            if block.own.stop == block.own.start:
                continue
            keys, values = (_repeated(_seen(block, one), repeat)[None] for one in (key, value))
            causal = block.before.start == block.before.stop
            mask = None if causal else _additive(_mask(block, query.device), query.dtype)
            out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, block.own][None], keys, values, 0.0, causal, attn_mask=mask, scale=scale
            )
            mixed[:, block.own] = out[0]
            weights[:, block.own] = log_sum.reshape(weights[:, block.own].shape)
        ctx.save_for_backward(query, key, value, mixed, weights)
        ctx.scale, ctx.spans = scale, spans
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The attention weights are computed anew from the sums that were kept: nothing of the size of
        (tokens, tokens) lives on between the passes."""
        [grad] = grads
        query, key, value, mixed, log_sums = ctx.saved_tensors
        groups, repeat = key.shape[0], query.shape[0] // key.shape[0]
        inner = (grad.float() * mixed.float()).sum(-1)  # (heads, tokens)
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for block in _blocks(ctx.spans):
            n = block.own.stop - block.own.start
            if n == 0:
                continue
            rows = (groups, repeat * n, -1)  # heads that share their keys are further queries of those
            q = query[:, block.own].reshape(rows)
            d_out = grad[:, block.own].reshape(rows)
            keys, values = _seen(block, key), _seen(block, value)
            share = torch.bmm(q, keys.transpose(1, 2)).float().mul_(ctx.scale)
            share = share.sub_(log_sums[:, block.own].reshape(rows)).exp_()
            share.view(groups * repeat, n, -1).tril_(keys.shape[1] - n)
            d_share = torch.bmm(d_out, values.transpose(1, 2)).float()
            d_score = d_share.sub_(inner[:, block.own].reshape(rows)).mul_(share).mul_(ctx.scale)
            d_score = d_score.to(query.dtype)
            d_query[:, block.own] = torch.bmm(d_score, keys).view(groups * repeat, n, -1)
            _give(block, d_key, torch.bmm(d_score.transpose(1, 2), q))
            _give(block, d_value, torch.bmm(share.to(query.dtype).transpose(1, 2), d_out))
        return d_query, d_key, d_value, None, None


def _repeated(tensor: torch.Tensor, times: int) -> torch.Tensor:
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=0)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _give(block: _Block, total: torch.Tensor, grad: torch.Tensor) -> None:
    """Add the gradient of a block's keys or values to the whole row's."""
    before = block.before.stop - block.before.start
    total[:, block.before] += grad[:, :before]
    total[:, block.own] += grad[:, before:]
