"""The user models of P-RLHF: from a user to a soft prompt (arXiv 2402.05133, section 4).

A soft prompt is T_u rows in the model's embedding space, read before the prompt's first token.

    individual   e_u = e_0 + o_u, with o_u = 0 at first
    cluster      e_u = Σ_k softmax(w_u)_k V_k

e_0 is the generic user, for anyone unknown; with clusters it is the mixture by a w_0 of its own. Rows start
as copies of the model's own token embeddings, drawn without replacement. Individual users may start apart
(`SoftUsers.lean`; ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from penname.errors import BadInputError

Kind = Literal["individual", "cluster"]

GENERIC = -1
"""The number of the generic user."""


def soft_prompts(rows: torch.Tensor, generic: torch.Tensor, clusters: torch.Tensor | None) -> torch.Tensor:
    """e_u, (users, T_u, width), of users' rows: offsets o_u, or with clusters logits w_u (users, K)."""
    if clusters is None:
        return generic + rows
    return torch.einsum("uk,ktd->utd", rows.softmax(dim=-1), clusters)


class SoftUsers(torch.nn.Module):
    """Soft prompts of `n_users` users, numbered from 0, and of the generic one.

    Args:
        embeddings: (vocabulary, width), the model's own.
        tokens: T_u, the rows of a soft prompt.
        clusters: K, where the kind is "cluster".

    Raises:
        BadInputError: more rows than the vocabulary has tokens.
    """

    def __init__(
        self, kind: Kind, n_users: int, embeddings: torch.Tensor, tokens: int, clusters: int, seed: int
    ) -> None:
        super().__init__()
        vocabulary, width = embeddings.shape
        rows = tokens * (clusters if kind == "cluster" else 1)
        if not 0 < rows <= vocabulary:
            raise BadInputError(
                f"{rows} rows of soft prompts are not from 1 to the {vocabulary} token embeddings"
            )
        chance = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(vocabulary, generator=chance)[:rows].to(embeddings.device)
        start = embeddings.detach()[drawn].float()
        self.kind = kind
        self.tokens = tokens
        self.width = width
        # Sparse: a step touches the rows of the batch's users alone.
        if kind == "individual":
            self.generic = torch.nn.Parameter(start)
            self.own = torch.nn.Embedding(max(1, n_users), tokens * width, sparse=True)
        else:
            self.clusters = torch.nn.Parameter(start.view(clusters, tokens, width))
            self.generic = torch.nn.Parameter(torch.zeros(clusters))
            self.own = torch.nn.Embedding(max(1, n_users), clusters, sparse=True)
        torch.nn.init.zeros_(self.own.weight)
        self.to(embeddings.device)

    def lean(self, leanings: torch.Tensor) -> None:
        """Let each user start at e_0 and, in every row of the soft prompt, what that user leans to.

        Args:
            leanings: (n_users, width).
        """
        with torch.no_grad():
            self.own.weight.copy_(leanings.repeat(1, self.tokens))

    def forward(self, users: Sequence[int]) -> torch.Tensor:
        """The soft prompts of these users (`GENERIC` for the generic one): (users, T_u, width), float32."""
        index = torch.tensor(users, device=self.generic.device)
        known = (index != GENERIC)[:, None]
        own = torch.where(known, self.own(index.clamp(min=0)), 0.0)
        if self.kind == "individual":
            return soft_prompts(own.view(-1, self.tokens, self.width), self.generic, None)
        return soft_prompts(torch.where(known, own, self.generic), self.generic, self.clusters)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters, by name."""
        return dict(self.named_parameters())

    @property
    def mixtures(self) -> frozenset[str]:
        """Which of `trained` are logits."""
        return frozenset({"generic", "own.weight"} if self.kind == "cluster" else ())

    def shared_arrays(self) -> dict[str, np.ndarray]:
        """What all users share, as a `UserTable` keeps it.

        Also the main directions (k, *row) in which users differ, each as long as a user goes that way on
        average: a newcomer with a handful of preferences is looked for along these.
        """
        shared: dict[str, torch.Tensor] = {"generic": self.generic, "directions": self._directions()}
        if self.kind == "cluster":
            shared["clusters"] = self.clusters
        return {name: one.detach().float().cpu().numpy() for name, one in shared.items()}

    def _directions(self) -> torch.Tensor:
        rows = self.own.weight.detach().float()
        if self.kind == "cluster":
            rows = rows - self.generic.detach()
        _, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
        kept: torch.Tensor = (axes * (sizes / len(rows) ** 0.5)[:, None])[:DIRECTIONS]
        return kept.view(-1, *self.generic.shape)

    def row(self, user: int) -> np.ndarray:
        """What is the user's alone, as a `UserTable` keeps it: o_u (T_u, width) or the logits w_u (K,)."""
        row = self.own.weight.detach()[user].float().cpu().numpy()
        return row.reshape(self.tokens, self.width) if self.kind == "individual" else row


DIRECTIONS = 16
"""How many of the directions in which users differ are kept, at most."""
