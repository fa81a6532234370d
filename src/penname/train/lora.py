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
    """Have the LoRA layers of a peft model compute in this way, where their base weights are frozen.

    On a CPU the update's small products are a quarter of a reading. There an adapter that is only read, too,
    is added to a copy of the weights: one product, for as much memory again as the layers take.
    """
    from peft.tuners.lora import Linear

    for layer in network.modules():
        if isinstance(layer, Linear) and not layer.base_layer.weight.requires_grad:
            down, up, _ = _adapter(layer)
            read = not down.requires_grad and down.device.type == "cpu"
            layer.forward = partial(_forward, layer, whole(layer, down, up) if read else None)


@torch.no_grad()
def whole(layer: Any, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """W + s B A of a LoRA layer of peft, summed in float32 and rounded to the type of W once.

    Args:
        down: A, (rank, in).
        up: B, (out, rank).
    """
    weight: torch.Tensor = layer.base_layer.weight
    summed = weight.float() + up.float() @ down.float() * _adapter(layer)[2]
    return summed.to(weight.dtype)


def _adapter(layer: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A, B and s."""
    [name] = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]


def _forward(layer: Any, sum_of_both: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
    """(…, in) to (…, out)."""
    base = layer.base_layer
    if layer.disable_adapters or layer.merged:
        return base(hidden)  # type: ignore[no-any-return]
    if sum_of_both is not None:
        return functional.linear(hidden, sum_of_both, base.bias)
    down, up, scale = _adapter(layer)
    rows = hidden.reshape(-1, hidden.shape[-1])
    out: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        rows, base.weight, base.bias, down, up, scale
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
