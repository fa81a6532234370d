"""PRISM (arXiv 2404.16019): a survey of 1,500 people, their conversations with models, and their scores.

A folder with the official files, joined on `user_id`:

    survey.jsonl         user_id, self_description, system_string, generated_datetime, …: a line a person
    conversations.jsonl  conversation_id, user_id, conversation_type, open_feedback, generated_datetime,
                         conversation_history [{turn, role: "user", content} or {turn, role: "model", content,
                         model_name, within_turn_id, score, if_chosen}], …: a line a conversation
    utterances.jsonl     the conversations once more, a line a scored response: not needed, and not read

What people wrote becomes documents: their self-description, the system text they would give a model, their
prompts, and their feedback on a conversation. In each turn the chosen response is preferred over each other
one, and each score is a rating: the scale's ends are named, "terrible" (1) and "perfect" (100), so its middle
is neutral and (score − 50.5) / 49.5 keeps what the person said. People use the scale differently: compare
ratings of one person only. A preference's prompt is the conversation up to then along the chosen responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from penname.errors import BadInputError
from penname.records import Item, Preference, User
from penname.sources._conversation import Turn, flatten
from penname.sources._dates import parse_date
from penname.sources._each import Row, each, needed, user_of
from penname.sources._rows import authored, id_of, text_of

_SURVEY, _CONVERSATIONS = "survey.jsonl", "conversations.jsonl"
_LOWEST, _HIGHEST = 1, 100  # of a score


def read(path: Path, *, prefix: str = "") -> Iterator[Item]:
    """A User and the survey's documents for each person, then each conversation's documents and Preferences.

    A second person or conversation of the same id, and a conversation of somebody who is not in the survey,
    are bad rows and not imported. Two responses of a turn with the same text make ratings, but no choice.

    Args:
        path: the folder with survey.jsonl and conversations.jsonl (either may end in .gz).
        prefix: put before every user's id.

    Raises:
        BadInputError: no such folder or file, or one of them is no JSON Lines.
    """
    if not path.is_dir():
        raise BadInputError(f"{path} is no folder: PRISM is a folder with {_SURVEY} and {_CONVERSATIONS}")
    survey, conversations = (_file(path, name) for name in (_SURVEY, _CONVERSATIONS))
    reader = _Reader(prefix)
    yield from each(survey, reader.person)
    yield from each(conversations, reader.conversation)


def _file(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.exists():
            return file
    raise BadInputError(f"{folder} has no {name}: PRISM is a folder with {_SURVEY} and {_CONVERSATIONS}")


@dataclass
class _Reader:
    """What must be known of earlier rows: which people and conversations there were."""

    prefix: str
    people: set[str] = field(default_factory=set)
    conversations: set[str] = field(default_factory=set)

    def person(self, row: Row) -> Iterable[Item]:
        user = user_of(row, "user_id", self.prefix)
        if user in self.people:
            raise BadInputError(f"a second person with the id {user[:60]!r}")
        items: list[Item] = [User(id=user)]
        when = parse_date(row.get("generated_datetime"))
        for name in ("self_description", "system_string"):
            items += _written(user, row.get(name), name, id=f"survey:{name}", written_at=when)
        self.people.add(user)
        return items

    def conversation(self, row: Row) -> Iterable[Item]:
        user = user_of(row, "user_id", self.prefix)
        needed(row, "conversation_id", "conversation_history")
        name = id_of(row["conversation_id"], "conversation_id")
        if name in self.conversations:
            raise BadInputError(f"a second conversation with the id {name[:60]!r}")
        if user not in self.people:
            raise BadInputError(f"its user {user[:60]!r} is not in {_SURVEY}")
        history = row["conversation_history"]
        if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
            raise BadInputError("the field 'conversation_history' is no list of objects")
        when = parse_date(row.get("generated_datetime"))
        items = list(_conversation(user, name, history, when))
        items += _written(
            user, row.get("open_feedback"), "open_feedback", id=f"{name}:feedback", written_at=when
        )
        self.conversations.add(name)
        return items


def _written(
    user: str,
    text: object,
    kind: str,
    *,
    id: str,  # noqa: A002
    written_at: datetime | None,
) -> list[Item]:
    """The document of what somebody wrote, if anything; `kind` names the field it stood in."""
    content = text_of(text, kind)
    if not content.strip():
        return []
    return [*authored([user], content, id=id, written_at=written_at, fields={"kind": kind})]


def _conversation(user: str, name: str, history: list[Row], when: datetime | None) -> Iterator[Item]:
    """The prompts of a conversation, and what was preferred in each turn."""
    past: list[Turn] = []
    last = -1
    for number, entries in groupby(history, _turn):
        if number <= last:
            raise BadInputError(f"turn {number} comes after turn {last}")
        last, turn = number, list(entries)
        asked = [text_of(entry.get("content"), "content") for entry in turn if entry.get("role") == "user"]
        answers = [_Answer.of(entry) for entry in turn if entry.get("role") == "model"]
        if len(asked) != 1 or len(asked) + len(answers) != len(turn):
            raise BadInputError(f"turn {number} is not one prompt of the role 'user' and answers of 'model'")
        yield from _written(user, asked[0], "prompt", id=f"{name}:{number}", written_at=when)
        past.append(Turn("user", asked[0]))
        yield from _preferences(user, f"{name}:{number}", flatten(past), answers, when)
        past += [Turn("assistant", answer.text) for answer in answers if answer.chosen]


def _turn(entry: Row) -> int:
    turn = entry.get("turn")
    if not isinstance(turn, int) or isinstance(turn, bool):
        raise BadInputError("an entry of 'conversation_history' has no number 'turn'")
    return turn


@dataclass(frozen=True)
class _Answer:
    """One response of a model in a turn."""

    place: str  # within the turn
    text: str
    score: float | None  # in [1, 100]; None: not scored
    chosen: bool

    @classmethod
    def of(cls, entry: dict[str, Any]) -> _Answer:
        score = entry.get("score")
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if score is not None and not (number and _LOWEST <= score <= _HIGHEST):
            raise BadInputError(f"a score is a number from {_LOWEST} to {_HIGHEST}, not {score!r:.40}")
        place = id_of(entry.get("within_turn_id"), "within_turn_id")
        return cls(place, text_of(entry.get("content"), "content"), score, entry.get("if_chosen") is True)

    @property
    def rating(self) -> float | None:
        """The score in [−1, 1]."""
        middle, half = (_HIGHEST + _LOWEST) / 2, (_HIGHEST - _LOWEST) / 2
        return None if self.score is None else (self.score - middle) / half


def _preferences(
    user: str, name: str, prompt: str, answers: list[_Answer], when: datetime | None
) -> Iterator[Item]:
    """The ratings of a turn's answers, and the chosen one over each other."""
    chosen = [answer for answer in answers if answer.chosen]
    if len(chosen) > 1:
        raise BadInputError(f"{len(chosen)} answers are chosen in one turn ({name[:60]})")
    if len({answer.place for answer in answers}) != len(answers):
        raise BadInputError(f"two answers of a turn have the same 'within_turn_id' ({name[:60]})")
    for answer in answers:
        if answer.rating is not None:
            yield Preference(
                id=f"prism:{name}:{answer.place}",
                user=user,
                kind="rating",
                prompt=prompt,
                completion=answer.text,
                rating=answer.rating,
                made_at=when,
            )
        for best in chosen:
            if answer.text != best.text:
                yield Preference(
                    id=f"prism:{name}:{best.place}>{answer.place}",
                    user=user,
                    kind="choice",
                    prompt=prompt,
                    chosen=best.text,
                    rejected=answer.text,
                    made_at=when,
                )
