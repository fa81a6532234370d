"""Where users start: towards the words of what they chose. Ours; arXiv 2402.05133 has all start alike.

From alike, a model first learns what most users want, for all of them, and tells users apart only where it
has overshot. What a user chose and what the user rejected differ in the mean of their words' embeddings
already: in a short text, say, the end has a larger share. So users of one taste start on one side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from penname.methods.prlhf.jobs import Example
from penname.methods.prlhf.users import GENERIC


def leanings(examples: Sequence[Example], n_users: int, embeddings: torch.Tensor) -> torch.Tensor:
    """What users lean to, (n_users, width) float32, in the mean of users as long as a token's embedding.

    With m(y) the mean embedding of an answer's tokens, a user leans to the mean of m(y_w) − m(y_l) over the
    user's pairs; of single ratings to the mean of ±(m(y) − m̄), where m̄ is the mean over everyone's. Who has
    no example leans nowhere.

    Args:
        examples: to train on; those of nobody are not looked at.
        embeddings: (vocabulary, width), the model's own.
    """
    words = embeddings.detach()
    total = torch.zeros(n_users, words.shape[1], device=words.device)
    signs, counts = torch.zeros(2, n_users, device=words.device)
    everyone, answers = torch.zeros_like(total[0]), 0
    for example in examples:
        if example.user == GENERIC:
            continue
        means = torch.stack([words[list(answer)].float().mean(dim=0) for answer in example.answers])
        # The first answer of a pair is the liked one.
        sides = torch.tensor([1.0, -1.0] if example.liked else [-1.0], device=words.device)[: len(means)]
        total[example.user] += (sides[:, None] * means).sum(dim=0)
        signs[example.user] += sides.sum()
        counts[example.user] += 1
        everyone += means.sum(dim=0)
        answers += len(means)
    # A pair's two signs cancel, and with them the middle.
    apart = total - signs[:, None] * everyone / max(1, answers)
    found: torch.Tensor = apart / counts.clamp(min=1)[:, None]
    size = found.norm(dim=1)[counts > 0].mean()
    if size > 0:
        found = found * words.norm(dim=1, dtype=torch.float32).mean() / size
    return found
