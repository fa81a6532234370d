"""What the tests of the retrievers share: small histories, and an embedder that needs no model."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penname.records import Document
from penname.store import Store, UserStore

few = settings(max_examples=25)
"""For tests that meet a database: an example takes long."""

START = datetime(2024, 1, 1, tzinfo=UTC)
_numbers = itertools.count()


def document(name: str, text: str = "text", day: int | None = None, title: str = "") -> Document:
    """A document written `day` days after `START` (None: undated)."""
    return Document(id=name, text=text, title=title, written_at=None if day is None else moment(day))


def moment(day: int) -> datetime:
    return START + timedelta(days=day)


def fresh_user(store: Store, documents: Sequence[Document]) -> UserStore:
    """A user that nobody has used before, with these documents."""
    user = store.add_user(f"user-{next(_numbers)}")
    user.add(documents)
    return user


words = st.lists(st.sampled_from("red green blue owl fox the a".split()), max_size=6).map(" ".join)
"""Texts of few words, so that they share some; may be empty."""


@st.composite
def histories(draw: st.DrawFn, min_size: int = 0) -> list[Document]:
    """Documents with ids d0, d1, …, some undated, some of the same day, some alike."""
    n = draw(st.integers(min_size, 8))
    days = st.none() | st.integers(0, 4)
    return [
        document(f"d{i}", draw(words) or "?", draw(days), title=draw(st.sampled_from(["", "Red fox"])))
        for i in range(n)
    ]


class WordEmbedder:
    """Embeds a text as the normalised sum of a fixed random vector per word; counts what it embeds."""

    name = "words"

    def __init__(self, fingerprint: str = "words-1") -> None:
        self.fingerprint = fingerprint
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded.extend(texts)
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> NDArray[np.float32]:
        seeds = [zlib.crc32(f"{self.fingerprint} {word}".encode()) for word in text.lower().split() or [""]]
        total = sum(np.random.default_rng(seed).normal(size=16) for seed in seeds)
        return np.asarray(total / np.linalg.norm(total), dtype=np.float32)
