"""RLOO (arXiv 2402.14740): REINFORCE of whole texts, whose baseline is the case's other samples.

All tensors are (cases, k): k samples of each case.
"""

from __future__ import annotations

import torch


def penalised(gaps: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
    """The gap reward of each sample; a faulty one gets 1 less than the worst sound sample of its case.

    Where a case has no sound sample, all of its samples get 1 less than the worst of the step, and −1 where
    the step has none: nothing is learnt from them then, as an advantage compares a case's samples.

    Args:
        gaps: of any value where a sample is not sound.
        sound: (cases, k), bool: not blank, not cut, and short enough for the reward to read.
    """
    worst = gaps.masked_fill(~sound, torch.inf).amin(dim=1, keepdim=True)
    least = worst.amin() if bool(sound.any()) else torch.zeros_like(worst)
    floor = torch.where(worst.isinf(), least, worst) - 1
    return torch.where(sound, gaps, floor)


def rewards(gaps: torch.Tensor, policy: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """R = r − β (log π(y) − log π_SFT(y)), of whole texts; no gradient.

    Args:
        policy, reference: log-probabilities of the samples.
    """
    return gaps - beta * (policy - reference).detach()


def advantages(values: torch.Tensor) -> torch.Tensor:
    """A_i = R_i − mean of R_j, j ≠ i, over a case's samples."""
    others = values.shape[1] - 1
    return values - (values.sum(dim=1, keepdim=True) - values) / others


def rloo_loss(policy: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """−Σ A log π(y): a scalar whose gradient is REINFORCE's. A is taken as it is."""
    return -(advantage.detach() * policy).sum()
