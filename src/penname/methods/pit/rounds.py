"""Rounds of improving a text: what is done with a text that came, and when they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from penname.lm.base import Generation, LanguageModel
from penname.methods.pen import cleaned
from penname.methods.pit.form import Case
from penname.records import Prompt, Round

EMPTY = "the draft is empty: there is nothing to improve"

_STEP = 64  # tokens: limits are multiples of it, so that texts of about one length are written together


@dataclass(frozen=True)
class Improved:
    """What came of a draft."""

    text: str  # of the last round that was taken; the draft as it was, where none was
    rounds: tuple[Round, ...]  # in order, with those that were not taken
    stopped: str  # why there are no more, in words


class Running:
    """A text on its way through the rounds: it changes by `take` and ends by `stop`."""

    def __init__(self, case: Case) -> None:
        self.case = case  # its draft is the text as it stands now
        self.rounds: list[Round] = []
        self.stopped = "" if case.draft.strip() else EMPTY
        self._seen = {_plain(case.draft)}

    @property
    def number(self) -> int:
        """Of the round that is being made, from 1."""
        return len(self.rounds) + 1

    def refusal(self, text: str, *, cut: bool) -> str:
        """Why a new text cannot be taken, whatever it gains; "" where it can.

        A text that came before, up to blanks, is never taken again: rounds cannot go in circles.
        """
        if not text.strip():
            return f"the text of round {self.number} came out blank"
        if cut:
            return f"the text of round {self.number} was cut at its limit"
        if _plain(text) == _plain(self.case.draft):
            return f"round {self.number} changed nothing"
        if _plain(text) in self._seen:
            return f"round {self.number} went back to an earlier text"
        return ""

    def take(self, made: Round) -> None:
        """The round's text takes the place of the one before it."""
        self.rounds.append(made)
        self._seen.add(_plain(made.text))
        self.case = replace(self.case, draft=made.text)

    def stop(self, why: str, made: Round | None = None) -> None:
        """The rounds end; the text of the one that was `made` last is not taken."""
        self.stopped = why
        if made is not None:
            self.rounds.append(made)


def run_rounds(
    cases: Sequence[Case], rounds: int, step: Callable[[Sequence[Running]], None]
) -> list[Improved]:
    """What comes of each draft, in order.

    Args:
        rounds: at most.
        step: makes one round of all texts that it is given: takes a text for each of them, or stops it.
    """
    texts = [Running(case) for case in cases]
    for _ in range(rounds):
        if running := [one for one in texts if not one.stopped]:
            step(running)
    done = f"all {rounds} rounds are done" if rounds > 1 else "the one round is done"
    return [Improved(one.case.draft, tuple(one.rounds), one.stopped or done) for one in texts]


def written_text(generation: Generation, *, one_line: bool) -> tuple[str, bool]:
    """(the text that counts of what a model wrote, whether it was cut at its limit)."""
    text = "".join(cleaned([generation.text], one_line))
    whole = one_line and text and "\n" in generation.text.strip()  # the line ended before the limit came
    return text, generation.finish == "length" and not whole


def text_limit(model: LanguageModel, prompt: Prompt, draft: str, wanted: int | None = None) -> int:
    """Tokens that the text after the prompt may have; 0 where there is no room for one as long as the draft.

    Args:
        wanted: at most so many; None: twice as many as the draft has, in steps of 64.
    """
    tokens = model.count(draft)
    wanted = wanted or -(-max(2 * tokens, 1) // _STEP) * _STEP
    room = model.context - model.count(prompt)
    return min(wanted, room) if room >= min(wanted, tokens + 1) else 0


def _plain(text: str) -> str:
    """What two texts that differ in blanks alone have in common."""
    return " ".join(text.split())
