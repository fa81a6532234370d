"""A language model as judge of drafts, by the user's real text: an anchored score, or the better of two.

A judge answers with one digit, and its probabilities decide, not a text that it writes. What it reads is
quoted as data; where a case does not fit into its context, all its texts are cut to one length, and that is
said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from penname.errors import BadInputError, JudgeNotIndependentError, PromptTooLongError
from penname.lm import LanguageModel
from penname.records import Message, Prompt
from penname.tasks.prompts import PromptTexts, fill, quote_labels, quote_tags, shorten

# The anchors 1, 3, 5, 7 and 10, put to the judge as the marks 1 to 5: to many models "10" is the tokens "1"
# and "0", and could then never be likelier than "1".
ANCHORS = (0.1, 0.3, 0.5, 0.7, 1.0)
_MARKS = tuple(str(mark) for mark in range(1, len(ANCHORS) + 1))
_DRAFTS = ("1", "2")

_LABELS = ("Request", "Real text", "Draft", "Draft 1", "Draft 2", "Mark", "Closer")  # of the completion texts
_ANSWER = 8  # tokens kept free for the answer
_LEAST = 200  # characters of a text below which nothing can be judged

Note = Callable[[str], None]
"""Takes what a reader of the figures must know, in words."""


@dataclass(frozen=True)
class Case:
    """One draft to score. `request` is what was asked: the task's instruction and its input."""

    request: str
    gold: str  # what the user really wrote
    draft: str


@dataclass(frozen=True)
class Duel:
    """Two drafts of one request to compare."""

    request: str
    gold: str  # what the user really wrote
    first: str
    second: str


@dataclass(frozen=True)
class Verdict:
    """Which of two drafts is nearer to the real text; `flipped`: the answer hung on their order."""

    winner: Literal["first", "second", "tie"]
    flipped: bool = False

    @property
    def win(self) -> float:
        """Of the first draft: 1 won, 0.5 tie, 0 lost."""
        return {"first": 1.0, "tie": 0.5, "second": 0.0}[self.winner]


def anchored(judge: LanguageModel, cases: Sequence[Case], texts: PromptTexts, note: Note) -> list[float]:
    """How near each draft comes to the real text: one of `ANCHORS`, in the cases' order.

    The score is the anchor of highest probability, divided by 10 (REST-PG, arXiv 2501.04167): 0.1 unrelated,
    1.0 perfect. Of equally probable ones the lowest counts, and a blank draft has the lowest unasked. A judge
    behind a server may answer something that is no mark at all: 0, which is counted and told.

    Raises:
        BadInputError: a case without a real text.
        PromptTooLongError: the judge's context leaves hardly any room for the texts.
    """
    _check_golds([case.gold for case in cases])
    asked = [i for i, case in enumerate(cases) if case.draft.strip()]
    fits = [
        _fitted(judge, texts, "judge_anchored", [{"request": c.request, "gold": c.gold, "draft": c.draft}])
        for c in (cases[i] for i in asked)
    ]
    _tell(judge, [cut for _, cut in fits], note)
    answers = judge.choose([prompt for [prompt], _ in fits], [_MARKS] * len(asked))
    scores = [ANCHORS[0]] * len(cases)
    for i, chances in zip(asked, answers, strict=True):
        scores[i] = ANCHORS[chances.index(max(chances))] if any(chances) else 0.0
    _tell_mute(answers, "gave no mark", "0", note)
    return scores


def pairwise(judge: LanguageModel, duels: Sequence[Duel], texts: PromptTexts, note: Note) -> list[Verdict]:
    """Which draft of each duel is nearer to the real text; an answer that flips with their order is a tie.

    Not asked: the same text twice is a tie, and a blank draft loses. An answer that names neither draft is a
    tie, which is counted and told.

    Raises:
        BadInputError: a duel without a real text.
        PromptTooLongError: the judge's context leaves hardly any room for the texts.
    """
    _check_golds([duel.gold for duel in duels])
    found = [_plain(duel) for duel in duels]
    asked = [i for i, verdict in enumerate(found) if verdict is None]
    fits = []
    for duel in (duels[i] for i in asked):
        both = ((duel.first, duel.second), (duel.second, duel.first))
        orders = [{"request": duel.request, "gold": duel.gold, "draft_1": a, "draft_2": b} for a, b in both]
        fits.append(_fitted(judge, texts, "judge_pairwise", orders))
    _tell(judge, [cut for _, cut in fits], note)
    prompts = [prompt for pair, _ in fits for prompt in pair]
    answers = judge.choose(prompts, [_DRAFTS] * len(prompts))
    for at, i in enumerate(asked):
        straight, (one, other) = answers[2 * at], answers[2 * at + 1]
        found[i] = _verdict(_winner(straight), _winner([other, one]))
    _tell_mute(answers, "named neither draft", "a tie", note)
    return [verdict for verdict in found if verdict is not None]


def flip_rate(verdicts: Sequence[Verdict]) -> float:
    """Share of the verdicts, of those not asked too, that hung on the order; 0 where there are none."""
    return sum(verdict.flipped for verdict in verdicts) / len(verdicts) if verdicts else 0.0


def check_independent(judge: str, rewards: Collection[str], force: bool = False) -> str:
    """What must stand beside figures of this judge: "" where it gave no reward in training.

    Args:
        judge: the judge's fingerprint.
        rewards: fingerprints of all models that gave a reward to a model under test.
        force: go on with a judge that did.

    Raises:
        JudgeNotIndependentError: the judge gave a reward, and `force` is not set.
    """
    if judge not in rewards:
        return ""
    if not force:
        raise JudgeNotIndependentError(
            f"the judge ({judge[:12]}) also gave the reward in training, so its figures would flatter what "
            "it rewarded: name another judge, or force this one, and the figures will be marked"
        )
    return "the judge also gave the reward in training (forced): its figures flatter what it rewarded"


def _check_golds(golds: Sequence[str]) -> None:
    for number, gold in enumerate(golds, start=1):
        if not gold.strip():
            raise BadInputError(f"case {number} of {len(golds)} has no real text, so nothing to judge it by")


def _plain(duel: Duel) -> Verdict | None:
    """The verdict that needs no judge; None where one does."""
    first, second = duel.first.strip(), duel.second.strip()
    if first == second:
        return Verdict("tie")
    if not first or not second:
        return Verdict("first" if first else "second")
    return None


def _winner(chances: Sequence[float]) -> Literal["first", "second", "tie"]:
    first, second = chances
    if first == second:
        return "tie"
    return "first" if first > second else "second"


def _verdict(one: Literal["first", "second", "tie"], other: Literal["first", "second", "tie"]) -> Verdict:
    return Verdict(one) if one == other else Verdict("tie", flipped=True)


def _fitted(
    judge: LanguageModel, texts: PromptTexts, name: str, forms: Sequence[dict[str, str]]
) -> tuple[list[Prompt], bool]:
    """A prompt for each form, and whether texts were cut: all to one length, the longest at which all fit.

    So each text has an equal share of the room, and what a short one leaves goes to the others. The forms are
    the orders of one case: they are cut alike.
    """
    room = judge.context - _ANSWER

    def prompts(limit: int) -> list[Prompt]:
        return [_prompt(judge, texts, name, {k: shorten(v, limit) for k, v in f.items()}) for f in forms]

    def fit(limit: int) -> bool:
        return all(judge.count(prompt) <= room for prompt in prompts(limit))

    longest = max(len(text) for form in forms for text in form.values())
    if fit(longest):
        return prompts(longest), False
    if not fit(min(_LEAST, longest)):
        raise PromptTooLongError(
            f"the judge {judge.name} has a context of {judge.context:,} tokens, too few to read {_LEAST} "
            "characters of each text: use a judge with a longer context"
        )
    fits, exceeds = min(_LEAST, longest), longest
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        fits, exceeds = (middle, exceeds) if fit(middle) else (fits, middle)
    return prompts(fits), True


def _prompt(judge: LanguageModel, texts: PromptTexts, name: str, values: dict[str, str]) -> Prompt:
    if judge.shape == "completion":
        quoted = {key: quote_labels(text, _LABELS) for key, text in values.items()}
        return fill(texts.completion[name], **quoted)
    quoted = {key: quote_tags(text) for key, text in values.items()}
    return (
        Message(role="system", content=fill(texts.chat["judge_system"])),
        Message(role="user", content=fill(texts.chat[name], **quoted)),
    )


def _tell(judge: LanguageModel, cut: Sequence[bool], note: Note) -> None:
    if any(cut):
        note(
            f"the judge read {sum(cut):,} of {len(cut):,} cases with their texts shortened, to fit its "
            f"context of {judge.context:,} tokens"
        )


def _tell_mute(answers: Sequence[Sequence[float]], what: str, rule: str, note: Note) -> None:
    if mute := sum(not any(chances) for chances in answers):
        note(f"the judge {what} in {mute:,} of {len(answers):,} answers: each counts as {rule}")
