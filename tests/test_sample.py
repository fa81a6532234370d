"""The built-in sample: whole, dated in order, free of leaks, and in voices that can be told apart."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from datetime import date
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from penname.records import Document, Request

USERS = ["alice", "bruno", "chiyo", "dede", "emeka", "freya", "gus", "hana"]
GROUPS = [("alice", "freya"), ("emeka", "bruno")]

FUNCTION_WORDS = (
    "the a an of to in on at and or but if so that which is are was it its you your we our i me my they"
    " them he she this there be been have has had not no do may shall will could would who what upon"
    " before as for with from by one all"
).split()
MARKS = [*".,;:!?()%-'/…", "\n\n"]


def _rows(name: str) -> list[dict[str, Any]]:
    text = files("penname").joinpath("sample", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return _rows("documents.jsonl")


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    return _rows("requests.jsonl")


def _authors(row: dict[str, Any]) -> tuple[str, ...]:
    user = row["user"]
    return (user,) if isinstance(user, str) else tuple(user)


def _body(request: dict[str, Any]) -> str:
    """The user's whole text of a request: its gold, or the input where a title is asked for."""
    return str(request["input"] if request["task"] == "title" else request["gold"])


def _words(text: str) -> list[str]:
    return re.findall(r"\w[\w'’-]*", text.lower())


def test_documents_are_complete(documents: list[dict[str, Any]]) -> None:
    counts = Counter(_authors(row) for row in documents)
    assert counts == {(user,): 12 for user in USERS} | dict.fromkeys(GROUPS, 4)
    kinds = Counter((_authors(row), row["kind"]) for row in documents)
    for who, n in counts.items():
        assert kinds[who, "email"] == kinds[who, "post"] == n // 2
    for row in documents:
        assert set(row) == {"id", "user", "title", "text", "date", "kind"}
        Document(id=row["id"], title=row["title"], text=row["text"], written_at=row["date"])


def test_requests_are_complete(requests: list[dict[str, Any]]) -> None:
    tasks = defaultdict(list)
    for row in requests:
        request = Request(**{key: value for key, value in row.items() if key != "penname"})
        assert row["penname"] == "request"
        assert request.gold
        tasks[request.users].append(request.task)
    assert set(tasks) == {(user,) for user in USERS} | set(GROUPS)
    for users, asked in tasks.items():
        assert sorted(asked)[:2] == ["email", "post"]
        assert asked[2:] in ([], ["title"])
        assert len(users) == 1 or len(asked) == 3


def test_ids_texts_and_titles_are_unique(
    documents: list[dict[str, Any]], requests: list[dict[str, Any]]
) -> None:
    rows = documents + requests
    for key in ("id", "text", "title"):
        values = [row[key] for row in documents]
        assert len(set(values)) == len(values)
    assert len({row["id"] for row in rows}) == len(rows)


def test_texts_are_of_the_stated_length(
    documents: list[dict[str, Any]], requests: list[dict[str, Any]]
) -> None:
    texts = {row["id"]: row["text"] for row in documents} | {row["id"]: _body(row) for row in requests}
    assert {name for name, text in texts.items() if not 40 <= len(_words(text)) <= 110} == set()


def test_dates_rise_and_requests_come_last(
    documents: list[dict[str, Any]], requests: list[dict[str, Any]]
) -> None:
    written = defaultdict(list)
    for row in documents:
        for user in _authors(row):
            written[user].append(date.fromisoformat(row["date"]))
    for days in written.values():
        assert days == sorted(set(days))
        assert {day.year for day in days} == {2025}
    last = max(max(days) for days in written.values())
    assert all(date.fromisoformat(row["before"]) > last for row in requests)


def test_no_request_is_answered_by_a_document(
    documents: list[dict[str, Any]], requests: list[dict[str, Any]]
) -> None:
    def grams(text: str) -> set[tuple[str, ...]]:
        words = _words(text)
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    for request in requests:
        history = [row for row in documents if set(_authors(row)) & set(request["users"])]
        seen = set().union(*(grams(row["text"]) for row in history))
        asked = grams(_body(request))
        # Salutations and sign-offs recur, and are meant to; the rest must be new.
        assert len(asked & seen) / len(asked) < 0.05, request["id"]
        title = request["gold"] if request["task"] == "title" else request["input"]
        assert title not in {row["title"] for row in history}


def _core(text: str) -> str:
    """The text without 50 characters at either end, so that greetings and sign-offs do not give it away."""
    return text[50:-50]


def _style(text: str) -> list[float]:
    """Shares of function words and marks, lengths, capitals and symbols: no topic, no set phrase."""
    words = _words(text)
    counts = Counter(words)
    sentences = [s for s in re.split(r"[.!?\n]+", text) if s.strip()]
    letters = [c for c in text if c.isalpha()]
    return [
        *(counts[word] / len(words) for word in FUNCTION_WORDS),
        *(text.count(mark) / len(words) for mark in MARKS),
        float(np.log(len(words) / len(sentences))),
        sum(map(len, words)) / len(words),
        sum(c.isupper() for c in letters) / len(letters),
        sum(c.isdigit() for c in text) / len(text),
        sum(ord(c) > 0x2600 for c in text) / len(words),  # emoji
    ]


def test_voices_are_separable(documents: list[dict[str, Any]]) -> None:
    """Nearest centroid over style alone, leaving out the document in question."""
    solo = [row for row in documents if isinstance(row["user"], str)]
    who = np.array([row["user"] for row in solo])
    features = np.array([_style(_core(row["text"])) for row in solo])
    right = dict.fromkeys(USERS, 0)
    for i, user in enumerate(who):
        rest = np.arange(len(who)) != i
        spread = features[rest].std(0) + 1e-9
        centres = np.array([features[rest & (who == name)].mean(0) for name in USERS])
        distances = np.linalg.norm((centres - features[i]) / spread, axis=1)
        right[user] += USERS[int(distances.argmin())] == user
    assert sum(right.values()) >= 0.8 * len(who)
    assert min(right.values()) >= 0.6 * 12, right
