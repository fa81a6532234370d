"""Adam for vectors that stand for somebody: users' soft prompts, or their weights of clusters.

Adam divides each coordinate by its own root mean square, so that the thousands in which a user's few
gradients are noise move as far as the few that carry the taste. Here a row has one divisor: a step keeps the
gradient's direction. Rows without a gradient stay as they are, and count no step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class RowAdam(torch.optim.Optimizer):
    """Adam (arXiv 1412.6980) with a second moment for each row of a parameter's first dimension.

    Of a parameter of one dimension each number is a row: that is plain Adam. Gradients may be sparse.

    Args:
        groups: parameters with their own "lr", as torch's optimizers take them.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move each row that has a gradient."""
        del closure
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is not None:
                    self._move(one, group["lr"])

    def _move(self, parameter: torch.nn.Parameter, lr: float) -> None:
        rows = parameter.view(len(parameter), -1)
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(rows)
            state["square"] = torch.zeros(len(rows), 1, device=rows.device)
            state["steps"] = torch.zeros(len(rows), 1, device=rows.device)
        grad = parameter.grad
        if grad is not None and grad.is_sparse:
            grad = grad.coalesce()
            [places], values = grad.indices(), grad.values()
        else:
            places, values = torch.arange(len(rows), device=rows.device), grad.reshape(rows.shape)  # type: ignore[union-attr]
        first, second = BETAS
        steps = state["steps"][places] + 1
        mean = state["mean"][places].lerp_(values, 1 - first)
        square = state["square"][places].lerp_(values.square().mean(1, keepdim=True), 1 - second)
        for name, value in (("steps", steps), ("mean", mean), ("square", square)):
            state[name][places] = value
        size = (square / (1 - second**steps)).sqrt_().add_(EPSILON)
        rows[places] -= lr * mean / (1 - first**steps) / size
