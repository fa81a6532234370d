"""How a text to improve is put to a model: the same for the policy and for the gap reward.

The policy goes on after the prompt with a better text, and the gap reward reads a text in that place and says
by how much it is better than the draft (arXiv 2310.00898, section 3: π(y | x, y_ref) and r(x, y, y_ref)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penname.lm.base import Shape
from penname.records import Message, Prompt
from penname.tasks import PromptTexts, continuation, quote_tags
from penname.tasks.prompts import fill, quote_labels
from penname.train.preferences.data import Pair
from penname.train.preferences.prompts import as_text

STOP = ("\nRequest:", "\nDraft:", "\nRevised:", "\nAbout the writer")
"""What ends an improved text, where a model of completion shape goes on with another example."""

_LABELS = ("Request", "Draft", "Revised")


@dataclass(frozen=True)
class Case:
    """A text to improve: y_ref, what it was written for, and text about whom it is to suit."""

    request: str  # x; "" where it is not known
    draft: str
    about: str = ""  # such as a profile's text

    @classmethod
    def of(cls, pair: Pair, draft: str) -> Case:
        """The case of a preference's prompt, and of one of its answers as the draft."""
        return cls(as_text(pair.prompt), draft, pair.about)


@dataclass(frozen=True)
class Form:
    """Puts cases and texts to a model of one shape."""

    shape: Shape
    texts: PromptTexts

    def prompt(self, case: Case) -> Prompt:
        """What comes before the better text. Request, draft and text about the writer are quoted as data."""
        about, request, draft = case.about.strip(), case.request.strip(), case.draft.strip()
        if self.shape == "chat":
            material = [f"<profile>\n{quote_tags(about)}\n</profile>"] if about else []
            if request:
                material.append(fill(self.texts.chat["improve_request"], request=quote_tags(request)).strip())
            asked = fill(
                self.texts.chat["improve"],
                material="".join(f"{block}\n\n" for block in material),
                draft=quote_tags(draft),
            )
            return (
                Message(role="system", content=fill(self.texts.chat["improve_system"])),
                Message(role="user", content=asked),
            )
        blocks = [fill(self.texts.completion["profile"], profile=self._quoted(about))] if about else []
        if request:
            blocks.append(fill(self.texts.completion["improve_request"], request=self._quoted(request)))
        blocks.append(fill(self.texts.completion["improve"], draft=self._quoted(draft)))
        return "\n\n".join(block.strip() for block in blocks)

    def answer(self, text: str) -> str:
        """A text as the model goes on with it after `prompt`."""
        return continuation(text, self.shape)

    @property
    def stop(self) -> Sequence[str]:
        """What ends a text that is being written."""
        return STOP if self.shape == "completion" else ()

    def _quoted(self, text: str) -> str:
        return quote_labels(text, _LABELS, self.texts.openings)
