"""Preferences in three equal parts, one for each stage (arXiv 2310.00898, section 3): no prompt crosses.

Prompts are compared as rule 6 of `penname.train.preferences.data` compares them. Each user's prompts are
dealt out, so that every part has about a third of that user's pairs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from penname.errors import BadInputError
from penname.records import Prompt, digest, prompt_values
from penname.train.preferences.data import Pair, Prepared, plain

PARTS = 3


def thirds(prepared: Prepared, seed: int = 0) -> tuple[Prepared, Prepared, Prepared]:
    """(what SFT learns from, what the gap reward does, what RL does), each in the order of the source.

    A prompt goes where its users have the smallest share of their pairs so far, and of such parts into that
    with the fewest pairs. Those of most users come first, then user by user, each one's prompts with the most
    pairs before the others; a hash of seed and prompt says the rest. So the order of the source does not
    matter, and a user whose prompts are nobody else's has in no part more pairs than in another by more than
    one prompt's. Pairs without a user count as one user's.

    What was left out before (`Prepared.left_out`) is of the whole, and stands in none of the parts.

    Raises:
        BadInputError: there are fewer than three prompts.
    """
    of_prompt: dict[Prompt, list[Pair]] = defaultdict(list)
    for pair in prepared.pairs:
        of_prompt[plain(pair.prompt)].append(pair)
    if len(of_prompt) < PARTS:
        raise BadInputError(
            f"PIT learns its three stages from different prompts, and the preferences hold pairs of "
            f"{len(of_prompt)}: give pairs of at least {PARTS} prompts, or train a stage by itself on all of "
            "them (--all)"
        )
    part_of: dict[Prompt, int] = {}
    totals = Counter(pair.user for pair in prepared.pairs)
    dealt: list[Counter[str | None]] = [Counter() for _ in range(PARTS)]
    for prompt in sorted(of_prompt, key=lambda prompt: _turn(prompt, of_prompt[prompt], seed)):
        users = Counter(pair.user for pair in of_prompt[prompt])
        part = min(range(PARTS), key=lambda part: (_share(users, dealt[part], totals), dealt[part].total()))
        part_of[prompt] = part
        dealt[part].update(users)
    first, second, last = (
        Prepared(pairs=tuple(pair for pair in prepared.pairs if part_of[plain(pair.prompt)] == part))
        for part in range(PARTS)
    )
    return first, second, last


def _share(users: Counter[str | None], dealt: Counter[str | None], totals: Counter[str | None]) -> float:
    """How much of what these users have a part holds, each weighted by what they would bring to it."""
    return sum(number * dealt[user] / totals[user] for user, number in users.items())


def _turn(prompt: Prompt, pairs: Sequence[Pair], seed: int) -> tuple[int, str, int, str]:
    """When a prompt is dealt: what hangs on many users has the fewest places, so it comes first."""
    users = sorted({pair.user or "" for pair in pairs})
    return -len(users), digest([seed, users]), -len(pairs), digest([seed, prompt_values(prompt)])
