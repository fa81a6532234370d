"""Best of n with P-RM (arXiv 2402.05133): of several drafts the one that the users' reward likes best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penname.records import Prompt


class Reward(Protocol):
    """A trained reward, as `penname.methods.prlhf.reward.open_reward` gives it."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything that decides a reward but a user's own part."""
        ...

    def key(self, user: str) -> str:
        """Changes with the user's own part, as an adaptation does."""
        ...

    def knows(self, user: str) -> bool:
        """Whether there is a part of the user's own; others get the generic user's."""
        ...

    def rewards(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        users: Sequence[str | None],
        abouts: Sequence[str] | None = None,
    ) -> list[float]:
        """How much each user likes each text as an answer to its prompt, with a text about the user each."""
        ...


def best_of(
    reward: Reward,
    prompts: Sequence[Prompt],
    options: Sequence[Sequence[str]],
    users: Sequence[Sequence[str]],
) -> list[int]:
    """The place, for each prompt, of the option with the highest mean reward of its users.

    Of equals the first is taken, and an empty option only where all are empty.

    Args:
        options: the texts for each prompt, at least one each.
        users: the authors for each prompt, at least one each.
    """
    cases = [
        (number, place, user)
        for number, texts in enumerate(options)
        for place, text in enumerate(texts)
        if text and len(texts) > 1
        for user in users[number]
    ]
    given = reward.rewards(
        [prompts[number] for number, _, _ in cases],
        [options[number][place] for number, place, _ in cases],
        [user for _, _, user in cases],
    )
    totals: list[dict[int, float]] = [{} for _ in options]
    for (number, place, _), one in zip(cases, given, strict=True):
        totals[number][place] = totals[number].get(place, 0.0) + one
    return [max(total, key=lambda place: (total[place], -place), default=0) for total in totals]
