"""A linear layer with its LoRA in three matrix products forward and five back, and nothing else.

peft's own forward pass adds the update by two more passes over the layer's output, and autograd keeps what it
multiplied. Here the update is added inside the product, in place. The modules stay peft's: what is saved, and
how it is switched off, does not change.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn import functional


def fuse(network: Any) -> None:
    """Have the LoRA layers of a peft model compute in this way, where their base weights are frozen."""
    from peft.tuners.lora import Linear

    for layer in network.modules():
        if isinstance(layer, Linear) and not layer.base_layer.weight.requires_grad:
            layer.forward = partial(_forward, layer)


def _forward(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(…, in) to (…, out)."""
    if layer.disable_adapters or layer.merged:
        return layer.base_layer(hidden)  # type: ignore[no-any-return]
    [name] = layer.active_adapters
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    base = layer.base_layer
    rows = hidden.reshape(-1, hidden.shape[-1])
    out: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        rows, base.weight, base.bias, down, up, layer.scaling[name]
    )
    return out.view(*hidden.shape[:-1], -1)


class _LoraLinear(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ (arXiv 2106.09685, equation 3), with W and b frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = rows @ down.T  # (n, rank)
        ctx.save_for_backward(rows, low, weight, down, up)
        ctx.scale = scale
        return functional.linear(rows, weight, bias).addmm_(low, up.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [grad] = grads
        rows, low, weight, down, up = ctx.saved_tensors
        d_low = (grad @ up).mul_(ctx.scale)
        d_rows = (grad @ weight).addmm_(d_low, down) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[3]:  # an adapter that is only read, as when one user is fitted
            return d_rows, None, None, None, None, None
        d_up = (grad.T @ low).mul_(ctx.scale)
        return d_rows, None, None, d_low.T @ rows, d_up, None
