"""Clients of `serve_soak.py`: applications that ask for what applications ask for, and check each answer."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from serve_process import MARKER

PROFILE = "{marker} writes short and dry sentences to friends, with a wish at the end. No lists."
WORDS = "the choir sang at the old mill while rain fell on bread cheese and the long road home".split()
METHODS = ("none", "retrieval", "step-back", "step-back+retrieval")
TOKENS = 8  # of a text
MOST = 12  # documents of a user


class WrongError(Exception):
    """An answer that is not what it should be."""


class Tally:
    """What all clients have asked, and what was wrong."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.markers: set[str] = set()  # all that were given: a model may write some that nobody has
        self._lock = threading.Lock()

    def note(self, kind: str, wrong: str | None = None) -> None:
        """A request was answered."""
        with self._lock:
            self.done[kind] += 1
            if wrong is not None:
                self.wrong.append(f"{kind}: {wrong}"[:300])


@dataclass
class Person:
    """A user as its client knows it."""

    id: str
    marker: str  # in each text of this user, and of nobody else
    documents: list[str] = field(default_factory=list)  # ids
    preferences: int = 0
    drafts: list[str] = field(default_factory=list)  # ids of answers
    told: bool = True  # the profile is still as it was told


class Client:
    """An application with a service key.

    Args:
        quick: the model repeats markers and costs nothing, so that what it makes is checked too.
    """

    def __init__(
        self, address: str, key: str, number: int, tally: Tally, chance: random.Random, *, quick: bool
    ) -> None:
        self._http = httpx.Client(
            base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=600, trust_env=False
        )
        self._number = number
        self._tally = tally
        self._chance = chance
        self._quick = quick
        self._people = 0
        self._documents = 0
        kinds: dict[Callable[[Person], None], int] = {
            self.chat: 8,
            self.stream: 8,
            self.complete: 2,
            self.hang_up: 3,
            self.leave: 2,
            self.add_documents: 4,
            self.remove_document: 2,
            self.list_documents: 2,
            self.read_document: 1,
            self.prefer: 4,
            self.list_preferences: 1,
            self.export: 1,
            self.read_profile: 1,
            self.explain: 2,
            self.list_drafts: 1,
            self.list_users: 1,
            self.read_models: 1,
            self.read_metrics: 1,
            self.ask_for_another: 1,
            self.refresh: 1 if quick else 0,  # takes a real model long
        }
        self._kinds, self._weights = list(kinds), list(kinds.values())

    def series(self) -> int:
        """Lines of /metrics."""
        return len(self._http.get("/metrics").text.splitlines())

    def close(self) -> None:
        """Ask no more."""
        self._http.close()

    def work(self, ended: threading.Event) -> None:
        """Users come and go until it has ended."""
        while not ended.is_set():
            person = self._new()
            if not self._do(self.add, person):
                time.sleep(1)  # nothing goes: it need not be said a thousand times
                continue
            for _ in range(self._chance.randint(10, 60)):
                if not ended.is_set():
                    [kind] = self._chance.choices(self._kinds, self._weights)
                    self._do(kind, person)
            self._do(self.erase, person)

    def _new(self) -> Person:
        self._people += 1
        marker = f"owl{self._chance.getrandbits(48):012x}end"
        self._tally.markers.add(marker)
        return Person(f"user {self._number}x{self._people}", marker)

    def _do(self, kind: Callable[[Person], None], person: Person) -> bool:
        try:
            kind(person)
        except (WrongError, httpx.HTTPError, ValueError, KeyError) as error:
            self._tally.note(kind.__name__, f"{type(error).__name__}: {error}")
            return False
        self._tally.note(kind.__name__)
        return True

    # --- users

    def add(self, person: Person) -> None:
        """A user, who brings documents, and says how it writes."""
        self._ask(person, "PUT", "", {"name": f"{person.marker} by name"})
        self._ask(person, "PUT", "/profile", {"text": PROFILE.format(marker=person.marker)})
        self.add_documents(person)

    def erase(self, person: Person) -> None:
        """Everything of a user goes."""
        erased = self._ask(person, "DELETE", "")
        found = erased["documents"], erased["preferences"]
        _same(found, (len(person.documents), person.preferences))
        self._ask(person, "GET", "", status=404)
        for draft in person.drafts[-1:]:
            _same(self._http.get(f"/v1/explanations/{draft}").status_code, 404)

    def list_users(self, person: Person) -> None:
        """There is but one at a time."""
        data = self._checked(person, self._http.get("/v1/users"), 200).json()["data"]
        _same([one["id"] for one in data], [person.id])

    def ask_for_another(self, person: Person) -> None:
        """Another client's user is not there."""
        other = f"user {self._number + 1}x{self._people}"
        _same(self._http.get(f"/v1/users/{other}/documents").status_code, 404)
        self._post(person, {"model": "penname/none", "user": other}, 404)

    # --- drafts

    def chat(self, person: Person) -> None:
        """A draft at once."""
        made = self._post(person, self._asked()).json()
        choice = made["choices"][0]
        self._check_text(person, choice["message"]["content"], made["model"])
        _same(made["usage"]["completion_tokens"] > 0, True)
        _same(choice["finish_reason"] in ("stop", "length"), True)
        person.drafts.append(made["id"])

    def stream(self, person: Person) -> None:
        """A draft as it is written."""
        asked = self._asked()
        events = self._post(person, {**asked, "stream": True}).text.strip().split("\n\n")
        _same(events[-1], "data: [DONE]")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        self._check_text(person, text, asked["model"])
        person.drafts.append(chunks[0]["id"])

    def complete(self, person: Person) -> None:
        """Several drafts of several prompts."""
        asked = {**self._asked(), "prompt": ["The mill", "The road"], "n": 2, "user": person.id}
        del asked["messages"]
        made = self._checked(person, self._http.post("/v1/completions", json=asked), 200).json()
        _same(len(made["choices"]), 4)
        for choice in made["choices"]:
            self._check_text(person, choice["text"], made["model"])
        person.drafts.append(made["id"])

    def hang_up(self, person: Person) -> None:
        """A client that leaves in the middle of a stream."""
        asked = {**self._asked(), "user": person.id, "stream": True}
        with self._http.stream("POST", "/v1/chat/completions", json=asked) as response:
            _same(response.status_code, 200)
            next(response.iter_lines())

    def leave(self, person: Person) -> None:
        """A client that does not wait for the answer."""
        asked = {**self._asked(), "user": person.id}
        try:
            response = self._http.post("/v1/chat/completions", json=asked, timeout=0.02)
        except httpx.TimeoutException:
            return
        self._checked(person, response, 200)

    def explain(self, person: Person) -> None:
        """How a draft came about."""
        if person.drafts:
            draft = self._chance.choice(person.drafts[-20:])
            _same(self._ask(person, "GET", f"/drafts/{draft}")["id"], draft)

    def list_drafts(self, person: Person) -> None:
        """The latest drafts."""
        found = [one["id"] for one in self._ask(person, "GET", "/drafts?limit=20")["data"]]
        # One that nobody waited for may have been written before that was known.
        _same(set(person.drafts[-5:]) <= set(found), True)

    # --- what is stored

    def add_documents(self, person: Person) -> None:
        """Some that are new."""
        if len(person.documents) >= MOST:
            return self.remove_document(person)
        ids = []
        for _ in range(self._chance.randint(1, 3)):
            self._documents += 1
            ids.append(f"document {self._documents}")
        documents = [{"id": one, "title": f"{one} title", "text": self._text(person)} for one in ids]
        added = self._ask(person, "POST", "/documents", {"documents": documents}, status=201)
        _same((added["ids"], added["new"]), (ids, len(ids)))
        person.documents += ids
        return None

    def remove_document(self, person: Person) -> None:
        """One that is there; the last one stays, as a history must not be empty."""
        if len(person.documents) > 1:
            name = person.documents.pop(self._chance.randrange(len(person.documents)))
            self._ask(person, "DELETE", f"/documents/{name}")
            self._ask(person, "GET", f"/documents/{name}", status=404)

    def list_documents(self, person: Person) -> None:
        """All of them."""
        found = [one["id"] for one in self._ask(person, "GET", "/documents")["data"]]
        _same(set(found), set(person.documents))

    def read_document(self, person: Person) -> None:
        """One of them."""
        name = self._chance.choice(person.documents)
        text = self._ask(person, "GET", f"/documents/{name}")["text"]
        _same(person.marker in text, True)

    def prefer(self, person: Person) -> None:
        """A preference of any kind."""
        one, other = self._text(person), self._text(person)
        body: dict[str, Any] = self._chance.choice(
            [
                {"kind": "choice", "chosen": one, "rejected": other},
                {"kind": "rating", "completion": one, "rating": 0.5},
                {"kind": "edit", "draft": other, "revision": one},
            ]
        )
        self._ask(person, "POST", "/preferences", {**body, "prompt": "The mill"}, status=201)
        person.preferences += 1

    def list_preferences(self, person: Person) -> None:
        """All of them."""
        found = self._ask(person, "GET", "/preferences?limit=1000")["data"]
        _same(len(found), person.preferences)

    def read_profile(self, person: Person) -> None:
        """As it was told, unless it was made anew."""
        text = self._ask(person, "GET", "/profile")["text"]
        if person.told:
            _same(text, PROFILE.format(marker=person.marker))

    def refresh(self, person: Person) -> None:
        """The profile is made anew in the background."""
        self._ask(person, "POST", "/profile/refresh", status=202)
        person.told = False

    def export(self, person: Person) -> None:
        """Everything of a user."""
        response = self._checked(person, self._http.get(f"/v1/users/{person.id}/export"), 200)
        kinds = Counter(json.loads(line)["penname"] for line in response.text.splitlines())
        found = kinds["user"], kinds["document"], kinds["preference"]
        _same(found, (1, len(person.documents), person.preferences))

    # --- the server's own

    def read_models(self, person: Person) -> None:
        """The models that there are."""
        found = self._checked(person, self._http.get("/v1/models"), 200).json()["data"]
        _same({f"penname/{name}" for name in METHODS} <= {one["id"] for one in found}, True)

    def read_metrics(self, person: Person) -> None:
        """What the server counts."""
        _same("penname_requests" in self._checked(person, self._http.get("/metrics"), 200).text, True)

    # --- inside

    def _asked(self) -> dict[str, Any]:
        method = self._chance.choice(METHODS)
        content = " ".join(self._chance.sample(WORDS, 6))
        messages = [{"role": "user", "content": content}]
        return {"model": f"penname/{method}", "messages": messages, "max_tokens": TOKENS}

    def _text(self, person: Person) -> str:
        return f"{person.marker} {' '.join(self._chance.choices(WORDS, k=40))}"

    def _post(self, person: Person, asked: dict[str, Any], status: int = 200) -> httpx.Response:
        body = {**self._asked(), "user": person.id, **asked}
        return self._checked(person, self._http.post("/v1/chat/completions", json=body), status)

    def _ask(self, person: Person, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        response = self._http.request(method, f"/v1/users/{person.id}{path}", json=body)
        return self._checked(person, response, status).json()

    def _checked(self, person: Person, response: httpx.Response, status: int) -> httpx.Response:
        """The answer, whose status is as it should be, and in which nobody else's text is."""
        if response.status_code != status:
            raise WrongError(f"{response.status_code} instead of {status}: {response.text[:150]}")
        self._own_only(person, response.text)
        return response

    def _check_text(self, person: Person, text: str, model: str) -> None:
        self._own_only(person, text)
        if self._quick and model != "penname/none" and person.marker not in text:
            raise WrongError(f"nothing of the user's went into a draft of {model}")

    def _own_only(self, person: Person, text: str) -> None:
        others = (set(MARKER.findall(text)) & self._tally.markers) - {person.marker}
        if others:
            raise WrongError(f"the text of {', '.join(sorted(others))} came to {person.marker}")


def _same(found: object, wanted: object) -> None:
    if found != wanted:
        raise WrongError(f"{found!r} instead of {wanted!r}"[:200])
