"""A causal model that reads trees: prompts with the answers that follow them, laid end to end.

No token is padding, a prompt is read once for all its answers, and logits are made only where a token is
scored. Works with any decoder of transformers whose attention goes through its attention interface and keeps
nothing else from token to token; `check` finds out by reading a small tree both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from penname.errors import ModelError
from penname.train.attention import NAME, Span, batches
from penname.train.likelihood import token_log_probs


@dataclass(frozen=True)
class Tree:
    """A prompt of at least one token, and what follows it: each branch at least one token.

    Ids from the vocabulary's size on are rows of the extra embeddings that are read with it.
    """

    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]


class PackedReader:
    """Reads trees with `model`, a causal model of transformers that was loaded for it (`train.model`)."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.body = self.base.get_decoder()
        self.embeddings: torch.nn.Embedding = self.base.get_input_embeddings()
        self.vocabulary = self.embeddings.num_embeddings
        self.width = self.embeddings.embedding_dim

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.embeddings.weight.device

    def log_probs(self, trees: Sequence[Tree], extra: torch.Tensor | None = None) -> torch.Tensor:
        """Σ log p(token) of each branch after its prompt: (branches,) in the trees' order, float32.

        Args:
            extra: (m, width) embeddings that ids from the vocabulary's size on stand for.
        """
        per_token, lengths = self._log_probs(trees, extra)
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(self.device)
        return torch.zeros(len(lengths), device=self.device).index_add(0, owner, per_token)

    def log_probs_by_token(self, trees: Sequence[Tree], extra: torch.Tensor | None = None) -> torch.Tensor:
        """log p of each token of each branch: (branches, longest) float32, 0 behind a branch's end.

        Arguments as those of `log_probs`.
        """
        per_token, lengths = self._log_probs(trees, extra)
        return pad_sequence(list(torch.split(per_token, lengths)), batch_first=True)

    def _log_probs(self, trees: Sequence[Tree], extra: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
        """log p of all branches' tokens, one after the other, and how many each branch has."""
        # A branch's last token is not read: nothing is asked of what would follow it.
        spans, hidden = self._read(trees, extra, skip=1)
        rows: list[int] = []
        tokens: list[int] = []
        for span, tree in zip(spans, trees, strict=True):
            for at, branch in zip(_starts(span), tree.branches, strict=True):
                # The prompt's last token speaks of the first token of every branch.
                rows += [span.start + span.prompt - 1, *range(at, at + len(branch) - 1)]
                tokens += branch
        index, chosen = self._ids(rows), self._ids(tokens)
        per_token = token_log_probs(hidden[index], self._head(), chosen)
        return per_token, [len(branch) for tree in trees for branch in tree.branches]

    def last_hidden(self, trees: Sequence[Tree], extra: torch.Tensor | None = None) -> torch.Tensor:
        """The hidden state at the last token of each branch: (branches, width), in the model's type."""
        spans, hidden = self._read(trees, extra, skip=0)
        rows = [
            at + length - 1 for span in spans for at, length in zip(_starts(span), span.branches, strict=True)
        ]
        return hidden[self._ids(rows)]

    def check(self) -> None:
        """See that a small tree read in one go is what its branches are when read one by one.

        Raises:
            ModelError: it is not: this kind of model cannot be trained here.
        """
        # Ids across the vocabulary: the first ones are control tokens, of extreme states in many models.
        ids = [self.vocabulary * place // 10 for place in range(2, 10)]
        tree = Tree(tuple(ids[:3]), (tuple(ids[3:6]), tuple(ids[6:])))
        own = self.base.config._attn_implementation
        with torch.no_grad():
            together = self.last_hidden([tree, tree]).float()
            self.base.set_attn_implementation("eager")
            try:
                plain = [self._plain((*tree.prompt, *branch)) for branch in tree.branches * 2]
            finally:
                self.base.set_attn_implementation(own)
        alone = torch.stack([hidden[-1] for hidden, _ in plain]).float()
        # What the model does to its logits, such as scaling them, is not done here.
        ours = torch.cat([functional.linear(hidden, self._head()) for hidden, _ in plain]).float()
        theirs = torch.cat([logits for _, logits in plain]).float()
        exact = self.embeddings.weight.dtype == torch.float32
        if not (
            _alike(together, alone, 1e-3 if exact else 0.1) and _alike(ours, theirs, 1e-3 if exact else 0.01)
        ):
            kind = type(self.base).__name__
            raise ModelError(f"{kind} cannot be trained here: it reads packed text otherwise than plain text")

    def _plain(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states and logits, (tokens, width) and (tokens, vocabulary), of one text by itself."""
        output = self.base(input_ids=self._ids(ids)[None], use_cache=False, output_hidden_states=True)
        return output.hidden_states[-1][0], output.logits[0]

    def _head(self) -> torch.Tensor:
        """(vocabulary, width)."""
        head = self.base.get_output_embeddings()
        if head.bias is not None:
            raise ModelError("training by packed reading cannot do a head with a bias")
        weight: torch.Tensor = head.weight
        return weight

    def _read(
        self, trees: Sequence[Tree], extra: torch.Tensor | None, skip: int
    ) -> tuple[list[Span], torch.Tensor]:
        """Where the trees lie, and the hidden states of all tokens: (tokens, width).

        The last `skip` tokens of each branch are left out.
        """
        ids: list[int] = []
        places: list[int] = []
        spans: list[Span] = []
        for tree in trees:
            spans.append(
                Span(len(ids), len(tree.prompt), tuple(len(branch) - skip for branch in tree.branches))
            )
            ids += tree.prompt
            places += range(len(tree.prompt))
            for branch in tree.branches:
                read = branch[: len(branch) - skip]
                ids += read
                places += range(len(tree.prompt), len(tree.prompt) + len(read))
        output = self.body(
            inputs_embeds=self._embedded(ids, extra)[None],
            position_ids=self._ids(places)[None],
            use_cache=False,
            blocks=batches(spans, self.embeddings.weight.dtype, self.device),
        )
        return spans, output.last_hidden_state[0]

    def _embedded(self, ids: list[int], extra: torch.Tensor | None) -> torch.Tensor:
        index = self._ids(ids)
        if extra is None:
            return self.embeddings(index)  # type: ignore[no-any-return]
        own = index < self.vocabulary
        words = self.embeddings(index.where(own, 0))
        soft = extra.to(words.dtype)[(index - self.vocabulary).clamp(min=0)]
        return torch.where(own[:, None], words, soft)

    def _ids(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def _alike(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def _starts(span: Span) -> list[int]:
    """Where each branch begins."""
    starts = [span.start + span.prompt]
    for length in span.branches[:-1]:
        starts.append(starts[-1] + length)
    return starts


def register() -> None:
    """Make the attention known to transformers under `NAME`."""
    from transformers import AttentionInterface

    from penname.train.attention import attend

    AttentionInterface.register(NAME, attend)
