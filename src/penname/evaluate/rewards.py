"""Rewards for self-training: parts of one's choice in a weighted sum, each value computed once and kept.

    reward = reward_of("similarity+0.5*chrf", store=store, requests=requests, embedder=load_embedder(),
                       kept=folder / "rewards.sqlite")
    values = reward.rewards([Answer(request, text)])

Implements `penname.methods.restpg.examples.Reward` (R of arXiv 2501.04167, eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from penname.errors import BadInputError, ModelError, UnknownMetricError
from penname.evaluate.judges import Note
from penname.evaluate.reward_parts import (
    Helpfulness,
    Judged,
    Lexical,
    Liked,
    Manners,
    Part,
    Similarity,
)
from penname.evaluate.scoring import Manner, learn_manner
from penname.lm.base import LanguageModel
from penname.methods.restpg.examples import Answer
from penname.paths import trained_dir
from penname.records import Request, digest
from penname.retrieve.base import Embedder
from penname.store import Store
from penname.tasks import PromptTexts, task
from penname.train.kept import Kept

PARTS = {
    "rouge1": "words in common with the real text",
    "rougeL": "longest sequence of words in common",
    "chrf": "runs of 1 to 6 characters in common",
    "similarity": "nearness in meaning: cosine of embeddings",
    "pmi": "share by which the answer lowers the real text's perplexity under a model",
    "style": "nearness of function words, punctuation and lengths to the author's own texts",
    "authorship": "share of other users that the answer is less like",
    "judge": "a judge's mark by the real text",
    "p-rm": "how the users like it beside the real text, by a trained reward: p-rm:DIR",
}
"""What a reward may be made of."""

BATCH = 64  # answers whose values are computed and kept at once: what a kill can lose

_HEAVIEST = 1e6  # a weight at most: sums of weights stay finite
_MANNERS = ("style", "authorship")


@dataclass(frozen=True)
class Term:
    """A part and its weight, as they were asked for."""

    part: str  # in PARTS
    weight: float = 1.0  # above 0; beside those of the other terms
    folder: str = ""  # of p-rm's run; "": where training puts it

    def __str__(self) -> str:
        name = f"{self.part}:{self.folder}" if self.folder else self.part
        return name if self.weight == 1 else f"{self.weight:g}*{name}"


def parse_reward(spec: str) -> tuple[Term, ...]:
    """The terms of a weighted sum such as "similarity+0.5*chrf" or "p-rm:runs/reward+judge".

    A folder's name must not hold a "+".

    Raises:
        UnknownMetricError: a part that is not in `PARTS`; the message offers the nearest.
        BadInputError: nothing is asked for, a part is named twice, or a weight is no number above 0.
    """
    terms = tuple(_term(one.strip(), spec) for one in spec.split("+"))
    names = [(term.part, term.folder) for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise BadInputError(f"the reward {spec!r} names {name[0]!r} twice: give it one weight")
    return terms


def _term(text: str, spec: str) -> Term:
    before, star, name = text.partition("*")
    if not star or ":" in before:  # a folder's name may hold a star
        before, name = "1", text
    name, _, folder = name.strip().partition(":")
    if not name:
        raise BadInputError(
            f"the reward {spec!r} lacks a part: one or more of {', '.join(PARTS)}, joined by +"
        )
    if name not in PARTS or (folder and name != "p-rm"):
        raise UnknownMetricError(f"{name}:{folder}" if folder else name, PARTS)
    try:
        weight = float(before)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= _HEAVIEST:
        raise BadInputError(
            f"the weight {before.strip()!r} of {name!r} is no number above 0 (and {_HEAVIEST:,.0f} at most)"
        )
    return Term(name, weight, folder)


def reward_of(
    spec: str,
    *,
    store: Store,
    requests: Sequence[Request],
    model: LanguageModel | None = None,
    embedder: Embedder | None = None,
    judge: LanguageModel | None = None,
    texts: PromptTexts | None = None,
    kept: Path | None = None,
    note: Note = lambda _: None,
) -> SumReward:
    """The reward that `spec` names (`parse_reward`), ready to be asked.

    Args:
        requests: all that answers will be given to, and all else that is held out: style and authorship are
            learnt from their users' texts before the first of each user's own.
        model: of pmi; one that scores.
        embedder: of similarity.
        judge: of judge. It must not judge what the reward trained: `SumReward.judges`.
        texts: the prompts of the judge; penname's own where None.
        kept: an SQLite file of values, made if it is not there; it holds hashes and numbers. None: values are
            not kept.
        note: told what a person should know.

    Raises:
        UnknownMetricError, BadInputError: as `parse_reward`; or what a part needs is not there: a model, or
            at least two users with texts.
        UnknownTaskError: style or authorship is asked for, and a request has no task that is known.
        TrainedError: p-rm's run cannot be used.
    """
    terms = parse_reward(spec)
    manners: dict[str, Manner] = {}
    if any(term.part in _MANNERS for term in terms):
        manners = _manners(store, requests)
        for name, manner in manners.items():
            if any(term.part == "authorship" for term in terms) and (trust := manner.trust(task(name))):
                note(trust)

    def part(term: Term) -> Part:
        if term.part == "similarity":
            return Similarity(_needed(embedder, term, "an embedder"))
        if term.part == "pmi":
            return Helpfulness(_needed(model, term, "a model that scores"), note)
        if term.part == "judge":
            return Judged(_needed(judge, term, "a judge"), texts or PromptTexts.load(), note)
        if term.part in _MANNERS:
            return Manners(term.part, manners)
        if term.part == "p-rm":
            return _liked(term.folder)
        return Lexical(term.part)

    return SumReward({term: part(term) for term in terms}, kept, note)


class SumReward:
    """The weighted mean of parts, from 0 to 1. Implements `penname.methods.restpg.examples.Reward`.

    A part that has nothing to say of an answer (style and authorship, where none of the authors has two texts
    of that kind from before) is left out of that answer's mean, which is counted in a note; where no part has
    anything to say, the answer gets 0, and so it teaches nothing.

    Args:
        parts: by the terms.
        kept: as of `reward_of`.
        note: as of `reward_of`.
    """

    def __init__(self, parts: Mapping[Term, Part], kept: Path | None, note: Note = lambda _: None) -> None:
        self._parts = parts
        self._kept = kept
        self._note = note
        self.name = "+".join(map(str, parts))
        self.fingerprint = digest([[term.weight, part.fingerprint] for term, part in parts.items()])
        self.judges = tuple(dict.fromkeys(judge for part in parts.values() for judge in part.judges))

    def rewards(
        self, answers: Sequence[Answer], progress: Callable[[int, int], None] = lambda *_: None
    ) -> list[float]:
        """From 0 to 1 for each answer; a blank one gets 0 unasked.

        Values come and are kept in batches of 64: a kill loses the batch in flight.

        Args:
            answers: what to reward.
            progress: called after each batch with the values that are there, of all parts, and how many are
                asked for.

        Raises:
            BadInputError: a request has no real text.
            ModelError: a model gives no number.
            TrainedError: the file of kept values is damaged, or cannot be written.
        """
        for one in answers:
            if not (one.request.gold or "").strip():
                raise BadInputError(f"the request {one.request.id!r} has no real text to reward answers by")
        texts = [Answer(one.request, one.text.strip()) for one in answers]
        asked = [i for i, one in enumerate(texts) if one.text]
        sums, weights = [0.0] * len(answers), [0.0] * len(answers)

        def tell(number: int, done: int) -> None:
            progress(number * len(asked) + done, len(self._parts) * len(asked))

        for number, (term, part) in enumerate(self._parts.items()):
            values = self._values(term, part, [texts[i] for i in asked], partial(tell, number))
            tell(number, len(asked))  # also where all of them were kept
            for i, value in zip(asked, values, strict=True):
                if value is not None:
                    sums[i] += term.weight * value
                    weights[i] += term.weight
        return [total / weight if weight else 0.0 for total, weight in zip(sums, weights, strict=True)]

    def _values(
        self, term: Term, part: Part, answers: Sequence[Answer], progress: Callable[[int], None]
    ) -> list[float | None]:
        """The part's value of each answer; None where it has nothing to say."""
        abouts = [part.about(one.request) for one in answers]
        keys = {i: (*about, answers[i].text) for i, about in enumerate(abouts) if about is not None}
        if silent := len(answers) - len(keys):
            self._note(
                f"{term.part} is left out of the reward of {silent:,} of {len(answers):,} answers: "
                "none of their authors has two texts of that kind from before"
            )
        by_key = {key: answers[i] for i, key in keys.items()}

        def compute(missing: Sequence[tuple[str, ...]]) -> Iterator[dict[int, float]]:
            for start in range(0, len(missing), BATCH):
                some = [by_key[key] for key in missing[start : start + BATCH]]
                yield dict(enumerate(_checked(term, part.values(some)), start))
                progress(len(answers) - len(missing) + start + len(some))

        found = Kept(self._kept, part.fingerprint).ask(list(keys.values()), compute)
        values: list[float | None] = [None] * len(answers)
        for i, value in zip(keys, found, strict=True):
            values[i] = value
        return values


def _checked(term: Term, values: Sequence[float]) -> Sequence[float]:
    for value in values:
        if not 0 <= value <= 1:  # nan, where a model's arithmetic broke down
            raise ModelError(f"the reward {term.part} came out as {value}, not as a number from 0 to 1")
    return values


def _manners(store: Store, requests: Sequence[Request]) -> dict[str, Manner]:
    """What is known of how users write, by task."""
    found = {}
    for name in dict.fromkeys(one.task for one in requests):
        try:
            found[name] = learn_manner(store, requests, task(name))
        except BadInputError as error:
            raise BadInputError(
                f"style and authorship cannot be a reward of the task {name!r}: {error}"
            ) from None
    return found


def _liked(folder: str) -> Liked:
    from penname.methods.prlhf.reward import open_reward

    return Liked(open_reward(Path(folder).expanduser() if folder else trained_dir("p-rm")))


T = TypeVar("T")


def _needed(given: T | None, term: Term, what: str) -> T:
    if given is None:
        raise BadInputError(f"the reward {term.part!r} needs {what}: give one or leave it out")
    return given
