"""penname's own routes: what each does, what it refuses, and that nobody reaches what is another's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models import ToldModel
from penname.methods.pit.form import Form
from penname.methods.pit.improve import Improver
from penname.methods.prlhf import featured
from penname.methods.prlhf.featured import train_featured
from penname.methods.prlhf.lowrank import LowRankConfig
from penname.methods.prlhf.reward import open_reward
from penname.methods.runs import Runs
from penname.records import Document, Draft, Hit, Profile, Request
from penname.store import Store
from penname.tasks import PromptTexts
from serve_app import Service, serving
from test_pit_improve import Rounds, Values
from train_helpers import FakeEmbedder, one_thread, preferences
from trained_runs import save_card

CHOICE = {"kind": "choice", "prompt": "Thank them.", "chosen": "Thanks!", "rejected": "I thank you."}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as made:
        yield made


# --- keys and users

ROUTES = [
    ("GET", "/v1/users/{user}", None),
    ("PUT", "/v1/users/{user}", {"name": "X"}),
    ("DELETE", "/v1/users/{user}", None),
    ("GET", "/v1/users/{user}/export", None),
    ("GET", "/v1/users/{user}/documents", None),
    ("POST", "/v1/users/{user}/documents", {"documents": [{"text": "new"}]}),
    ("GET", "/v1/users/{user}/documents/first", None),
    ("DELETE", "/v1/users/{user}/documents/first", None),
    ("GET", "/v1/users/{user}/profile", None),
    ("PUT", "/v1/users/{user}/profile", {"text": "mine"}),
    ("POST", "/v1/users/{user}/profile/refresh", None),
    ("GET", "/v1/users/{user}/preferences", None),
    ("POST", "/v1/users/{user}/preferences", CHOICE),
    ("POST", "/v1/users/{user}/improve", {"text": "ok"}),
    ("GET", "/v1/users/{user}/drafts", None),
    ("GET", "/v1/users/{user}/drafts/d", None),
]


@pytest.mark.parametrize("key", ["ann", "service", "other"])
def test_another_users_everything_is_what_is_not_there(service: Service, key: str) -> None:
    before = list(service.store.user("eve").export())
    for method, path, body in ROUTES:
        theirs = service(key, method, path.format(user="eve"), body)
        assert theirs.status_code == 404, path
        if method == "PUT" and path.endswith("{user}") and key != "ann":
            continue  # a service adds users who are not there
        nobodys = service(key, method, path.format(user="nob"), body)
        assert nobodys.status_code == 404, path
        assert nobodys.json() == json.loads(theirs.text.replace("eve", "nob")), path
    assert list(service.store.user("eve").export()) == before


def test_without_a_key_nothing_is_answered(service: Service) -> None:
    for method, path, body in [*ROUTES, ("GET", "/v1/users", None), ("GET", "/v1/runs", None)]:
        for key in (None, "pn-wrong"):
            refused = service(key, method, path.format(user="ann"), body)
            assert refused.status_code == 401, path
            assert refused.json()["error"]["code"] == "invalid_api_key"


def test_users_are_listed_page_by_page(service: Service) -> None:
    first = service("service", "GET", "/v1/users?limit=1").json()
    assert [user["id"] for user in first["data"]] == ["ann"]
    second = service("service", "GET", f"/v1/users?limit=1&after={first['next']}").json()
    assert ([user["id"] for user in second["data"]], second["next"]) == (["bob"], None)
    assert [user["id"] for user in service("eve", "GET", "/v1/users").json()["data"]] == ["eve"]
    assert service("other", "GET", "/v1/users").json()["data"] == []
    assert service("service", "GET", "/v1/users?after=eve").status_code == 400
    assert service("service", "GET", "/v1/users?limit=0").status_code == 400


def test_a_service_adds_users_who_are_its_own(service: Service) -> None:
    added = service("other", "PUT", "/v1/users/new%2Fone", {"name": "New"})
    assert (added.status_code, added.json()["id"], added.json()["name"]) == (200, "new/one", "New")
    assert service("other", "GET", "/v1/users/new%2Fone").json()["documents"] == 0
    assert service("service", "GET", "/v1/users/new%2Fone").status_code == 404
    assert service("other", "PUT", "/v1/users/%20", {}).status_code == 400


def test_me_is_the_keys_user(service: Service) -> None:
    assert service("ann", "PUT", "/v1/users/me", {"name": "Ann A."}).json()["name"] == "Ann A."
    shown = service("ann", "GET", "/v1/users/me").json()
    assert shown == {"id": "ann", "name": "Ann A.", "documents": 1, "first": None, "last": None}
    assert service("service", "GET", "/v1/users/me").status_code == 404


def test_an_export_is_what_an_import_reads(service: Service) -> None:
    exported = service("ann", "GET", "/v1/users/me/export")
    assert exported.headers["content-type"].startswith("application/x-ndjson")
    rows = [json.loads(line) for line in exported.text.splitlines()]
    assert rows == json.loads(json.dumps(list(service.store.user("ann").export()), default=str))
    assert "thx" not in exported.text


def test_an_erased_user_is_gone(service: Service) -> None:
    draft = _draft("ann", "bob")
    service.house.keep("d1", "none", [draft, draft])
    service("service", "POST", "/v1/users/ann/preferences", CHOICE)
    service.settle()
    erased = service("service", "DELETE", "/v1/users/ann").json()
    assert (erased["documents"], erased["preferences"], erased["keys"], erased["drafts"]) == (1, 1, 1, 2)
    assert erased["trained"] == {"rows": 0, "lines": 0, "weights": []}
    assert service("service", "GET", "/v1/users/ann").status_code == 404
    assert service("ann", "GET", "/v1/users/me").status_code == 401
    assert service("service", "GET", "/v1/users/bob/drafts").json()["data"] == []


# --- documents and the profile


def test_documents_are_added_listed_read_and_removed(service: Service) -> None:
    body = {"documents": [{"id": "a/b", "text": "Dear team", "written_at": "2024-03-01"}, {"text": "Hi"}]}
    added = service("ann", "POST", "/v1/users/me/documents", body)
    assert (added.status_code, added.json()["new"], added.json()["ids"][0]) == (201, 2, "a/b")
    assert service("ann", "POST", "/v1/users/me/documents", body).json()["same"] == 2
    one = service("ann", "GET", "/v1/users/me/documents?limit=1").json()
    rest = service("ann", "GET", f"/v1/users/me/documents?after={one['next']}").json()
    assert [d["id"] for d in one["data"] + rest["data"]][-1] == "a/b"
    assert (len(rest["data"]), rest["next"]) == (2, None)
    assert service("ann", "GET", "/v1/users/me/documents/a%2Fb").json()["text"] == "Dear team"
    assert service("ann", "DELETE", "/v1/users/me/documents/a%2Fb").json() == {"id": "a/b", "deleted": True}
    assert service("ann", "GET", "/v1/users/me/documents/a%2Fb").status_code == 404
    assert service("ann", "GET", "/v1/users/me/documents/a%00b").status_code == 404


BAD_DOCUMENTS: list[dict[str, Any]] = [
    {"text": ""},
    {"text": " "},
    {"text": "\x00"},
    {"text": "a", "written_at": "soon"},
    {"text": "a", "position": 2},
    {"text": "a", "position": 10**30},
    {"text": "a", "id": "x" * 300},
    {"text": "a" * 1_000_001},
    {},
]


def test_a_document_that_cannot_be_kept_is_refused(service: Service) -> None:
    for document in BAD_DOCUMENTS:
        refused = service("ann", "POST", "/v1/users/me/documents", {"documents": [document]})
        assert refused.status_code in (400, 413)
        assert refused.json()["error"]["type"] == "invalid_request_error"
    assert service.store.user("ann").count == 1


def test_values_that_json_has_no_word_for_are_read_back(service: Service) -> None:
    raw = b'{"documents": [{"id": "n", "text": "a", "fields": {"x": NaN}}]}'
    headers = {"Authorization": f"Bearer {service.keys['ann']}", "Content-Type": "application/json"}
    posted = service.client.post("/v1/users/me/documents", content=raw, headers=headers)
    assert posted.status_code in (201, 400)
    assert service("ann", "GET", "/v1/users/me/documents").status_code == 200
    assert service("ann", "GET", "/v1/users/me/export").status_code == 200


def test_a_new_document_is_in_the_next_prompt(service: Service) -> None:
    request = Request(input="The owl", users=("ann",))
    writer = service.house.writer("retrieval", temperature=0.0)
    assert "owl" not in str(writer.prompts([request])[0].documents)
    service(
        "ann",
        "POST",
        "/v1/users/me/documents",
        {"documents": [{"title": "The owl", "text": "Of the owl I write"}]},
    )
    [draft] = service.house.writer("retrieval", temperature=0.0).prompts([request])
    assert "Of the owl I write" in str(draft.prompt)


def test_the_profile_follows_the_documents(service: Service) -> None:
    hint = service("ann", "GET", "/v1/users/me/profile")
    assert (hint.status_code, "profile/refresh" in hint.text) == (404, True)
    service("ann", "POST", "/v1/users/me/documents", {"documents": [{"text": "Dear choir, thanks."}]})
    service.settle()
    first = service("ann", "GET", "/v1/users/me/profile").json()
    assert (len(first["documents"]), first["refreshing"]) == (2, False)
    service("ann", "DELETE", "/v1/users/me/documents/first")
    service.settle()
    assert len(service("ann", "GET", "/v1/users/me/profile").json()["documents"]) == 1
    assert service.store.user("bob").profile() is None


def test_an_edited_profile_stays_until_it_is_refreshed(service: Service) -> None:
    edited = service("ann", "PUT", "/v1/users/me/profile", {"text": "I like owls."})
    assert (edited.status_code, edited.json()["edited"]) == (200, True)
    again = service("ann", "PUT", "/v1/users/me/profile", {"text": "I like owls.\n"})
    assert again.json()["version"] == edited.json()["version"]
    service("ann", "POST", "/v1/users/me/documents", {"documents": [{"text": "More."}]})
    service.settle()
    assert service("ann", "GET", "/v1/users/me/profile").json()["text"] == "I like owls."
    assert service("ann", "POST", "/v1/users/me/profile/refresh").status_code == 202
    service.settle()
    assert not service("ann", "GET", "/v1/users/me/profile").json()["edited"]
    assert service("ann", "PUT", "/v1/users/me/profile", {"text": " "}).status_code == 400


def test_without_documents_there_is_no_profile_to_make(service: Service) -> None:
    service("other", "PUT", "/v1/users/new", {})
    refused = service("other", "POST", "/v1/users/new/profile/refresh")
    assert (refused.status_code, "no documents" in refused.text) == (400, True)


def test_a_profile_that_fails_is_counted_and_told_without_texts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(prompt: str) -> str:
        raise RuntimeError(f"cannot go on after {prompt}")

    with serving(tmp_path, ToldModel(fails)) as service:
        service("ann", "POST", "/v1/users/me/documents", {"documents": [{"text": "a secret"}]})
        service.settle()
        assert 'penname_jobs_total{kind="profile",state="failed"} 1.0' in _metrics(service)
    assert "profile of user 'ann' failed: RuntimeError" in caplog.text
    assert "secret" not in caplog.text


# --- preferences


def test_preferences_are_kept_and_listed(service: Service) -> None:
    rating = {"kind": "rating", "prompt": "p", "completion": "c", "rating": 0.5}
    edit = {"kind": "edit", "prompt": "p", "draft": "d", "revision": "r"}
    for body in (CHOICE, rating, edit):
        kept = service("ann", "POST", "/v1/users/me/preferences", body)
        assert (kept.status_code, kept.json()["kind"], kept.json()["learnt"]) == (201, body["kind"], [])
    first = service("ann", "GET", "/v1/users/me/preferences?limit=2").json()
    rest = service("ann", "GET", f"/v1/users/me/preferences?after={first['next']}").json()
    assert [one["kind"] for one in first["data"]] == ["choice", "rating"]
    [last] = rest["data"]
    assert (last["rejected"], last["chosen"], rest["next"]) == ("d", "r", None)


SAYS_NOTHING: list[dict[str, Any]] = [
    {"kind": "guess"},
    {"chosen": "I thank you."},
    {"prompt": " "},
    {"chosen": ""},
    {"kind": "rating", "completion": "c", "rating": 2},
    {"kind": "edit"},
]


def test_a_preference_that_says_nothing_is_refused(service: Service) -> None:
    for change in SAYS_NOTHING:
        refused = service("ann", "POST", "/v1/users/me/preferences", CHOICE | change)
        assert refused.status_code == 400
    assert service.store.user("ann").preferences() == []


@pytest.fixture
def low_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on fixed features that knows ann and bob."""
    monkeypatch.setattr(featured, "load_embedder", FakeEmbedder)
    with one_thread():
        train_featured(preferences(), tmp_path / "mine", config=LowRankConfig(epochs=2))
    return tmp_path / "mine"


def test_a_preference_is_learnt_at_once_and_nobody_elses_reward_moves(tmp_path: Path, low_rank: Path) -> None:
    def rewards(user: str) -> list[float]:
        return open_reward(low_rank).rewards(["Thank them."] * 2, ["Thanks!", "I thank you."], [user] * 2)

    with one_thread(), serving(tmp_path, runs=(low_rank,), adapt=("mine",)) as service:
        before = {user: rewards(user) for user in ("eve", "bob")}
        kept = service("eve", "POST", "/v1/users/me/preferences", CHOICE).json()
        [learnt] = kept["learnt"]
        assert (learnt["run"], learnt["state"], learnt["preferences"]) == ("mine", "learnt", 1)
        assert learnt["refinement"] == "refined"
        assert rewards("eve") != before["eve"]
        assert rewards("bob") == before["bob"]
        rating = {"kind": "rating", "prompt": "p", "completion": "c", "rating": 0.5}
        assert (
            service("bob", "POST", "/v1/users/me/preferences", rating).json()["learnt"][0]["state"]
            == "nothing"
        )
        assert 'penname_jobs_total{kind="adapt",state="done"} 1.0' in _metrics(service)
        erased = service("eve", "DELETE", "/v1/users/me").json()
        assert erased["trained"]["rows"] == 1
        assert rewards("eve") == before["eve"]


@pytest.mark.parametrize(("users", "name"), [("none", "soft"), ("pooled", "soft"), ("individual", "else")])
def test_a_run_that_learns_nothing_of_users_is_refused_at_the_start(
    tmp_path: Path, users: str, name: str
) -> None:
    run = save_card(tmp_path / "soft", users, method="p-rm")
    with pytest.raises(Exception, match="--adapt"), serving(tmp_path, runs=(run,), adapt=(name,)):
        pass


# --- better texts, drafts, runs


@pytest.fixture
def improving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, Rounds]]:
    script = Rounds("Thank you all, truly.", "Thanks.")
    run = save_card(tmp_path / "better", "none", method="pit")
    improver = Improver(script, Values(), Form("completion", PromptTexts.load()), run)
    monkeypatch.setattr("penname.serve.house.open_runs", lambda *_: Runs(improver=improver))
    with serving(tmp_path, runs=(run,)) as service:
        yield service, script


def test_a_text_is_improved_towards_the_users_profile(improving: tuple[Service, Rounds]) -> None:
    service, script = improving
    service.store.user("ann").add_profile(Profile(user="ann", text="ann is warm"))
    asked = {"text": "Thanks all.", "request": "Thank the team"}
    found = service("ann", "POST", "/v1/users/me/improve", asked).json()
    assert (found["text"], found["run"]) == ("Thank you all, truly.", "better")
    assert [made["taken"] for made in found["rounds"]] == [True, False]
    assert "About the writer. ann is warm\n" in script.asked[0]
    assert service("ann", "POST", "/v1/users/me/improve", asked | {"run": "other"}).status_code == 404
    assert service("ann", "POST", "/v1/users/me/improve", asked | {"rounds": 99}).status_code == 400


def test_without_a_run_of_pit_nothing_is_improved(service: Service) -> None:
    refused = service("ann", "POST", "/v1/users/me/improve", {"text": "ok"})
    assert (refused.status_code, "PIT" in refused.text) == (404, True)


def _draft(*users: str) -> Draft:
    request = Request(input="Thank them", users=users)
    hit = Hit(user=users[0], document=Document(id="first", text="Dear all"), score=1.0)
    return Draft(text="Thanks", request=request, method="none", model="told", finish="stop", documents=(hit,))


def test_drafts_are_explained_to_who_may_act_for_all_their_authors(service: Service) -> None:
    service.house.keep("d1", "retrieval", [_draft("ann")])
    service.house.keep("d2", "retrieval", [_draft("ann", "bob")])
    service.house.keep("d3", "retrieval", [_draft("ann", "eve")])
    assert [one["id"] for one in service("ann", "GET", "/v1/users/me/drafts").json()["data"]] == ["d1"]
    both = service("service", "GET", "/v1/users/ann/drafts").json()["data"]
    assert [one["id"] for one in both] == ["d2", "d1"]
    shown = service("ann", "GET", "/v1/users/me/drafts/d1").json()
    assert shown["drafts"][0]["documents"][0]["document"]["text"] == "Dear all"
    for key, path in (("ann", "me/drafts/d2"), ("service", "ann/drafts/d3"), ("bob", "me/drafts/d1")):
        assert service(key, "GET", f"/v1/users/{path}").status_code == 404
    assert service("ann", "GET", "/v1/explanations/d1").json() == shown
    assert service("service", "GET", "/v1/explanations/d2").status_code == 200
    assert service("bob", "GET", "/v1/explanations/d2").status_code == 404


def test_runs_are_shown_to_services_without_paths(tmp_path: Path) -> None:
    run = save_card(tmp_path / "done", "individual", model=str(tmp_path / "base"))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    workshop = tmp_path / "going.training"
    workshop.mkdir()
    (workshop / "asked.json").write_text('{"method": "p-dpo", "settings": {}}')
    (workshop / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')

    def noted(store: Store) -> None:
        store.add_trained(tmp_path / "going", "p-dpo")

    with serving(tmp_path, runs=(run,), before=noted) as service:
        listed = service("service", "GET", "/v1/runs").json()["data"]
        assert [(one["name"], one["state"]) for one in listed] == [("done", "trained"), ("going", "training")]
        shown = service("service", "GET", "/v1/runs/done").json()
        assert (shown["card"]["model"], shown["metrics"]) == ("base", [{"step": 1, "loss": 2.0}])
        going = service("service", "GET", "/v1/runs/going?rows=1").json()
        assert going["metrics"] == [{"step": 2}]
        assert service("service", "GET", "/v1/runs/nothing").status_code == 404
        assert service("service", "GET", "/v1/runs/..%2Fdone").status_code == 404
        assert service("ann", "GET", "/v1/runs").status_code == 403


def test_a_run_that_cannot_be_cleaned_keeps_the_user_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()  # not even an index of whom it saw
    with serving(tmp_path, before=lambda store: store.add_trained(broken, "p-dpo")) as service:
        refused = service("service", "DELETE", "/v1/users/ann")
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "erasure_failed")
        assert "broken" in refused.text
        assert str(tmp_path) not in refused.text
        assert str(broken) in caplog.text  # the log is for who can mend it
        assert service("service", "GET", "/v1/users/ann").json()["documents"] == 1
        broken.rmdir()
        assert service("service", "DELETE", "/v1/users/ann").status_code == 200


# --- the server itself


def _metrics(service: Service) -> str:
    return service("service", "GET", "/metrics").text


def test_health_is_open_and_metrics_are_for_services(service: Service) -> None:
    assert service(None, "GET", "/health").json()["status"] == "ok"
    assert service(None, "GET", "/metrics").status_code == 401
    assert service("ann", "GET", "/metrics").status_code == 403
    service("ann", "GET", "/v1/users/ann/documents/first")
    service("ann", "GET", "/nowhere/ann")
    text = _metrics(service)
    route = "/v1/users/{user}/documents/{document}"
    assert f'penname_requests_total{{method="GET",route="{route}",status="200"}} 1.0' in text
    assert 'route="other",status="404"' in text
    assert "ann" not in text


def test_answers_run_no_scripts_and_are_kept_by_nobody(service: Service) -> None:
    headers = service(None, "GET", "/health").headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert service("ann", "GET", "/v1/users/me").headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


def test_what_waits_is_done_once_for_a_user_and_left_at_the_stop(tmp_path: Path) -> None:
    from penname.serve.background import Background

    told: list[tuple[str, str]] = []
    with serving(tmp_path) as service:
        background = Background(service.house, lambda kind, state: told.append((kind, state)))
        assert background.profile("ann")
        assert background.profile("ann", refresh=True)
        assert background.profile("bob")
        assert (background.waiting, background.waits("ann")) == (2, True)
        background.forget("bob")
        background.start()
        background.finish()
        background.close()
        assert not background.profile("ann")
    assert told == [("profile", "done"), ("profile", "dropped")]
