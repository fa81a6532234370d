"""What the tests of evaluations share: a store of a small club, requests, and stand-ins for all models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import ToldModel, flat
from penname.evaluate.arms import plan
from penname.evaluate.benchmarks import Loaded
from penname.evaluate.results import Results
from penname.evaluate.run import Settings, evaluate
from penname.lm.base import Generation, Prefix, Sampling, Score
from penname.records import Authored, Document, Prompt, Request
from penname.store import Store

START = datetime(2024, 1, 1, tzinfo=UTC)
CLUB = {"ann": "kites", "ben": "ovens", "cas": "tides", "dot": "moths"}


class Letters:
    """Embeds a text as how often it uses each letter."""

    fingerprint = "letters-1"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts = np.array([[text.lower().count(chr(97 + i)) + 1e-3 for i in range(26)] for text in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


class CountingModel(ToldModel):
    """A told model that remembers all that was asked of it, and can break off after some drafts."""

    def __init__(self, **more: Any) -> None:
        super().__init__(lambda prompt: f"a draft of {len(prompt)}", **more)
        self.scored: list[str] = []
        self.breaks_after: int | None = None

    @property
    def calls(self) -> int:
        """Texts written and scored."""
        return len(self.asked) + len(self.scored)

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        sampling: Sampling = Sampling(),
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[list[Generation]]:
        if self.breaks_after is not None and len(self.asked) + len(prompts) > self.breaks_after:
            raise KeyboardInterrupt
        return super().generate(prompts, n, sampling, prefixes)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        self.scored.extend(flat(prompt) for prompt in prompts)
        return super().score(prompts, completions, prefixes)


class Judge(ToldModel):
    """Finds the longer of two drafts closer, and gives every draft the mark 3."""

    name = "judge"

    def __init__(self, fingerprint: str = "judge-1") -> None:
        super().__init__(fingerprint=fingerprint)
        self.asked_to_choose: list[str] = []

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        self.asked_to_choose.extend(flat(prompt) for prompt in prompts)
        return [self._chances(flat(prompt), mine) for prompt, mine in zip(prompts, options, strict=True)]

    def _chances(self, prompt: str, options: Sequence[str]) -> list[float]:
        if len(options) > 2:
            return [float(option == "3") for option in options]
        drafts = [prompt.rpartition(f"Draft {number}:")[2].partition("\n")[0] for number in options]
        return [float(len(draft)) for draft in drafts]


def day(number: int) -> datetime:
    return START + timedelta(days=number)


def document(user: str, number: int, text: str = "", **more: Any) -> Document:
    about = CLUB.get(user, user)
    values = {
        "id": f"{user}-{number}",
        "title": f"{about} on day {number}",
        "text": text or f"{user} writes of {about} on day {number}, and of much else.",
        "written_at": day(number),
        **more,
    }
    return Document.model_validate(values)


def put(store: Store, users: Sequence[str], document: Document) -> None:
    """Adds a document of several authors."""
    store.add(Authored(user=user, document=document) for user in users)


def club(store: Store, days: int = 6) -> None:
    """Four people with `days` documents each; ann and ben wrote one more together, on day 20."""
    for user in CLUB:
        store.add_user(user).add(document(user, number) for number in range(1, days + 1))
    put(store, ("ann", "ben"), document("both", 20, "ann and ben on kites and ovens."))


def request(name: str, *users: str, task: str = "title", **more: Any) -> Request:
    """A request of day 30, whose real text is its name."""
    values = {
        "id": name,
        "task": task,
        "input": f"A text about {name}.",
        "users": users,
        "before": day(30),
        "gold": f"What they called {name}",
        **more,
    }
    return Request.model_validate(values)


EXAMPLES = (
    request("e1", "ann"),
    request("e2", "ann", "ben"),
    request("e3", "cas"),
    request("e4", "dot", "cas"),
)


def loaded(requests: Sequence[Request] = EXAMPLES, version: str = "0123456789ab") -> Loaded:
    return Loaded("club", version, "test", tuple(requests))


def run(
    store: Store,
    folder: Path,
    model: ToldModel,
    *methods: str,
    users: Sequence[str] = ("all",),
    controls: Sequence[str] = (),
    requests: Sequence[Request] = EXAMPLES,
    settings: Settings = Settings(k=2, max_tokens=32),
    **more: Any,
) -> Results:
    """An evaluation of the club's examples."""
    arms = plan(methods, users, controls)
    return evaluate(
        loaded(requests), store, model, arms, folder, settings=settings, embedder=Letters(), **more
    )


def proposal(number: int, created: str, *authors: str, **more: Any) -> dict[str, Any]:
    """A row of that file."""
    row = {
        "id": f"erc-{number}",
        "title": f"Title {number}",
        "authors": list(authors),
        "created": created,
        "requires": [],
        "category": "ERC",
        "abstract": f"Abstract {number}.",
        "motivation": f"Motivation {number}.",
    }
    return {**row, **more}


PROPOSALS = [
    proposal(1, "2020-01-01", "ann"),
    proposal(2, "2021-01-01", "ann", "ben"),
    proposal(3, "2023-12-31", "ann", requires=["1", "2", "99"]),
    proposal(4, "2024-01-01", "ben", "ann", motivation=""),
    proposal(5, "2024-06-30", "cas"),
    proposal(6, "2024-07-01", "cas", "ann", requires=["4"]),
    proposal(7, "2024-07-01", "ben", requires=[3]),
    proposal(8, "2025-01-01", "cas", title="", requires=["7"]),
]


def write_proposals(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """The rows as a file of the benchmark `proposals`."""
    text = "".join(json.dumps(row) + "\n" for row in (PROPOSALS if rows is None else rows))
    path.write_text(text, "utf-8")
    return path
