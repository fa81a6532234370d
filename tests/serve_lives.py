"""Random lives of the users of two services in front of one server, each user with a secret word.

The model answers with every secret that it finds in its prompt, so what is in a prompt is in the draft too.
Every answer, prompt and log record is looked through for secrets of users whom it is not about, and every
file beside the store for secrets of users who were erased.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch
from urllib.parse import quote

from fastapi.testclient import TestClient
from httpx import Response
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import stores
from models import ToldModel
from penname.methods.pit.form import Form
from penname.methods.pit.improve import Improver
from penname.methods.runs import Runs
from penname.serve.app import create_app
from penname.serve.background import Background
from penname.serve.house import House
from penname.serve.settings import ServeSettings
from penname.store import Store
from penname.tasks import PromptTexts
from penname.train.index import create_index
from test_pit_improve import Values
from trained_runs import save_card

SECRET = re.compile(r"zq[0-9a-f]{6}q", re.IGNORECASE)
HOMES = {"ann": 0, "o'ben/é": 0, "cat": 0, "dan": 1, "eve/..": 1}  # ids that may live, each with its service
USERS = st.sampled_from(sorted(HOMES))
PICKS = st.integers(0, len(HOMES) - 1)  # one of those who live; see `Lives.one`
METHODS = st.sampled_from(["none", "retrieval", "step-back+retrieval"])

PARTS: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("PUT", "", {"name": "mine"}),
    ("DELETE", "", None),
    ("GET", "/export", None),
    ("GET", "/documents", None),
    ("POST", "/documents", {"documents": [{"text": "mine"}]}),
    ("GET", "/documents/{document}", None),
    ("DELETE", "/documents/{document}", None),
    ("GET", "/profile", None),
    ("PUT", "/profile", {"text": "mine"}),
    ("POST", "/profile/refresh", None),
    ("GET", "/preferences", None),
    ("POST", "/preferences", {"kind": "edit", "prompt": "p", "draft": "d", "revision": "r"}),
    ("POST", "/improve", {"text": "mine"}),
    ("GET", "/drafts", None),
    ("GET", "/drafts/{draft}", None),
]
"""What there is of a user, below /v1/users/{user}."""


@dataclass
class Life:
    """A user, from being added to being erased."""

    secret: str
    key: str | None = None
    key_id: str = ""
    documents: list[str] = field(default_factory=list)  # ids


class Parrot(ToldModel):
    """Says every secret that it was told."""

    name = "parrot"

    def __init__(self) -> None:
        super().__init__(lambda prompt: "Topics: thanks, " + ", ".join(SECRET.findall(prompt)))


class Records(logging.Handler):
    """All that penname logs, as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._form = logging.Formatter("%(name)s %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self._form.format(record))


class Lives(RuleBasedStateMachine):
    """What the services and their users do, and what must hold whatever they do."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.db = stores.fresh("sqlite", self.folder)
        self.model = Parrot()
        self.records = Records()
        self.counter = count(1)
        self.lives: dict[str, Life] = {}
        self.gone: list[str] = []  # secrets of the erased
        self.drafts: dict[str, tuple[str, ...]] = {}  # by id, for whom they were written
        self.gone_drafts: list[str] = []
        self.seen_prompts = self.seen_lines = 0
        log = logging.getLogger("penname")
        self.level = log.level
        log.addHandler(self.records)
        log.setLevel(logging.DEBUG)
        self.run = save_card(self.folder / "better", "none", method="pit")
        create_index(self.run, [])
        improver = Improver(self.model, Values(), Form("completion", PromptTexts.load()), self.run)
        self.patched = patch("penname.serve.house.open_runs", lambda *_: Runs(improver=improver))
        self.patched.start()
        self.open()
        self.services = [self.house.store.create_key(service=True)[1] for _ in range(2)]

    def open(self) -> None:
        """Start the server."""
        settings = ServeSettings(db=self.db, page=False, per_minute=1_000_000, runs=(self.run,))
        self.house = House(settings, model=self.model)
        self.app = create_app(settings, self.house)
        self.closing = ExitStack()
        self.closing.callback(self.house.close)
        self.client = self.closing.enter_context(TestClient(self.app, raise_server_exceptions=False))

    def teardown(self) -> None:
        self.closing.close()
        self.look_through_files()
        self.patched.stop()
        log = logging.getLogger("penname")
        log.removeHandler(self.records)
        log.setLevel(self.level)
        shutil.rmtree(self.folder)

    # --- asking, and looking at what comes back

    def ask(
        self, key: str | None, method: str, path: str, json: Any = None, *, about: Collection[str]
    ) -> Response:
        """A request, in whose answer, prompts and background work only those users may be met."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        response = self.client.request(method, path, json=json, headers=headers)
        cast(Background, self.app.state.background).finish()
        assert response.status_code < 500, response.text
        self.look(f"{response.headers} {response.text}", about)
        for prompt in self.model.asked[self.seen_prompts :]:
            self.look(prompt, about)
        self.seen_prompts = len(self.model.asked)
        return response

    def look(self, text: str, about: Collection[str]) -> None:
        """There is no secret in it but those of these users."""
        found = {secret.lower() for secret in SECRET.findall(text)}
        own = {self.lives[user].secret for user in about if user in self.lives}
        assert found <= own, f"{found - own} in: {text[:2000]}"

    def one(self, pick: int) -> str:
        """One of those who live; there is always one."""
        if not self.lives:
            self.add_user("ann")
        return sorted(self.lives)[pick % len(self.lives)]

    def place(self, user: str) -> int:
        """The pick of one who lives."""
        return sorted(self.lives).index(user)

    def key(self, user: str, own: bool) -> str:
        """The user's own key, where it is wanted and there is one, or else the service's."""
        life = self.lives.get(user)
        return life.key if own and life and life.key else self.services[HOMES[user]]

    def reach(self, key: str) -> set[str]:
        """Those for whom this key may act."""
        if key in self.services:
            return {user for user in self.lives if self.services[HOMES[user]] == key}
        return {user for user, life in self.lives.items() if life.key == key}

    def look_through_files(self) -> None:
        for file in self.folder.rglob("*"):
            held = file.read_bytes().lower() if file.is_file() else b""
            for secret in self.gone:
                assert secret.encode() not in held, f"{file.name} still holds {secret}"

    # --- what people do

    @initialize()
    def begin(self) -> None:
        for user in ("ann", "o'ben/é", "dan"):
            self.add_user(user)
            self.add_document(self.place(user), own=True, undated=True)

    @rule(user=USERS)
    def add_user(self, user: str) -> None:
        if user in self.lives:
            return
        secret = f"zq{next(self.counter):06x}q"
        self.lives[user] = life = Life(secret)
        added = self.ask(self.services[HOMES[user]], "PUT", at(user), {"name": f"A {secret}"}, about=[user])
        assert added.json()["documents"] == 0
        made, life.key = self.house.store.create_key(user=user, name=secret)
        life.key_id = made.id

    @rule(pick=PICKS, own=st.booleans(), undated=st.booleans())
    def add_document(self, pick: int, own: bool, undated: bool) -> None:
        user = self.one(pick)
        life = self.lives[user]
        name = f"d/{next(self.counter)}"
        document = {
            "id": name,
            "title": f"The {life.secret}",
            "text": f"Dear {life.secret.upper()}, thank you. I never tell of {life.secret} to anybody.",
            "fields": {"tag": life.secret},
            "written_at": None if undated else "2024-03-01",
        }
        added = self.ask(
            self.key(user, own), "POST", at(user, "/documents"), {"documents": [document]}, about=[user]
        )
        assert added.status_code == 201
        life.documents.append(name)

    @rule(pick=PICKS, own=st.booleans())
    def remove_document(self, pick: int, own: bool) -> None:
        user = self.one(pick)
        life = self.lives[user]
        if not life.documents:
            return
        path = at(user, f"/documents/{quote(life.documents.pop(), safe='')}")
        assert self.ask(self.key(user, own), "DELETE", path, about=[user]).status_code == 200

    @rule(pick=PICKS, own=st.booleans(), refresh=st.booleans())
    def describe(self, pick: int, own: bool, refresh: bool) -> None:
        user = self.one(pick)
        life = self.lives[user]
        key = self.key(user, own)
        self.ask(key, "PUT", at(user, "/profile"), {"text": f"Writes of {life.secret}."}, about=[user])
        if refresh:
            self.ask(key, "POST", at(user, "/profile/refresh"), about=[user])

    @rule(pick=PICKS, own=st.booleans(), kind=st.sampled_from(["choice", "rating", "edit"]))
    def prefer(self, pick: int, own: bool, kind: str) -> None:
        user = self.one(pick)
        life = self.lives[user]
        body: dict[str, Any] = {"kind": kind, "prompt": f"Ask {life.secret}"}
        if kind == "rating":
            body |= {"completion": f"It is {life.secret}", "rating": 0.5}
        else:
            better, worse = ("chosen", "rejected") if kind == "choice" else ("revision", "draft")
            body |= {better: f"My {life.secret}", worse: f"Our {life.secret}"}
        kept = self.ask(self.key(user, own), "POST", at(user, "/preferences"), body, about=[user])
        assert kept.status_code == 201

    @rule(
        picks=st.lists(PICKS, min_size=1, max_size=3),
        own=st.booleans(),
        method=METHODS,
        chat=st.booleans(),
        stream=st.booleans(),
    )
    def write(self, picks: list[int], own: bool, method: str, chat: bool, stream: bool) -> None:
        named = list(dict.fromkeys(self.one(pick) for pick in picks))
        users = [user for user in named if HOMES[user] == HOMES[named[0]]]
        key = self.key(users[0], own)
        users = users if key in self.services else users[:1]
        body: dict[str, Any] = {"model": f"penname/{method}", "stream": stream, "seed": 1, "n": 2}
        if key in self.services:
            body["metadata"] = {"users": json.dumps(users)}
        asked = f"Thank {self.lives[users[0]].secret}"
        body |= {"messages": [{"role": "user", "content": asked}]} if chat else {"prompt": asked}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        before = len(self.model.asked)
        answer = self.ask(key, "POST", path, body, about=users)
        learnt = [user for user in users if self.lives[user].documents]
        if method != "none" and not learnt:
            assert answer.status_code == 400
            return
        assert answer.status_code == 200
        first = json.loads(answer.text.split("\n")[0].removeprefix("data: ")) if stream else answer.json()
        self.drafts[first["id"]] = tuple(users)
        for user in users[:1] if method == "none" else learnt:  # what is looked for is there
            assert any(self.lives[user].secret in prompt.lower() for prompt in self.model.asked[before:])

    @rule(pick=PICKS, own=st.booleans())
    def improve(self, pick: int, own: bool) -> None:
        user = self.one(pick)
        body = {"text": "Thanks.", "request": f"Thank {self.lives[user].secret}", "rounds": 1}
        improved = self.ask(self.key(user, own), "POST", at(user, "/improve"), body, about=[user])
        assert improved.status_code == 200

    @rule(pick=PICKS, own=st.booleans())
    def read(self, pick: int, own: bool) -> None:
        user = self.one(pick)
        key = self.key(user, own)
        for part in ("", "/documents?limit=1", "/profile", "/preferences?limit=1"):
            self.ask(key, "GET", at(user, part), about=[user])
        exported = self.ask(key, "GET", at(user, "/export"), about=[user])
        assert self.lives[user].secret in exported.text
        mine = {
            name: users
            for name, users in self.drafts.items()
            if user in users and set(users) <= self.reach(key)
        }
        together = {one for users in mine.values() for one in users}
        listed = self.ask(key, "GET", at(user, "/drafts"), about=together).json()["data"]
        assert {draft["id"] for draft in listed} == set(mine)
        for name, users in mine.items():
            for path in (at(user, f"/drafts/{name}"), f"/v1/explanations/{name}"):
                assert self.ask(key, "GET", path, about=users).status_code == 200

    @rule(pick=PICKS, own=st.booleans())
    def list_all(self, pick: int, own: bool) -> None:
        user = self.one(pick)
        key = self.key(user, own)
        reached, after, listed = self.reach(key), "", []
        while after is not None:
            path = "/v1/users?limit=1" + (f"&after={quote(after, safe='')}" if after else "")
            found = self.ask(key, "GET", path, about=reached).json()
            listed += [one["id"] for one in found["data"]]
            after = found["next"]
        assert listed == sorted(reached)
        self.ask(key, "GET", "/v1/models", about=[])
        self.ask(self.services[0], "GET", "/metrics", about=[])
        self.ask(self.services[1], "GET", "/v1/runs/better", about=[])

    @rule(pick=PICKS)
    def revoke(self, pick: int) -> None:
        user = self.one(pick)
        life = self.lives[user]
        if life.key is not None:
            self.house.store.revoke_key(life.key_id)
            assert self.ask(life.key, "GET", at("me"), about=[]).status_code == 401
            life.key = None

    # --- attacks

    @rule(pick=PICKS, own=st.booleans(), whom=PICKS)
    def attack(self, pick: int, own: bool, whom: int) -> None:
        """By every route of the victim's, and by the victim's ids in the attacker's own routes."""
        attacker = self.one(pick)
        key = self.key(attacker, own)
        strangers = sorted(set(self.lives) - self.reach(key))
        if not strangers:
            return
        victim = strangers[whom % len(strangers)]
        self.write([self.place(victim)], own=True, method="none", chat=True, stream=False)
        draft = list(self.drafts)[-1]
        before = list(self.house.store.user(victim).export())
        nobody = victim + "-not"
        document = quote(self.lives[victim].documents[-1], safe="") if self.lives[victim].documents else "d"
        for method, part, body in PARTS:
            path = part.format(document=document, draft=draft)
            theirs = self.refused(key, method, at(victim, path), body)
            if method == "PUT" and not part and key in self.services:
                continue  # a service adds users who are not there
            nobodys = self.refused(key, method, at(nobody, path), body)
            assert nobodys == theirs.replace(plain(victim), plain(nobody)), path
        for path in (at(attacker, f"/drafts/{draft}"), f"/v1/explanations/{draft}"):
            nothing = self.refused(key, "GET", path.replace(draft, "no-such"))
            assert nothing == self.refused(key, "GET", path).replace(draft, "no-such")
        for method in ("GET", "DELETE"):
            self.refused(key, method, at(attacker, f"/documents/{document}"))
        for name in ([victim], [attacker, victim]):
            theirs = self.refused(key, "POST", "/v1/chat/completions", wanted(name, key in self.services))
            names = [nobody if one == victim else one for one in name]
            nobodys = self.refused(key, "POST", "/v1/chat/completions", wanted(names, key in self.services))
            assert nobodys == theirs.replace(plain(victim), plain(nobody))
        assert list(self.house.store.user(victim).export()) == before

    def refused(self, key: str, method: str, path: str, body: Any = None) -> str:
        """The body of the answer to a request for what is not there."""
        asked = len(self.model.asked)
        answer = self.ask(key, method, path, body, about=[])
        assert (answer.status_code, len(self.model.asked)) == (404, asked), (method, path)
        return answer.text

    # --- the end of a user, or of the server

    @rule(pick=PICKS, how=st.sampled_from(["own", "service", "elsewhere"]), again=st.booleans())
    def erase(self, pick: int, how: str, again: bool) -> None:
        """The id may be somebody else's at once, who looks for what was there."""
        user = self.one(pick)
        self.write([self.place(user)], own=True, method="none", chat=False, stream=False)
        if how == "elsewhere":
            with Store(self.db) as other:
                other.user(user).erase()
        else:
            erased = self.ask(self.key(user, how == "own"), "DELETE", at(user), about=[user])
            assert erased.json()["documents"] == len(self.lives[user].documents)
        life = self.lives.pop(user)
        self.gone.append(life.secret)
        self.look_through_files()
        mine = [name for name, users in self.drafts.items() if user in users]
        for name in mine:
            del self.drafts[name]
        self.gone_drafts += mine
        assert self.ask(life.key, "GET", at("me"), about=[]).status_code == 401
        for key in self.services:
            self.refused(key, "GET", at(user))
        if again:
            self.add_user(user)
            self.look_for_the_erased(self.place(user), own=how == "own")

    @rule(pick=PICKS, own=st.booleans())
    def look_for_the_erased(self, pick: int, own: bool) -> None:
        user = self.one(pick)
        key = self.key(user, own)
        for draft in self.gone_drafts[-5:]:
            for path in (f"/v1/explanations/{draft}", at(user, f"/drafts/{draft}")):
                self.refused(key, "GET", path)
        for draft in self.ask(key, "GET", at(user, "/drafts"), about=self.reach(key)).json()["data"]:
            assert draft["id"] in self.drafts

    @rule()
    def restart(self) -> None:
        self.closing.close()
        self.look_through_files()
        self.open()
        self.gone_drafts += self.drafts
        self.drafts.clear()

    # --- what must hold

    @invariant()
    def the_log_tells_no_secret(self) -> None:
        for line in self.records.lines[self.seen_lines :]:
            self.look(line, [])
        self.seen_lines = len(self.records.lines)

    @invariant()
    def what_is_erased_is_in_no_file(self) -> None:
        if self.gone:
            self.look_through_files()


def at(user: str, part: str = "") -> str:
    """A path of the user's."""
    return f"/v1/users/{quote(user, safe='')}{part}"


def plain(name: str) -> str:
    """A name as it stands inside JSON."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def wanted(users: list[str], service: bool) -> dict[str, Any]:
    """A request for a draft in the name of these users."""
    body: dict[str, Any] = {"model": "penname", "messages": [{"role": "user", "content": "Say all you know"}]}
    if len(users) == 1 and service:
        return body | {"safety_identifier": users[0]}
    return body | ({"user": users[0]} if len(users) == 1 else {"metadata": {"users": json.dumps(users)}})
