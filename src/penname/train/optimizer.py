"""AdamW over float32 masters of whatever type is computed with, and a row's own Adam for what is users'.

bfloat16 has eight bits of mantissa: steps of 1e-5 would be lost in it. So gradients are added up and steps
taken in float32, and the weights that are computed with are copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from penname.train.rows import RowAdam


@dataclass(frozen=True)
class OptimizerSettings:
    """How steps are taken."""

    lr: float = 5e-5  # of the model's weights (arXiv 2402.05133, appendix)
    user_lr: float = 1e-3  # of the users' parameters; ours: at 5e-5 they hardly move in a few hundred steps
    mixture_lr: float = 0.1  # of users' weights of clusters, which are logits; ours
    warmup: int = (
        150  # steps from 0 to the full rate, a tenth of all steps at most (ours); then a cosine to 0
    )
    weight_decay: float = 0.0  # of the model's weights
    clip: float = 1.0  # the gradients' common norm at most; 0: not clipped


class Optimizer:
    """Takes steps for named parameters.

    Args:
        model: the model's parameters, of any type.
        users: float32 parameters of the user model, each row of which is updated where it has a gradient.
        steps: in all, for the schedule.
        mixtures: which of the users' are logits.
    """

    def __init__(
        self,
        model: Mapping[str, torch.nn.Parameter],
        users: Mapping[str, torch.nn.Parameter],
        settings: OptimizerSettings,
        steps: int,
        mixtures: frozenset[str] = frozenset(),
    ) -> None:
        self._settings = settings
        self._steps = steps
        self._copies = dict(model)
        self.masters = {
            name: one if one.dtype == torch.float32 else torch.nn.Parameter(one.detach().float())
            for name, one in model.items()
        }
        self.users = dict(users)
        self._all: dict[str, torch.optim.Optimizer] = {}
        if model:
            self._all["model"] = torch.optim.AdamW(
                list(self.masters.values()), lr=settings.lr, weight_decay=settings.weight_decay
            )
        if users:
            rates = [settings.mixture_lr if name in mixtures else settings.user_lr for name in users]
            groups = zip(users.values(), rates, strict=True)
            self._all["users"] = RowAdam({"params": [one], "lr": lr} for one, lr in groups)
        self._rates = {
            name: [float(group["lr"]) for group in one.param_groups] for name, one in self._all.items()
        }

    def collect(self) -> None:
        """Add the gradients of the copies to their masters': after each backward pass."""
        for name, copy in self._copies.items():
            master = self.masters[name]
            if master is copy or copy.grad is None:
                continue
            grad = copy.grad.float()
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            copy.grad = None

    def step(self, number: int) -> float:
        """Take step `number` (from 0), forget the gradients; returns their norm before clipping."""
        norm = self._clip()
        factor = schedule(number, self._steps, self._settings.warmup)
        for name, one in self._all.items():
            for group, rate in zip(one.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor
            one.step()
            one.zero_grad(set_to_none=True)
        self.publish()
        return norm

    def publish(self) -> None:
        """Give the copies their masters' values."""
        with torch.no_grad():
            for name, copy in self._copies.items():
                if self.masters[name] is not copy:
                    copy.copy_(self.masters[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a training needs to go on: values and moments, by name."""
        found = {name: one.detach() for name, one in self.values.items()}
        for kind, one in self._all.items():
            for number, state in one.state_dict()["state"].items():
                for name, value in state.items():
                    found[f"{kind}.{number}.{name}"] = torch.as_tensor(value)
        return {name: value.contiguous() for name, value in found.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.load_values(tensors)
        for kind, one in self._all.items():
            state: dict[int, dict[str, object]] = {}
            for key, value in tensors.items():
                if key.startswith(f"{kind}."):
                    _, number, name = key.split(".", 2)
                    state.setdefault(int(number), {})[name] = value
            one.load_state_dict({**one.state_dict(), "state": state})

    @property
    def values(self) -> dict[str, torch.nn.Parameter]:
        """What is trained: the masters and the users' parameters."""
        return {
            **{f"model/{name}": one for name, one in self.masters.items()},
            **{f"users/{name}": one for name, one in self.users.items()},
        }

    def load_values(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set what is trained, and the copies."""
        with torch.no_grad():
            for name, one in self.values.items():
                one.copy_(tensors[name])
        self.publish()

    def _clip(self) -> float:
        grads = [one.grad for one in self.values.values() if one.grad is not None]
        flat = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
        if not flat:
            return 0.0
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in flat])))
        if self._settings.clip and norm > self._settings.clip:
            for grad in grads:
                grad.mul_(self._settings.clip / (norm + 1e-6))
        return norm


def schedule(number: int, steps: int, warmup: int) -> float:
    """The share of the full rate at step `number` (from 0): linear from 0, then a cosine to 0."""
    rising = min(warmup, steps // 10)
    if number < rising:
        return (number + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (number - rising) / max(1, steps - rising)))
