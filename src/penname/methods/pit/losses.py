"""The loss of PIT's gap reward (arXiv 2310.00898), as a pure function of its raw values.

Notation: s(y, y_ref) is the scalar that the model says of the text y in the place of the draft y_ref, both
for the same prompt. y_w is preferred to y_l. In names the first letter is the text's, the second the draft's:
`lw` is s(y_l, y_w).
"""

from __future__ import annotations

import torch
from torch.nn import functional


def five_terms(wl: torch.Tensor, ww: torch.Tensor, ll: torch.Tensor, lw: torch.Tensor) -> torch.Tensor:
    """The loss of each pair, in nats: (pairs,), from the four values of each, (pairs,) too.

    −log σ(wl − ww) − log σ(wl − ll) − log σ(wl − lw) − log σ(ww − lw) − log σ(ll − lw)

    A better text than the draft is more than the same text, and the same text is more than a worse one
    (arXiv 2310.00898, section 3, reward training). It sees differences alone: one constant added to all four
    changes nothing. Where all four are equal it is 5 log 2.
    """
    sides = ((wl, ww), (wl, ll), (wl, lw), (ww, lw), (ll, lw))
    return torch.stack([-functional.logsigmoid(more - less) for more, less in sides]).sum(dim=0)
