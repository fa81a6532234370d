"""Log-probabilities of tokens without keeping logits.

A vocabulary of 50,000 makes logits the largest thing in a training step. Here they live for a chunk of rows
at a time: of each row only its token's log-probability stays and, while training, that one's derivative with
respect to the hidden state, which is as wide as the hidden state. So there is no second pass over the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

CHUNK = 128  # rows: 25 MB of float32 logits over 50,000 tokens


def token_log_probs(hidden: torch.Tensor, head: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log p of each token: log softmax(hidden · headᵀ) at it, in float32.

    Args:
        hidden: (n, width).
        head: (vocabulary, width).
        tokens: (n,) ids.

    Returns:
        (n,), differentiable in `hidden` and, where it is trained, in `head`.
    """
    found: torch.Tensor = _TokenLogProbs.apply(hidden, head, tokens)  # type: ignore[no-untyped-call]
    return found


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        found = torch.empty(len(tokens), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(tokens), CHUNK):
            rows = slice(start, start + CHUNK)
            chosen = tokens[rows, None]
            shares = functional.linear(hidden[rows], head).float()
            log_sum = shares.logsumexp(dim=-1, keepdim=True)
            found[rows] = (shares.gather(-1, chosen) - log_sum)[:, 0]
            if slope is not None:
                shares.sub_(log_sum).exp_()
                # d log p(t) / d hidden = head[t] − Σ_v p(v) · head[v]
                slope[rows] = head[tokens[rows]] - shares.to(head.dtype) @ head
        ctx.save_for_backward(slope, hidden, head, tokens)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [grad] = grads
        slope, hidden, head, tokens = ctx.saved_tensors
        d_hidden = None if slope is None else slope * grad[:, None].to(slope.dtype)
        d_head = _of_head(hidden, head, tokens, grad) if ctx.needs_input_grad[1] else None
        return d_hidden, d_head, None


def _of_head(
    hidden: torch.Tensor, head: torch.Tensor, tokens: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """The head's gradient, where all weights are trained: it needs the shares again, weighted by `grad`."""
    total = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
    for start in range(0, len(tokens), CHUNK):
        rows = slice(start, start + CHUNK)
        shares = functional.linear(hidden[rows], head).float().softmax(dim=-1).neg_()
        shares.scatter_add_(-1, tokens[rows, None], torch.ones_like(shares[:, :1]))
        total += (shares * grad[rows, None]).to(hidden.dtype).T @ hidden[rows]
    return total.to(head.dtype)
