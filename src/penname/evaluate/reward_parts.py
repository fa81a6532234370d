"""What a reward is made of: each part says from 0 to 1 how near an answer comes to what its user wrote.

A part sees the answer alone and the real text, never the prompt or the reasoning. `penname.evaluate.rewards`
weighs parts against one another and keeps their values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from penname.errors import PromptTooLongError
from penname.evaluate.judges import ANCHORS, Case, Note, anchored
from penname.evaluate.metrics import similarity, text_scores
from penname.evaluate.scoring import Manner
from penname.lm.base import LanguageModel
from penname.methods.restpg.examples import Answer
from penname.records import Message, Prompt, Request, digest
from penname.retrieve.base import Embedder
from penname.tasks import PromptTexts, continuation, task
from penname.tasks.prompts import quote_labels, quote_tags, shorten

if TYPE_CHECKING:
    from penname.methods.prlhf.rerank import Reward as LikedReward

DRAFT = "A draft"
REAL = "The text itself"
_ASK = "Write the text itself."


class Part(Protocol):
    """One of the numbers that a reward is the weighted mean of."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides the values, beside the answer and what `about` tells."""
        ...

    @property
    def judges(self) -> tuple[str, ...]:
        """Fingerprints of the models that give it."""
        ...

    def about(self, request: Request) -> tuple[str, ...] | None:
        """What of the request the value hangs on; None: this part has nothing to say of its answers."""
        ...

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """From 0 to 1, one for each answer; none is blank, and all are of requests that `about` knows."""
        ...


class Lexical:
    """ROUGE-1, ROUGE-L or chrF (divided by 100) of answer and real text, as evaluations compute it.

    ROUGE compares words as they are in the tasks of LaMP and LongLaMP, as their papers do, and else stems.
    """

    judges = ()

    def __init__(self, metric: str) -> None:
        self._metric = metric
        library = "sacrebleu" if metric == "chrf" else "rouge-score"
        self.fingerprint = digest([metric, version(library)])

    def about(self, request: Request) -> tuple[str, ...]:
        """As `Part.about`."""
        return _gold(request), "stems" if self._stemmed(request) else "words"

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """As `Part.values`."""
        found = [0.0] * len(answers)
        for stemmed in (True, False):
            places = [i for i, one in enumerate(answers) if self._stemmed(one.request) == stemmed]
            pairs = [(answers[i].text, _gold(answers[i].request)) for i in places]
            scores = text_scores(pairs, metrics=[self._metric], stemmed=stemmed)
            for i, score in zip(places, scores, strict=True):
                found[i] = _clipped(score[self._metric] / (100 if self._metric == "chrf" else 1))
        return found

    def _stemmed(self, request: Request) -> bool:
        return self._metric != "chrf" and not task(request.task).item


class Similarity:
    """Nearness in meaning: the cosine of the two texts' embeddings, and 0 where it is negative."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.fingerprint = digest(["similarity", embedder.fingerprint])
        self.judges = (embedder.fingerprint,)

    def about(self, request: Request) -> tuple[str, ...]:
        """As `Part.about`."""
        return (_gold(request),)

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """As `Part.values`."""
        pairs = [(one.text, _gold(one.request)) for one in answers]
        return [_clipped(value) for value in similarity(pairs, self._embedder)]


class Helpfulness:
    """How much the answer helps a model to expect the real text: their pointwise mutual information.

        pmi = (log p(y | ŷ) − log p(y)) / tokens of y        value = 1 − exp(−max(0, pmi))

    which is the share by which the answer lowers the real text's perplexity: 0 where it does not help, and 1
    where nothing is left to guess. The model reads the answer as a draft, and the real text after it; without
    an answer the same form without the draft.

    Where both do not fit into the model's context, the real text is cut to half of the room, and the answer
    to what that leaves; this is told once. PromptTooLongError where that leaves nothing.
    """

    def __init__(self, model: LanguageModel, note: Note) -> None:
        self._model = model
        self._note = _Once(note)
        forms = [_form(shape, draft) for shape in ("completion", "chat") for draft in ("", "…")]
        self.fingerprint = digest(["pmi", model.fingerprint, model.context, model.shape, str(forms)])
        self.judges = (model.fingerprint,)
        self._alone: dict[str, float] = {}  # log p(y), by the real text as it is read

    def about(self, request: Request) -> tuple[str, ...]:
        """As `Part.about`."""
        return (_gold(request),)

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """As `Part.values`."""
        golds = {gold: self._cut_gold(gold) for gold in {_gold(one.request) for one in answers}}
        real = [golds[_gold(one.request)] for one in answers]
        new = [gold for gold in dict.fromkeys(real) if gold not in self._alone]
        prompts = [_form(self._model.shape, "") for _ in new]
        prompts += [self._with_draft(one.text, gold) for one, gold in zip(answers, real, strict=True)]
        scores = self._model.score(prompts, [self._completion(gold) for gold in (*new, *real)])
        self._alone |= {gold: score.total for gold, score in zip(new, scores, strict=False)}
        return [
            _share((score.total - self._alone[gold]) / max(score.tokens, 1))
            for gold, score in zip(real, scores[len(new) :], strict=True)
        ]

    def _completion(self, gold: str) -> str:
        return continuation(gold, self._model.shape)

    def _cut_gold(self, gold: str) -> str:
        half = (self._model.context - self._model.count(_form(self._model.shape, ""))) // 2
        return self._cut(gold, lambda text: self._model.count(self._completion(text)) <= half)

    def _with_draft(self, draft: str, gold: str) -> Prompt:
        room = self._model.context - self._model.count(self._completion(gold))
        kept = self._cut(draft, lambda text: self._model.count(_form(self._model.shape, text)) <= room)
        return _form(self._model.shape, kept)

    def _cut(self, text: str, fits: Callable[[str], bool]) -> str:
        """The longest beginning of the text that fits, ended after a whole word."""
        if fits(text):
            return text
        self._note(
            f"pmi: texts were cut that do not fit into the context of {self._model.context:,} tokens "
            f"of {self._model.name}"
        )
        low, high = 0, len(text)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(shorten(text, middle)) else (low, middle)
        if not low:
            raise PromptTooLongError(
                f"pmi: the context of {self._model.name} has {self._model.context:,} tokens, too few to read "
                "an answer and a real text: use a model with a longer context"
            )
        return shorten(text, low)


class Manners:
    """Whether the answer is in its author's manner, as the author's own earlier texts show it.

    "style": 1 / (1 + D), D being `penname.evaluate.style`'s distance to these texts. "authorship": the share
    of the other users that the answer is less like, 0.5 being chance (`penname.evaluate.authorship`).

    The author is the first of the request's whose texts are known; where there is none, it says nothing.

    Args:
        metric: "style" or "authorship".
        manners: by the tasks' names.
    """

    judges = ()

    def __init__(self, metric: str, manners: Mapping[str, Manner]) -> None:
        self._metric = metric
        self._manners = manners
        texts = {name: {user: [*own] for user, own in one.texts.items()} for name, one in manners.items()}
        self.fingerprint = digest([metric, texts])

    def about(self, request: Request) -> tuple[str, ...] | None:
        """As `Part.about`."""
        manner = self._manners.get(request.task)
        author = manner.author(request.users) if manner else None
        return None if author is None else (request.task, author)

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """As `Part.values`."""
        places: dict[str, list[int]] = {}
        for i, one in enumerate(answers):
            places.setdefault(one.request.task, []).append(i)
        found = [0.0] * len(answers)
        for name, mine in places.items():
            manner = self._manners[name]
            texts = [answers[i].text for i in mine]
            authors = [manner.author(answers[i].request.users) or "" for i in mine]
            if self._metric == "authorship":
                values = manner.authorship.scores(texts, authors)
            else:
                far = manner.style.distances(texts, [manner.texts[author] for author in authors])
                values = [1 / (1 + distance) for distance in far]
            for i, value in zip(mine, values, strict=True):
                found[i] = value
        return found


class Judged:
    """The anchor that a judge finds most probable (`judges.anchored`; arXiv 2501.04167): 0.1 to 1.

    A judge is asked for the probabilities of its five marks. Where it has no opinion, and all marks are
    equally probable, the lowest counts: 0.1 for every answer, a reward that is constant and teaches nothing.
    Where a server's judge answers something that is no mark, the reward is 0, from which nothing is learnt.
    Texts that do not fit are cut as `anchored` does. Both are told once.
    """

    def __init__(self, judge: LanguageModel, texts: PromptTexts, note: Note) -> None:
        self._judge = judge
        self._texts = texts
        self._note = _Once(lambda text: note(f"{text} (of one batch; there may be more)"))
        self.fingerprint = digest(["judge", judge.fingerprint, judge.context, texts.fingerprint, ANCHORS])
        self.judges = (judge.fingerprint,)

    def about(self, request: Request) -> tuple[str, ...]:
        """As `Part.about`."""
        return task(request.task).instruction, request.input, _gold(request)

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """As `Part.values`."""
        cases = []
        for one in answers:
            instruction, asked, gold = self.about(one.request)
            cases.append(Case(f"{instruction}\n{asked}", gold, one.text))
        return anchored(self._judge, cases, self._texts, self._note)


class Liked:
    """How well the request's users like the answer, by a trained reward r (P-RM or P-DPO):

        value = min(1, 2 σ(r(ŷ) − r(y)))

    with r the mean over the users. Rewards have no scale of their own, but by Bradley and Terry's model, by
    which they are trained, σ of a difference is the probability that the one text is preferred to the other.
    So an answer that is as good as the real text, preferred to it every second time, gets 1, and one that is
    preferred every fourth time 0.5. What is liked better than the real text gets no more than 1: to go beyond
    it is where a trained reward is more likely wrong than right.

    A user whom the run does not know has the generic user's taste, as everywhere.
    """

    def __init__(self, reward: LikedReward) -> None:
        self._reward = reward
        self.fingerprint = digest(["p-rm", reward.fingerprint])
        self.judges = (reward.fingerprint,)
        self._golds: dict[tuple[str, ...], float] = {}  # r(y), by `about`

    def about(self, request: Request) -> tuple[str, ...]:
        """As `Part.about`."""
        # A key holds nothing of the user's, but changes where the user's own part does.
        own = (word for user in request.users for word in (user, self._reward.key(user)))
        return request.input, _gold(request), *own

    def values(self, answers: Sequence[Answer]) -> list[float]:
        """As `Part.values`."""
        abouts = [self.about(one.request) for one in answers]
        new = {
            about: Answer(one.request, _gold(one.request))
            for about, one in zip(abouts, answers, strict=True)
            if about not in self._golds
        }
        found = self._means([*new.values(), *answers])
        self._golds |= dict(zip(new, found, strict=False))
        return [
            _clipped(2 * _logistic(value - self._golds[about]))
            for value, about in zip(found[len(new) :], abouts, strict=True)
        ]

    def _means(self, answers: Sequence[Answer]) -> list[float]:
        """r of each: the mean of its users' rewards."""
        asked = [(one, user) for one in answers for user in one.request.users]
        given = iter(
            self._reward.rewards(
                [one.request.input for one, _ in asked],
                [one.text for one, _ in asked],
                [user for _, user in asked],
            )
        )
        return [sum(next(given) for _ in one.request.users) / len(one.request.users) for one in answers]


class _Once:
    """Tells each thing that it is told once; what differs in its numbers alone is the same."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._told: set[str] = set()

    def __call__(self, text: str) -> None:
        kind = re.sub(r"\d[\d,]*", "", text)
        if kind not in self._told:
            self._told.add(kind)
            self._note(text)


def _gold(request: Request) -> str:
    return (request.gold or "").strip()


def _form(shape: str, draft: str) -> Prompt:
    """What the real text follows: a draft of it, or nothing where that is ""; the draft is quoted as data."""
    if shape == "completion":
        quoted = quote_labels(draft, (DRAFT, REAL))
        return f"{DRAFT}: {quoted}\n\n{REAL}:" if quoted else f"{REAL}:"
    quoted = quote_tags(draft)
    given = f"{DRAFT} of a text:\n<document>\n{quoted}\n</document>\n\n" if quoted else ""
    return (Message(role="user", content=f"{given}{_ASK}"),)


def _share(gain: float) -> float:
    """By what share a gain in nats lowers a perplexity; 0 where it is no gain, and nan stays."""
    return 0.0 if gain <= 0 else -math.expm1(-gain)


def _clipped(value: float) -> float:
    """The nearest number from 0 to 1; nan stays, for `SumReward` to refuse."""
    return value if math.isnan(value) else min(1.0, max(0.0, value))


def _logistic(x: float) -> float:
    """σ(x), also far out, where exp(−x) would overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
