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
    counts = torch.zeros(n_users, device=words.device)
    mine = [example for example in examples if example.user != GENERIC]

    def mean(answer: Sequence[int]) -> torch.Tensor:
        return words[list(answer)].float().mean(dim=0)

    rated = [mean(example.answers[0]) for example in mine if len(example.answers) == 1]
    middle = torch.stack(rated).mean(dim=0) if rated else None
    for example in mine:
        first = mean(example.answers[0])
        if middle is None:
            total[example.user] += first - mean(example.answers[1])
        else:
            total[example.user] += (first - middle) * (1 if example.liked else -1)
        counts[example.user] += 1
    found = total / counts.clamp(min=1)[:, None]
    size = found.norm(dim=1)[counts > 0].mean()
    return found * words.norm(dim=1, dtype=torch.float32).mean() / size if size > 0 else found
