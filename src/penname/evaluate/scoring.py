"""What is measured of a draft: its task's official metrics, and for texts what tells writers apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penname.errors import BadInputError, UnknownMetricError
from penname.evaluate.answers import answer_scores
from penname.evaluate.arms import Cast
from penname.evaluate.authorship import Authorship
from penname.evaluate.metrics import METRICS, Embedder, meteor_ready, similarity, text_scores
from penname.evaluate.style import StyleSpace, minority
from penname.records import Request
from penname.store import Store
from penname.tasks import Task
from penname.tasks.facts import words

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT = ("rouge1", "rouge2", "rougeL", "chrf", "similarity", "bits_per_byte", "style", "authorship", "words")
"""What is measured of every draft of a text, beside the task's own metrics."""
UNWRITTEN = ("bits_per_byte",)
"""Metrics that need the real text and the prompt, and no draft."""
JUDGED = ("judge", "win", "flips")
_DOCUMENTS = 20  # of a user, the newest, that style and authorship are learnt from
_USERS = 500  # whose documents these are learnt from at most: bounds memory
_LEAST = 2  # documents of a user that say something of a manner
_GROUPED = 4  # users below which none is a minority


def wanted(task: Task, asked: Sequence[str], judged: bool) -> tuple[str, ...]:
    """The names of the task's metrics, in the order of `METRICS`: those of `asked`, or all where it is empty.

    METEOR is left out where its data is not at hand and nobody asked for it by name.

    Raises:
        UnknownMetricError: a metric that is not there.
        BadInputError: a judge's metric without a judge.
    """
    for name in asked:
        if name not in METRICS:
            raise UnknownMetricError(name, METRICS)
        if name in JUDGED and not judged:
            raise BadInputError(f"the metric {name!r} needs a judge: name a model with --judge")
    usual = set(task.metrics) | (set(TEXT) if writes(task) else set())
    usual |= set(JUDGED) if judged and writes(task) else set()
    if "meteor" in usual and "meteor" not in asked and not meteor_ready():
        usual.remove("meteor")
    return tuple(name for name in METRICS if name in usual and (not asked or name in asked))


def writes(task: Task) -> bool:
    """Whether the task's answer is a text, and not one of a few labels."""
    return not task.choices and "accuracy" not in task.metrics


@dataclass(frozen=True)
class Manner:
    """What the users' own outputs of one task say of how they write. `learn_manner` makes one."""

    texts: Mapping[str, Sequence[str]]  # by user, the oldest first
    style: StyleSpace
    authorship: Authorship

    def author(self, users: Sequence[str]) -> str | None:
        """The first of the users whose manner is known."""
        return next((user for user in users if user in self.texts), None)

    def trust(self, task: Task) -> str:
        """How far authorship can be trusted, in a sentence; "" where that is unknown."""
        if self.authorship.check is None:
            return ""
        return (
            f"{task.name}: the authorship classifier knows {len(self.texts)} users; on real texts held out "
            f"from it, it scores {self.authorship.check:.3f} (0.5 is chance)"
        )


def learn_manner(store: Store, examples: Sequence[Request], task: Task) -> Manner:
    """Learnt from `own_texts` of the examples' users, the first 500 of them.

    Args:
        examples: all that are held out, of any task: none of their users' texts from then on is read.

    Raises:
        BadInputError: style and authorship cannot be told here; the message says why.
    """
    found = {user: own_texts(store, examples, user, task) for user in users_of(examples)}
    texts = {user: mine for user, mine in found.items() if len(mine) >= _LEAST}
    if len(texts) < 2:
        raise BadInputError(f"fewer than two users have {_LEAST} texts")
    return Manner(texts, StyleSpace.fit(texts), Authorship.fit(texts))


def users_of(examples: Sequence[Request]) -> list[str]:
    """Whose documents style and authorship are learnt from."""
    return list(dict.fromkeys(user for one in examples for user in one.users))[:_USERS]


def own_texts(store: Store, examples: Sequence[Request], user: str, task: Task | None) -> list[str]:
    """What the user wrote before the first of the user's examples, newest last; nothing held out and
    nothing without a word.

    With a task: what shows its output, so that titles are compared with titles.
    """
    mine = [one for one in examples if user in one.users]
    dates = [one.before for one in mine if one.before is not None]
    hidden = {name for one in mine for name in one.exclude}
    documents = store.user(user).documents(min(dates) if dates else None, hidden)
    if task is None:
        texts = [document.text for document in documents]
    else:
        texts = [pair[1] for document in documents if (pair := task.example(document)) is not None]
    return [text for text in texts if words(text)][-_DOCUMENTS:]


@dataclass
class Scorer:
    """Scores drafts against real texts. Manners are learnt from histories, once a task, on first use."""

    store: Store
    embedder: Embedder
    examples: Sequence[Request]
    cast: Cast
    remarks: list[str] = field(default_factory=list)
    _manners: dict[str, Manner | None] = field(default_factory=dict)

    def texts(
        self, task: Task, drafts: Sequence[tuple[Request, str]], metrics: Sequence[Sequence[str]]
    ) -> list[dict[str, float]]:
        """The scores of texts of one task that need no model, those of `metrics` that a draft lacks."""
        asked = [name for name in METRICS if any(name in one for one in metrics)]
        pairs = [(text, request.gold or "") for request, text in drafts]
        if not writes(task):
            answers = [task.parse(text, request.options) for request, text in drafts]
            return answer_scores(answers, [gold.strip() for _, gold in pairs], asked, task.choices)
        # The papers of LaMP and LongLaMP compare words as they are; the others compare stems.
        plain = [name for name in asked if name != "similarity"]
        scores = text_scores(pairs, None, plain, stemmed=not task.item)
        if "style" in asked or "authorship" in asked:
            self._manner_scores(task, drafts, asked, scores)
        return scores

    def similarities(self, drafts: Sequence[tuple[Request, str]]) -> list[dict[str, float]]:
        """How near each draft comes to its real text in meaning, by the embedder."""
        pairs = [(text, request.gold or "") for request, text in drafts]
        return [{"similarity": value} for value in similarity(pairs, self.embedder)]

    def groups(self) -> dict[str, str]:
        """Whether each user writes "like most" or "unlike most", by the users' own documents."""
        found = {user: own_texts(self.store, self.examples, user, None) for user in users_of(self.examples)}
        texts = {user: mine for user, mine in found.items() if mine}
        if len(texts) < _GROUPED:
            return {}
        try:
            return minority(texts)
        except BadInputError as error:
            self._remark(f"users are not told apart by style: {error}")
            return {}

    def _manner_scores(
        self,
        task: Task,
        drafts: Sequence[tuple[Request, str]],
        asked: Sequence[str],
        scores: list[dict[str, float]],
    ) -> None:
        if task.name not in self._manners:
            self._manners[task.name] = self._learn(task)
        manner = self._manners[task.name]
        if manner is None:
            return
        places, users = [], []
        for place, (request, _) in enumerate(drafts):
            author = manner.author(self.cast.authors(request))
            if author is not None:
                places.append(place)
                users.append(author)
        texts = [drafts[place][1] for place in places]
        if "style" in asked:
            found = manner.style.distances(texts, [manner.texts[user] for user in users])
            for place, value in zip(places, found, strict=True):
                scores[place]["style"] = value
        if "authorship" in asked:
            found = manner.authorship.scores(texts, users)
            for place, value in zip(places, found, strict=True):
                scores[place]["authorship"] = value

    def _learn(self, task: Task) -> Manner | None:
        try:
            manner = learn_manner(self.store, self.examples, task)
        except BadInputError as error:
            self._remark(f"{task.name}: style and authorship are left out: {error}")
            return None
        if trust := manner.trust(task):
            self._remark(trust)
        return manner

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)
