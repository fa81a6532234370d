"""The losses of P-RLHF (arXiv 2402.05133), as pure functions of log-probabilities in natural logarithms.

Notation: log π(y|x, e_v) is the policy's log-probability of an answer to the prompt x for the user v, summed
over its tokens; log π_ref(y|x) the frozen reference's, which sees no user. y_w is chosen, y_l rejected.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

PairLoss = Literal["sigmoid", "ipo"]
Loss = Literal["sigmoid", "ipo", "kto"]


def gap(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor
) -> torch.Tensor:
    """Δ_v = log π(y_w|x, e_v) − log π_ref(y_w|x) − log π(y_l|x, e_v) + log π_ref(y_l|x).

    All of shape (pairs,); arXiv 2402.05133, section 4.2, and arXiv 2305.18290, equation 7.
    """
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def anchored(
    delta: torch.Tensor, chosen: torch.Tensor, ref_chosen: torch.Tensor, weight: float
) -> torch.Tensor:
    """Δ − λ max(0, log π_ref(y_w|x) − log π(y_w|x, e_v)): DPOP (arXiv 2402.13228, equation 3), (pairs,).

    A gap can also be made by both answers becoming unlikely; what the chosen one loses counts against it.
    """
    return delta - weight * (ref_chosen - chosen).clamp(min=0)


def sparse_gap(
    chosen: torch.Tensor, rejected: torch.Tensor, there: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A gap by few tokens of the rejected answer, and what all others have lost; ours, (pairs,) each.

    With r_t = log π(y_t|x, y_<t, e_v) − log π_ref(y_t|x, y_<t) of each token, and K the `count` least of the
    rejected answer, the gap is Σ_t r_t(y_w) − Σ_{t in K} r_t(y_l), and lost is Σ max(0, −r_t) over the other
    tokens of both. DPO's sum over all tokens is also made large by a little less of every token of a long
    rejected answer, and who learns that no longer writes.

    Args:
        chosen, rejected: r_t of the answers' tokens, (pairs, longest), 0 behind an answer's end.
        there: which tokens the rejected answers have, (pairs, longest) of bool.
    """
    least = rejected.masked_fill(~there, torch.inf)
    least = least.topk(min(count, least.shape[1]), largest=False).values
    least = least.masked_fill(least.isinf(), 0)
    return chosen.sum(dim=1) - least.sum(dim=1), _lost(chosen) + _lost(rejected) - _lost(least)


def _lost(ratios: torch.Tensor) -> torch.Tensor:
    """What the tokens have become less likely: (n,) of (n, tokens)."""
    return (-ratios).clamp(min=0).sum(dim=1)


def pair_loss(delta: torch.Tensor, beta: float, loss: PairLoss = "sigmoid") -> torch.Tensor:
    """The loss of each pair, (pairs,), from its gap Δ.

    sigmoid: −log σ(β Δ), DPO (arXiv 2305.18290, equation 7); with β = 1 and rewards in the place of
    log-ratios it is Bradley and Terry's, the loss of P-RM (section 4.1).
    ipo: (Δ − 1 / 2β)² (arXiv 2310.12036, equation 17).
    """
    if loss == "sigmoid":
        return -functional.logsigmoid(beta * delta)
    return (delta - 1 / (2 * beta)) ** 2


def kto_loss(ratio: torch.Tensor, liked: torch.Tensor, zero: torch.Tensor, beta: float) -> torch.Tensor:
    """The loss of single ratings, (ratings,): KTO (arXiv 2402.01306, equation 8) with λ_D = λ_U = 1.

    Args:
        ratio: log π(y|x, e_v) − log π_ref(y|x), (ratings,).
        liked: whether each answer was liked, (ratings,) of bool.
        zero: the reference point z₀ ≥ 0, a scalar without gradient: the mean ratio of answers to other
            prompts, an estimate of KL(π ‖ π_ref).
    """
    value = torch.where(liked, torch.sigmoid(beta * (ratio - zero)), torch.sigmoid(beta * (zero - ratio)))
    return 1 - value


def mixed(own: torch.Tensor, generic: torch.Tensor, alpha: torch.Tensor | float) -> torch.Tensor:
    """α · own + (1 − α) · generic, the user's loss and the generic user's (arXiv 2402.05133, equation 5)."""
    return alpha * own + (1 - alpha) * generic
