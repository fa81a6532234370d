"""A step of P-RLHF written plainly, to be right and not fast: ours is compared with it, in tests and in time.

As the published way of training does it: a batch of pairs is four batches of texts, for the user and for the
generic user, chosen and rejected; all are laid side by side, padded to the longest; the reference reads the
same texts anew at every step, without soft prompts; logits are made at every place, and so is the softmax.
Formulas: arXiv 2402.05133 (P-RLHF), 2305.18290 (DPO), 2310.12036 (IPO), 2402.01306 (KTO). One departure, the
same as ours: KTO's reference point is asked of the user's own soft prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from penname.methods.prlhf.jobs import Example
from penname.methods.prlhf.users import GENERIC

Soft = Mapping[str, torch.Tensor]
"""The users' parameters by the names that `SoftUsers.trained` gives them."""


class Text(NamedTuple):
    """A prompt and its answer for a user's number; `GENERIC` for the generic user."""

    user: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Naive:
    """Losses of batches under a causal model of transformers whose attention takes padding masks.

    Args:
        model: with LoRA, or without where `reference` is given.
        reference: the frozen model; None: `model` with its adapter switched off.
        users: parameters of the soft prompts; None: the model knows no users.
        tokens: T_u, rows of a soft prompt.
        head: (width,) of a scalar head on the last token's hidden state: rewards stand for log-ratios.
    """

    def __init__(
        self,
        model: Any,
        *,
        reference: Any = None,
        users: Soft | None = None,
        tokens: int = 0,
        head: torch.Tensor | None = None,
    ) -> None:
        self.model = model
        self.reference = reference
        self.users = users
        self.tokens = tokens
        self.head = head

    def loss(
        self, examples: Sequence[Example], *, loss: str = "sigmoid", alpha: float = 0.5, beta: float = 0.1
    ) -> torch.Tensor:
        """The batch's mean mixed loss. The examples' own references are not looked at."""
        if loss == "kto":
            own, generic = self._ratings(examples, beta)
        else:
            own, generic = self._pairs(examples, loss, beta)
        return (alpha * own + (1 - alpha) * generic).mean()

    def sparse_loss(
        self, examples: Sequence[Example], *, count: int, weight: float, beta: float, alpha: float
    ) -> torch.Tensor:
        """As `loss` by the gap of the `count` tokens of the rejected answer that lost most, one by one."""
        total = torch.zeros(())
        for example in examples:
            for user, share in ((example.user, alpha), (GENERIC, 1 - alpha)):
                sides = [Text(user, example.prompt, answer) for answer in example.answers]
                policy = tokens_of(self.model, self._soft(sides), sides, self.tokens)
                with torch.no_grad(), self._frozen() as model:
                    reference = tokens_of(model, None, sides, 0)
                chosen, rejected = (one - other for one, other in zip(policy, reference, strict=True))
                order = sorted(rejected, key=lambda r: float(r.detach()))
                gap = sum(chosen) - sum(order[:count])
                lost = sum(max(torch.zeros(()), -r) for r in (*chosen, *order[count:]))
                total = total + share * (weight * lost - torch.log(torch.sigmoid(beta * gap)))
        return total / len(examples)

    def _pairs(
        self, examples: Sequence[Example], loss: str, beta: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses for the user and for the generic user, (n,) each."""
        batches = [
            [Text(user, example.prompt, example.answers[side]) for example, user in _doubled(examples, who)]
            for who in ((False,) if self.users is None else (False, True))
            for side in (0, 1)
        ]
        ratios = self._ratios(batches)
        own = pair_losses(ratios[0] - ratios[1], loss, beta)
        # Without users there is nobody to tell from the generic one: the half is all.
        return own, own if self.users is None else pair_losses(ratios[2] - ratios[3], loss, beta)

    def _ratings(self, examples: Sequence[Example], beta: float) -> tuple[torch.Tensor, torch.Tensor]:
        own, generic = (
            [Text(user, e.prompt, e.answers[0]) for e, user in _doubled(examples, who)]
            for who in (False, True)
        )
        others = [Text(e.user, e.prompt, e.other) for e in examples]
        with torch.no_grad():
            [apart] = self._ratios([others])
            zero = apart.mean().clamp(min=0)
        found = []
        for ratio in self._ratios([own, generic]):
            signs = torch.tensor([1.0 if e.liked else -1.0 for e in examples])
            weights = torch.tensor([e.weight for e in examples])
            found.append(weights * (1 - torch.sigmoid(beta * signs * (ratio - zero))))
        return found[0], found[1]

    def _ratios(self, batches: Sequence[Sequence[Text]]) -> tuple[torch.Tensor, ...]:
        """log π − log π_ref of each text, or its reward; all batches in one padded pass of each model."""
        texts = [text for batch in batches for text in batch]
        sizes = [len(batch) for batch in batches]
        if self.head is not None:
            return torch.split(self.rewards(texts), sizes)
        policy = self.log_probs(texts)
        with torch.no_grad(), self._frozen() as model:
            reference = sums(model, None, texts, 0)
        return torch.split(policy - reference, sizes)

    def log_probs(self, texts: Sequence[Text]) -> torch.Tensor:
        """Σ log p of each text's answer by the policy: (n,)."""
        return sums(self.model, self._soft(texts), texts, self.tokens)

    def rewards(self, texts: Sequence[Text]) -> torch.Tensor:
        """(n,)."""
        assert self.head is not None
        return last_states(self.model, self._soft(texts), texts, self.tokens).float() @ self.head

    def _soft(self, texts: Sequence[Text]) -> torch.Tensor | None:
        if self.users is None:
            return None
        return torch.stack([soft_prompt(self.users, text.user, self.tokens) for text in texts])

    @contextmanager
    def _frozen(self) -> Iterator[Any]:
        if self.reference is not None:
            yield self.reference
        else:
            with self.model.disable_adapter():
                yield self.model


def _doubled(examples: Sequence[Example], generic: bool) -> Iterator[tuple[Example, int]]:
    return ((example, GENERIC if generic else example.user) for example in examples)


def soft_prompt(users: Soft, user: int, tokens: int) -> torch.Tensor:
    """One user's rows, (T_u, width), out of the parameters."""
    own, generic = users["own.weight"], users["generic"]
    if "clusters" in users:
        logits = generic if user == GENERIC else own[user]
        return (logits.softmax(0)[:, None, None] * users["clusters"]).sum(0)
    return generic if user == GENERIC else generic + own[user].view(tokens, -1)


def pair_losses(delta: torch.Tensor, loss: str, beta: float) -> torch.Tensor:
    """(n,) from the gaps Δ."""
    if loss == "ipo":
        return (delta - 1 / (2 * beta)) ** 2
    return -torch.log(torch.sigmoid(beta * delta))


def sums(model: Any, soft: torch.Tensor | None, texts: Sequence[Text], rows: int) -> torch.Tensor:
    """Σ log p of the answers' tokens, (n,)."""
    return torch.stack([one.sum() for one in tokens_of(model, soft, texts, rows)])


def tokens_of(model: Any, soft: torch.Tensor | None, texts: Sequence[Text], rows: int) -> list[torch.Tensor]:
    """log p of each answer's tokens: logits and a float32 softmax over every place, then the mask."""
    embedded, mask, labels = _padded(model, soft, texts, rows)
    logits = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits[:, :-1]
    labels = labels[:, 1:]
    shares = functional.log_softmax(logits.float(), dim=-1)
    tokens = shares.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return [row[asked] for row, asked in zip(tokens, labels >= 0, strict=True)]


def last_states(model: Any, soft: torch.Tensor | None, texts: Sequence[Text], rows: int) -> torch.Tensor:
    """The last layer's state at each text's last token: (n, width)."""
    embedded, mask, _ = _padded(model, soft, texts, rows)
    output = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False, output_hidden_states=True)
    return output.hidden_states[-1][torch.arange(len(texts)), mask.sum(-1) - 1]


def _padded(
    model: Any, soft: torch.Tensor | None, texts: Sequence[Text], rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings (n, longest, width), the padding's mask, and labels, −100 where nothing is asked."""
    ids = [torch.tensor(text.prompt + text.answer) for text in texts]
    asked = [torch.tensor([-100] * len(text.prompt) + list(text.answer)) for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(asked, batch_first=True, padding_value=-100)
    lengths = torch.tensor([len(one) for one in ids])
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    embedded = model.get_input_embeddings()(padded)
    if soft is not None:
        embedded = torch.cat([soft.to(embedded.dtype), embedded], dim=1)
        mask = functional.pad(mask, (rows, 0), value=1)
        labels = functional.pad(labels, (rows, 0), value=-100)
    return embedded, mask, labels
