"""The form of a text that is reasoned before it is written (arXiv 2501.04167, section 3.2).

A fixed cue opens it, then comes the reasoning, then a fixed bridge, then the answer: one pass of the model
yields both, and the answer can be cut out exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from penname.lm.base import Shape, Thinking

CUE = " What is known of the writer that matters here:\n"
BRIDGE = "\nSo the text that this writer would write is:\n"


@dataclass(frozen=True)
class Format:
    """How reasoning and answer are told apart; kept in a run's card."""

    cue: str = CUE
    bridge: str = BRIDGE
    budget: int = 128  # tokens before the answer, cue and bridge among them; then the bridge is forced

    @property
    def room(self) -> int:
        """Tokens of the budget that reasoning may have, with some 30 for cue and bridge left out."""
        return max(16, self.budget - 40)

    def thinking(self, shape: Shape) -> Thinking:
        """As a language model of that shape takes it: the cue need not be written, and cannot be missed."""
        # As `continuation` begins what is learnt.
        return Thinking(self.bridge, self.budget, self.cue if shape == "completion" else self.cue.lstrip())

    def join(self, reasoning: str, answer: str) -> str:
        """The text to learn: [cue; z; bridge; y]. A bridge inside the reasoning is taken out of it."""
        return f"{self.cue}{reasoning.replace(self.bridge.strip(), '').strip()}{self.bridge}{answer.strip()}"

    def split(self, text: str) -> tuple[str, str]:
        """Reasoning (without the cue) and answer; without a bridge all of it is reasoning."""
        before, _, answer = text.partition(self.bridge)
        return before.strip().removeprefix(self.cue.strip()).strip(), answer.strip()

    def answer(self, pieces: Iterable[str]) -> Iterator[str]:
        """The answer alone, piece by piece, of a text that comes piece by piece."""
        rest = iter(pieces)
        held = ""
        for piece in rest:
            held += piece
            _, bridge, answer = held.partition(self.bridge)
            if bridge:
                if answer:
                    yield answer
                yield from rest
                return
