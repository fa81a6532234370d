"""Step-Back Profiling (arXiv 2406.14275): distil each history into a concise profile, kept and versioned.

A profile is made again only when the history, the model or the texts of the questions have changed; then only
the parts that are new are asked. Users are profiled in batches: all their questions go to the model together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from penname.errors import BadInputError, EmptyHistoryError
from penname.lm.base import LanguageModel, Sampling
from penname.methods.stepback.config import StepBackConfig
from penname.methods.stepback.facts import own_words
from penname.methods.stepback.gist import Gister, Part
from penname.methods.stepback.parse import Gist
from penname.records import Document, Profile, digest
from penname.store import Store, UserStore
from penname.tasks import PromptTexts
from penname.tasks.facts import describe_length, describe_manner, favoured_words, habits, measure

WINDOW = 32  # histories whose questions are asked together: bounds memory, and what a kill can lose


@dataclass(frozen=True)
class History:
    """The documents a profile is made of: a user's, `before` a moment, without those in `exclude`."""

    user: str
    before: datetime | None = None
    exclude: tuple[str, ...] = ()


@dataclass
class _Work:
    """A history on its way to a profile."""

    history: History
    user: UserStore
    ids: tuple[str, ...]  # of the documents, when a stored profile was looked for
    fingerprint: str
    whole: bool  # all that the user ever wrote
    documents: list[Document] = field(default_factory=list)  # read where a profile must be made
    parts: list[Part] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    profile: Profile | None = None


def profile_histories(
    store: Store,
    model: LanguageModel,
    histories: Sequence[History],
    *,
    texts: PromptTexts | None = None,
    config: StepBackConfig = StepBackConfig(),
    refresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Profile]:
    """The profile of each history, in order: the stored one where nothing has changed, else a new one.

    A profile that its user has edited stays the one in use until `refresh` is given; a history with a
    moment `before` or with exclusions never uses it, as it may know what came later.

    Args:
        refresh: make every profile anew, asking the model again, edited ones too (the edited version stays
            in the store).
        progress: called with (histories done, histories in all).
        note: called with a sentence where something is worth saying (an edited profile that lags behind).

    Raises:
        UnknownUserError: no such user.
        EmptyHistoryError: a history holds no document.
    """
    gister = Gister(model, texts or PromptTexts.load(), config)
    say = note or (lambda _: None)
    done: list[Profile] = []
    for start in range(0, len(histories), WINDOW):
        window = [_open(store, history, gister) for history in histories[start : start + WINDOW]]
        for work in window:
            work.profile = _kept(work, refresh, say)
        open_work = [work for work in window if work.profile is None]
        for work in open_work:
            _read(work, gister)
        _gist(gister, open_work, refresh)
        for work in open_work:
            work.profile = _store(gister, work, say)
        done.extend(work.profile for work in window if work.profile is not None)
        if progress:
            progress(len(done), len(histories))
    return done


def edit_profile(store: Store, user: str, text: str) -> Profile:
    """Store `text` as the profile of `user`, marked as edited; it is in use from now on.

    Raises:
        UnknownUserError: no such user.
        BadInputError: the text is blank.
    """
    if not text.strip():
        raise BadInputError(f"the profile of {user!r} would be empty: nothing was changed")
    opened = store.user(user)
    latest = opened.profile() or Profile(user=user, text=text)
    update = {
        "text": text.strip(),
        "edited": True,
        "created_at": datetime.now(UTC),
        "documents": tuple(opened.contents()),
        "fingerprint": "",  # no history makes this profile again
    }
    return opened.add_profile(latest.model_copy(update=update))


def _open(store: Store, history: History, gister: Gister) -> _Work:
    user = store.user(history.user)
    contents = user.contents(history.before, history.exclude)
    if not contents:
        raise _nothing(history)
    fingerprint = _fingerprint(gister, contents.values())
    narrowed = history.before is not None or bool(history.exclude)
    whole = not narrowed or len(contents) == user.count
    return _Work(history, user, tuple(contents), fingerprint, whole)


def _read(work: _Work, gister: Gister) -> None:
    """Read the documents; they may be others by now."""
    work.documents = work.user.documents(work.history.before, work.history.exclude)
    if not work.documents:
        raise _nothing(work.history)
    work.fingerprint = _fingerprint(gister, (document.content_hash for document in work.documents))


def _fingerprint(gister: Gister, contents: Iterable[str]) -> str:
    return digest([gister.fingerprint, list(contents)])


def _nothing(history: History) -> EmptyHistoryError:
    when = f" before {history.before.isoformat()}" if history.before else ""
    return EmptyHistoryError(
        f"user {history.user!r} has no documents{when}: import some with `penname import`, "
        "or write without a profile (--method none)"
    )


def _kept(work: _Work, refresh: bool, say: Callable[[str], None]) -> Profile | None:
    """The stored profile that serves, if one does."""
    if refresh:
        return None
    if work.whole:
        latest = work.user.profile()
        if latest is not None and latest.edited:
            if latest.documents != work.ids:
                say(
                    f"the profile of {work.history.user!r} was edited by hand and its history has changed "
                    "since: it is used as it is (--refresh makes a new one)"
                )
            return latest
        if latest is not None and latest.fingerprint == work.fingerprint:
            return latest
    stored = work.user.profile(work.fingerprint)
    return None if stored is None or stored.edited else stored


def _gist(gister: Gister, works: Sequence[_Work], again: bool) -> None:
    """Fill in every work's answers: map, then (chat models) reduce until one note is left."""
    for work in works:
        work.parts = gister.parts(work.documents)
    _ask(gister, works, again)
    if gister.model.shape == "completion":
        return
    while unmerged := [work for work in works if len(work.answers) > 1]:
        for work in unmerged:
            work.parts = gister.merge(work.answers)
        _ask(gister, unmerged, again)


def _ask(gister: Gister, works: Sequence[_Work], again: bool) -> None:
    """Answer all parts of all works, from what is kept (unless `again`), else in one batch, and keep that."""
    users = {work.user.id: work.user for work in works}
    parts: dict[str, dict[str, Part]] = {name: {} for name in users}  # a user may have several histories here
    for work in works:
        parts[work.user.id].update({part.key: part for part in work.parts})
    known = {name: {} if again else users[name].gists(of_user) for name, of_user in parts.items()}
    wanted = [
        (name, part)
        for name, of_user in parts.items()
        for part in of_user.values()
        if part.key not in known[name]
    ]
    sampling = Sampling(
        max_tokens=gister.answer_tokens, temperature=gister.config.temperature, top_p=1.0, stop=gister.stop
    )
    # Co-authors have documents in common: a question about one is asked once, as its answer is the same.
    questions = list(dict.fromkeys(part.prompt for _, part in wanted))
    answers = gister.model.generate(questions, 1, sampling) if questions else []
    texts_by_question = {
        question: answer.text.strip() for question, [answer] in zip(questions, answers, strict=True)
    }
    fresh: dict[str, dict[str, str]] = {}
    for name, part in wanted:
        fresh.setdefault(name, {})[part.key] = texts_by_question[part.prompt]
    for name, texts in fresh.items():
        users[name].put_gists(texts)
        known[name].update(texts)
    for work in works:
        work.answers = [known[work.user.id][part.key] for part in work.parts]


def _store(gister: Gister, work: _Work, say: Callable[[str], None]) -> Profile:
    gist = gister.read(work.answers, work.documents)
    if gist is None:
        say(
            f"the model's description of {work.history.user!r} could not be read: "
            "the profile holds only what was measured"
        )
    profile = make_profile(work.history.user, gist or Gist(), work.documents, gister.config)
    now = datetime.now(UTC)
    return work.user.add_profile(
        profile.model_copy(
            update={
                "fingerprint": work.fingerprint,
                "model": gister.model.name,
                # A profile of a part is never the user's own latest, even where no date set it apart.
                "before": None if work.whole else work.history.before or now,
                "created_at": now,
            }
        )
    )


def make_profile(
    user: str, gist: Gist, documents: Sequence[Document], config: StepBackConfig = StepBackConfig()
) -> Profile:
    """What the model said of a writer, joined with what was measured of the documents.

    Where the model said nothing of a trait, the measured words stand for it.
    """
    written = [document.text for document in documents]
    facts = measure(written)
    opening, closing = habits(written)
    openings, titles = own_words(documents, config)
    shape = [f"often opens with “{opening}”"] if opening else []
    shape += [f"often closes with “{closing}”"] if closing else []
    filled = replace(
        gist,
        tone="; ".join(filter(None, [gist.tone.rstrip("."), describe_manner(facts)])),
        length="; ".join(filter(None, [gist.length.rstrip("."), describe_length(facts)])),
        structure="; ".join(filter(None, [gist.structure.rstrip("."), *shape])),
        favoured=gist.favoured or favoured_words(written, config.favoured),
    )
    return Profile(
        user=user,
        topics=filled.topics,
        keywords=filled.keywords,
        background=filled.background,
        tone=filled.tone,
        length=filled.length,
        structure=filled.structure,
        favoured_words=filled.favoured,
        openings=openings,
        titles=titles,
        facts=facts,
        text=profile_text(filled, openings, titles),
        documents=tuple(document.id for document in documents),
    )


def profile_text(gist: Gist, openings: Sequence[str] = (), titles: Sequence[str] = ()) -> str:
    """The profile as it goes into a prompt, and as its user reads and edits it: one line a trait.

    The user's own words stand last, next to the request: a small model learns more of them than of what is
    said about them.
    """
    lines = {
        "Topics": "; ".join(gist.topics),
        "Keywords": "; ".join(gist.keywords),
        "Background": gist.background,
        "Tone": gist.tone,
        "Length": gist.length,
        "Structure": gist.structure,
        "Favoured words": "; ".join(gist.favoured),
        "Openings": " / ".join(openings),
        "Titles": "; ".join(titles),
    }
    return "\n".join(f"{label}: {value}" for label, value in lines.items() if value)
