"""What PIT is compared with: Self-Refine (arXiv 2303.17651), and the best of several texts by a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from penname.errors import BadInputError
from penname.lm import LanguageModel
from penname.lm.base import Sampling
from penname.methods.pit.form import STOP, Case
from penname.methods.pit.improve import Gaps
from penname.methods.pit.rounds import Improved, Running, run_rounds, text_limit, written_text
from penname.records import Message, Prompt, Round
from penname.tasks import PromptTexts, quote_tags
from penname.tasks.prompts import fill, quote_labels

_LABELS = ("Request", "Draft", "Feedback", "Revised")
_STOP = (*STOP, "\nFeedback:")  # a base-like model goes on with another example
_TOO_LONG = "the text is too long to be improved: it does not fit into the model's context"
_DONE = "nothing to improve"  # what the prompts ask for where a draft is to stay as it is


@dataclass(frozen=True)
class RefineConfig:
    """How texts are refined.

    Raises:
        BadInputError: a setting has a value that it cannot have.
    """

    rounds: int = 3  # at most; the paper's most is 4
    temperature: float = 0.7  # arXiv 2303.17651, section 3
    top_p: float = 0.95  # ours
    feedback_tokens: int = 160  # of what is said of a text; ours
    max_tokens: int | None = None  # of a new text; None: as `ImproveConfig`
    one_line: bool = False  # only the first line of a new text counts

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("rounds", "feedback_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInputError(f"{name}: {value}; at least 1")
        if not 0 <= self.temperature < math.inf:
            raise BadInputError(f"temperature: {self.temperature}; 0 or more")


class Refiner:
    """A language model that says what is to be better about a text, and then writes it so, round by round.

    No reward has a say: a round is always taken, and the model itself says when nothing is to be improved.
    """

    def __init__(self, model: LanguageModel, texts: PromptTexts) -> None:
        self.model = model
        self.texts = texts

    def improve(
        self, cases: Sequence[Case], config: RefineConfig = RefineConfig(), seed: int = 0
    ) -> list[Improved]:
        """What comes of each case's draft, in order; the same with each seed.

        A text stays as it stands when the next one is blank, is cut at its limit, or came before, and when
        it has no room in the model's context.
        """
        return run_rounds(cases, config.rounds, lambda running: self._round(running, config, seed))

    def _round(self, running: Sequence[Running], config: RefineConfig, seed: int) -> None:
        said = self._feedback(running, config, seed)
        by_limit: dict[int, list[Running]] = {}
        for one, feedback in said.items():
            prompt = self._prompt("refine", one.case, feedback=feedback)
            limit = text_limit(self.model, prompt, one.case.draft, config.max_tokens)
            if limit:
                by_limit.setdefault(limit, []).append(one)
            else:
                one.stop(_TOO_LONG, Round(text="", taken=False, feedback=feedback))
        for limit, some in by_limit.items():
            prompts = [self._prompt("refine", one.case, feedback=said[one]) for one in some]
            stop = _STOP if self.model.shape == "completion" else ()
            sampling = Sampling(limit, config.temperature, config.top_p, stop, seed)
            for one, [written] in zip(some, self.model.generate(prompts, 1, sampling), strict=True):
                text, cut = written_text(written, one_line=config.one_line)
                why = one.refusal(text, cut=cut)
                made = Round(text=text, taken=not why, feedback=said[one])
                if why:
                    one.stop(why, made)
                else:
                    one.take(made)

    def _feedback(self, running: Sequence[Running], config: RefineConfig, seed: int) -> dict[Running, str]:
        """What is to be better about each text; where nothing is said or nothing is to be, it is stopped."""
        asked = []
        for one in running:
            tokens = self.model.count(self._prompt("refine_feedback", one.case))
            if tokens + config.feedback_tokens > self.model.context:
                one.stop(_TOO_LONG)
            else:
                asked.append(one)
        stop = ("\n",) if self.model.shape == "completion" else ()
        sampling = Sampling(config.feedback_tokens, config.temperature, config.top_p, stop, seed)
        prompts = [self._prompt("refine_feedback", one.case) for one in asked]
        answers = self.model.generate(prompts, 1, sampling) if prompts else []
        said: dict[Running, str] = {}
        for one, [answer] in zip(asked, answers, strict=True):
            feedback, _ = written_text(answer, one_line=False)  # what is cut still says something
            if not feedback:
                one.stop(f"nothing was said of the text in round {one.number}")
            elif feedback.casefold().startswith(_DONE):
                one.stop(f"the model found nothing to improve in round {one.number}")
            else:
                said[one] = feedback
        return said

    def _prompt(self, name: str, case: Case, **more: str) -> Prompt:
        """One of the two questions; all that it is filled with is quoted as data."""
        about, request = case.about.strip(), case.request.strip()
        if self.model.shape == "chat":
            chat = self.texts.chat
            blocks = [f"<profile>\n{quote_tags(about)}\n</profile>"] if about else []
            if request:
                blocks.append(fill(chat["improve_request"], request=quote_tags(request)).strip())
            values = {key: quote_tags(text) for key, text in {"draft": case.draft, **more}.items()}
            asked = fill(chat[name], material="".join(f"{block}\n\n" for block in blocks), **values)
            return (
                Message(role="system", content=fill(chat["refine_system"])),
                Message(role="user", content=asked),
            )
        plain, openings = self.texts.completion, self.texts.openings

        def quoted(text: str) -> str:
            return quote_labels(text, _LABELS, openings)

        material = fill(plain["profile"], profile=quoted(about)).strip() + "\n\n" if about else ""
        if request:
            material += fill(plain["improve_request"], request=quoted(request)).strip() + "\n"
        values = {key: quoted(text) for key, text in {"draft": case.draft, **more}.items()}
        return fill(plain[name], material=material, **values)


class Reward(Protocol):
    """A plain reward, such as `penname.open_reward` gives."""

    def rewards(
        self, prompts: Sequence[Prompt], texts: Sequence[str], users: Sequence[str | None]
    ) -> list[float]:
        """How much each user likes each text as an answer to its prompt."""
        ...


def best_of(gap: Gaps, case: Case, texts: Sequence[str]) -> str:
    """The text with the greatest gap over the case's draft, the first of equals; blank ones do not count.

    The draft itself is no candidate, unless it is among the texts. Where all are blank it is returned.
    """
    some = _worded(texts)
    return _greatest(some, gap.gaps([case] * len(some), some) if some else [], case.draft)


def best_by_reward(reward: Reward, case: Case, texts: Sequence[str], user: str | None = None) -> str:
    """The text that a plain reward likes best as an answer to the case's request; else as `best_of`."""
    some = _worded(texts)
    values = reward.rewards([case.request] * len(some), some, [user] * len(some)) if some else []
    return _greatest(some, values, case.draft)


def _worded(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text.strip()))


def _greatest(texts: Sequence[str], values: Sequence[float], other: str) -> str:
    best = max(range(len(texts)), key=lambda place: (values[place], -place), default=None)
    return other if best is None else texts[best]
