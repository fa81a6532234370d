"""Log-probabilities of completions by a causal model; what several texts begin with is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from penname.lm.batches import Group, by_length, shared, together
from penname.lm.network import Network
from penname.lm.prefixes import SoftPrompts
from penname.lm.rollout import take
from penname.lm.scores import TokenPair, of_tokens


def scored(
    network: Network, pairs: Sequence[TokenPair], soft: SoftPrompts
) -> Iterator[tuple[int, list[float]]]:
    """The place of each pair, in any order, and the log-probability of each token of its completion.

    Args:
        pairs: no completion is empty.
    """
    limits, vocabulary = network.score_limits, network.vocabulary
    # A text's last token is not read: nothing is asked of what would follow it.
    texts = [prompt + completion[:-1] for prompt, completion in pairs]
    # The prompt's last token speaks of the completion's first: it is read with each completion.
    most = [len(prompt) - 1 for prompt, _ in pairs]
    groups = []
    if len(pairs) > 1 and network.can_share:
        groups = shared(texts, most, vocabulary, limits)
    for batch in together(groups, vocabulary, limits):
        members = [i for group in batch for i in group.members]
        found = _after_common(network, [pairs[i] for i in members], batch, soft)
        yield from zip(members, found, strict=True)
    grouped = {i for group in groups for i in group.members}
    alone = sorted((i for i in range(len(texts)) if i not in grouped), key=lambda i: len(texts[i]))
    sizes = [(len(texts[i]), len(pairs[i][1]) * vocabulary) for i in alone]
    for run in by_length(sizes, limits):
        yield from zip(alone[run], _whole(network, [pairs[i] for i in alone[run]], soft), strict=True)


@torch.inference_mode()
def _whole(network: Network, pairs: Sequence[TokenPair], soft: SoftPrompts) -> list[list[float]]:
    """Log-probability of each token of each completion, each text read from its beginning."""
    ids, mask = network.pad([prompt + completion[:-1] for prompt, completion in pairs])
    keep = max(len(completion) for _, completion in pairs)
    logits, _ = network.forward(ids, mask, keep=keep, soft=soft)
    # Padded on the left, rows end together; the logits before a token are those that speak of it.
    return [
        of_tokens(row[-len(completion) :], completion)
        for row, (_, completion) in zip(logits, pairs, strict=True)
    ]


@torch.inference_mode()
def _after_common(
    network: Network, pairs: Sequence[TokenPair], groups: Sequence[Group], soft: SoftPrompts
) -> list[list[float]]:
    """As `_whole`, with what a group's texts begin with read once; `pairs` are the groups' members."""
    origin = [at for at, group in enumerate(groups) for _ in group.members]
    firsts = [origin.index(at) for at in range(len(groups))]
    ids, mask = network.pad([pairs[i][0][: group.prefix] for i, group in zip(firsts, groups, strict=True)])
    _, cache = network.forward(ids, mask, keep=1, soft=soft)
    mask = take(origin, cache, mask)
    # Padded on the right, no rest has a gap before it: sliding windows count places, not tokens.
    skipped = [groups[at].prefix for at in origin]
    rests = [(p + c[:-1])[skip:] for skip, (p, c) in zip(skipped, pairs, strict=True)]
    ids, rest_mask = network.pad(rests, left=False)
    starts = [len(prompt) - 1 - skip for skip, (prompt, _) in zip(skipped, pairs, strict=True)]
    unread = min(starts)
    logits, _ = network.forward(ids, torch.cat([mask, rest_mask], dim=1), cache, keep=ids.shape[1] - unread)
    return [
        of_tokens(row[start - unread :][: len(completion)], completion)
        for row, start, (_, completion) in zip(logits, starts, pairs, strict=True)
    ]
