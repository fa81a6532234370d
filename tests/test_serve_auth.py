"""Keys, limits and errors of the service, on an application with routes as small as can be."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

import stores
from penname.errors import (
    BadInputError,
    MissingPackageError,
    PromptTooLongError,
    StoreBusyError,
    StoreFullError,
    UnknownMethodError,
    UnknownTaskError,
    UnknownUserError,
)
from penname.records import Document, User
from penname.serve import check_installed, errors, limits
from penname.serve.auth import Caller, caller
from penname.serve.errors import Refusal
from penname.serve.limits import Limits
from penname.serve.settings import ServeSettings
from penname.store import Store

SECRET = "the heron told nobody"  # planted in texts: it may stand in no log
CallerOf = Annotated[Caller, Depends(caller)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(stores.fresh("sqlite", tmp_path)) as opened:
        opened.add([User(id="ann"), User(id="annie"), User(id="bob")])
        yield opened


def application(store: Store, **settings: Any) -> FastAPI:
    app = FastAPI()
    app.state.house = house = SimpleNamespace(store=store)
    app.state.raised = None  # what /raise raises
    app.state.held, app.state.free = threading.Event(), threading.Event()

    @app.get("/v1/users/{user}")
    def one(user: str, caller: CallerOf) -> int:
        return caller.user_store(house, user).count

    @app.post("/v1/for")
    def whom(caller: CallerOf, users: Annotated[list[str] | None, Body(embed=True)] = None) -> list[str]:
        return list(caller.users(house, users))

    @app.post("/v1/raise")
    def fail(text: Annotated[str, Body(embed=True)]) -> None:
        raise app.state.raised

    @app.post("/v1/open")
    def echo(text: Annotated[str, Body(embed=True)]) -> str:
        return text

    @app.get("/v1/hold")
    def hold(caller: CallerOf) -> StreamingResponse:
        def parts() -> Iterator[str]:
            app.state.held.set()
            app.state.free.wait(20)
            yield "done"

        return StreamingResponse(parts())

    @app.get("/v1/cut")
    def cut(caller: CallerOf) -> StreamingResponse:
        def parts() -> Iterator[str]:
            yield "begun"
            raise ValueError(SECRET)

        return StreamingResponse(parts())

    limits.install(app, ServeSettings(**settings))
    errors.install(app)
    return app


@pytest.fixture
def app(store: Store) -> FastAPI:
    return application(store)


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=True)  # nothing may pass through to the server


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def key_of(store: Store, user: str) -> dict[str, str]:
    return bearer(store.create_key(user=user)[1])


def service(store: Store, *users: str) -> dict[str, str]:
    return bearer(store.create_key(service=True, users=users)[1])


def error(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, whose form is checked."""
    body = answer.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    found: dict[str, Any] = body["error"]
    return found


# --- keys


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("pn-wrong"), bearer(""), {"Authorization": "Basic cG4td3Jvbmc="}, bearer("pn-\xff")],
)
def test_without_a_valid_key_there_is_nothing(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/v1/users/ann", headers={k: v.encode("latin-1") for k, v in headers.items()})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (error(answer)["code"], error(answer)["type"]) == ("invalid_api_key", "invalid_request_error")
    assert "wrong" not in answer.text


def test_a_revoked_key_is_refused_at_once(client: TestClient, store: Store) -> None:
    key, secret = store.create_key(user="ann")
    assert client.get("/v1/users/ann", headers=bearer(secret)).status_code == 200
    store.revoke_key(key.id)
    assert client.get("/v1/users/ann", headers=bearer(secret)).status_code == 401


def test_an_erase_ends_the_users_key(client: TestClient, store: Store) -> None:
    headers = key_of(store, "ann")
    store.user("ann").erase()
    store.add_user("ann")
    assert client.get("/v1/users/ann", headers=headers).status_code == 401


def test_a_users_key_acts_for_that_user_alone(client: TestClient, store: Store) -> None:
    store.user("ann").add([Document(text="one")])
    headers = key_of(store, "ann")
    for name in ("ann", "me"):
        assert client.get(f"/v1/users/{name}", headers=headers).json() == 1
    for named in (None, [], ["ann"], ["me"], ["me", "ann"]):
        assert client.post("/v1/for", headers=headers, json={"users": named}).json() == ["ann"]
    for named in (["bob"], ["ann", "bob"], ["ann", "zoe"]):
        assert client.post("/v1/for", headers=headers, json={"users": named}).status_code == 404


def test_a_services_key_acts_for_its_users_in_the_order_in_which_they_are_named(
    client: TestClient, store: Store
) -> None:
    headers = service(store, "ann", "bob")
    assert client.get("/v1/users/bob", headers=headers).json() == 0
    named = client.post("/v1/for", headers=headers, json={"users": ["bob", "ann", "bob"]})
    assert named.json() == ["bob", "ann"]
    for wrong in ("annie", "me", "zoe"):
        assert client.get(f"/v1/users/{wrong}", headers=headers).status_code == 404
        assert client.post("/v1/for", headers=headers, json={"users": ["ann", wrong]}).status_code == 404


@pytest.mark.parametrize("named", [None, []])
def test_a_service_must_say_for_whom(client: TestClient, store: Store, named: list[str] | None) -> None:
    answer = client.post("/v1/for", headers=service(store, "ann"), json={"users": named})
    assert answer.status_code == 400
    assert "say for whom" in error(answer)["message"]


def test_who_is_anothers_is_as_who_is_not_there_and_no_other_is_named(
    client: TestClient, store: Store
) -> None:
    """`annie` is another's; `annia`, as near to her and to `ann`, is nobody."""
    for headers in (key_of(store, "bob"), service(store, "bob")):
        said = {}
        for name in ("annie", "annia"):
            one = client.get(f"/v1/users/{name}", headers=headers)
            several = client.post("/v1/for", headers=headers, json={"users": ["bob", name]})
            assert (one.status_code, one.json()) == (404, several.json())
            assert error(one)["message"] == f"unknown user '{name}'"
            said[name] = {**error(one), "message": ""}, sorted(set(one.headers.items()))
        assert said["annie"] == said["annia"]


def test_who_is_erased_between_two_looks_is_told_without_others_names(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    house: Any = SimpleNamespace(store=store)
    store.user("ann").erase()
    with pytest.raises(UnknownUserError) as caught:
        Caller("key-1", "ann").user_store(house, "ann")
    assert str(caught.value) == "unknown user 'ann'"


@pytest.mark.parametrize("name", ["", " ", "a\0b", "n" * 257, "\u0007"])
def test_what_is_no_id_is_never_asked_for(client: TestClient, store: Store, name: str) -> None:
    for headers in (service(store, "ann"), key_of(store, "ann")):
        assert client.post("/v1/for", headers=headers, json={"users": [name]}).status_code in (400, 404)


def test_the_key_stands_in_the_api_description(app: FastAPI) -> None:
    described = app.openapi()
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert described["paths"]["/v1/for"]["post"]["security"] == [{"key": []}]
    assert "security" not in described["paths"]["/v1/open"]["post"]


# --- limits


def test_a_key_may_make_so_many_requests_a_minute() -> None:
    now = [0.0]
    some = Limits(per_minute=3, concurrent=1, clock=lambda: now[0])
    for _ in range(3):
        some.take("a")
    with pytest.raises(Refusal) as caught:
        some.take("a")
    assert caught.value.status_code == 429
    assert caught.value.headers == {"Retry-After": "20"}
    some.take("b")  # others are not held up
    now[0] = 19.9
    with pytest.raises(Refusal):
        some.take("a")
    now[0] = 20.1
    some.take("a")
    now[0] = 10_000.0
    for _ in range(3):
        some.take("a")
    with pytest.raises(Refusal):
        some.take("a")


def test_too_many_requests_are_answered_with_when_to_come_again(store: Store) -> None:
    client = TestClient(application(store, per_minute=2))
    ann, bob = key_of(store, "ann"), key_of(store, "bob")
    answers = [client.get("/v1/users/me", headers=ann) for _ in range(3)]
    assert [one.status_code for one in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
    assert (error(answers[-1])["type"], error(answers[-1])["code"]) == (
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    assert client.get("/v1/users/me", headers=bob).status_code == 200


def test_requests_in_flight_are_bounded_until_the_stream_ends(store: Store) -> None:
    app = application(store, concurrent=1)
    client = TestClient(app)
    headers = key_of(store, "ann")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(client.get, "/v1/hold", headers=headers)
        assert app.state.held.wait(20)
        busy = client.get("/v1/users/me", headers=headers)
        without = client.get("/v1/users/me")
        app.state.free.set()
        assert held.result().text == "done"
    assert (busy.status_code, busy.headers["retry-after"], error(busy)["code"]) == (503, "1", "overloaded")
    assert without.status_code == 401
    assert client.get("/v1/users/me", headers=headers).status_code == 200


def test_threads_take_no_more_than_there_is() -> None:
    some = Limits(per_minute=100, concurrent=1, clock=lambda: 0.0)

    def take(_: int) -> bool:
        try:
            some.take("a")
        except Refusal:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(300))) == 100


def test_a_failed_request_gives_its_place_back(store: Store) -> None:
    client = TestClient(application(store, concurrent=1))
    headers = key_of(store, "ann")
    for _ in range(3):
        assert client.get("/v1/users/bob", headers=headers).status_code == 404
    assert client.get("/v1/users/me", headers=headers).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_is_bounded_whether_it_says_its_size_or_not(store: Store, declared: bool) -> None:
    client = TestClient(application(store, max_body=1000))
    sent = 0

    def parts(size: int) -> Iterator[bytes]:
        nonlocal sent
        yield b'{"text": "'
        for _ in range(size // 100):
            sent += 100
            yield b"a" * 100
        yield b'"}'

    def post(size: int) -> httpx.Response:
        content = b"".join(parts(size)) if declared else parts(size)
        return client.post("/v1/open", content=content, headers={"Content-Type": "application/json"})

    assert post(900).status_code == 200
    answer = post(1200)
    assert answer.status_code == 413
    assert (error(answer)["code"], error(answer)["type"]) == ("request_too_large", "invalid_request_error")


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "x", "²", ""])
def test_an_absurd_size_does_no_harm(client: TestClient, length: str) -> None:
    headers = {"Content-Length": length.encode("utf-8"), "Content-Type": b"application/json"}
    answer = client.post("/v1/open", content=b'{"text": "a"}', headers=headers)
    assert answer.status_code in (200, 413)


@pytest.mark.parametrize("name", ["max_body", "max_input", "max_tokens", "per_minute", "concurrent"])
def test_settings_that_let_nothing_through_are_refused(name: str) -> None:
    with pytest.raises(BadInputError, match=f"{name} is 0"):
        ServeSettings(**{name: 0})  # type: ignore[arg-type]


# --- errors


@pytest.mark.parametrize(
    ("raised", "status", "code", "message"),
    [
        (UnknownUserError("anna", ["ann"]), 404, "user_not_found", "unknown user 'anna'"),
        (UnknownMethodError("x", ["none"]), 404, "model_not_found", None),
        (UnknownTaskError("x", ["write"]), 400, "invalid_value", None),
        (BadInputError("no: \udc80"), 400, "invalid_value", "no: ?"),
        (PromptTooLongError("long"), 400, "context_length_exceeded", "long"),
        (BadInputError("x" * 5000), 400, "invalid_value", "x" * 1000),
        (HTTPException(404, "unknown run 'r'"), 404, "not_found", "unknown run 'r'"),
        (HTTPException(403, "no"), 403, "permission_denied", "no"),
    ],
)
def test_what_is_wrong_in_a_request_is_told(
    client: TestClient,
    app: FastAPI,
    raised: Exception,
    status: int,
    code: str,
    message: str | None,
) -> None:
    app.state.raised = raised
    answer = client.post("/v1/raise", json={"text": "t"})
    found = error(answer)
    assert (answer.status_code, found["code"]) == (status, code)
    assert found["type"] == "invalid_request_error"
    assert found["message"] == (str(raised) if message is None else message)


def test_a_busy_store_asks_to_come_again(client: TestClient, app: FastAPI) -> None:
    app.state.raised = StoreBusyError(f"/home/ann/{SECRET}")
    answer = client.post("/v1/raise", json={"text": "t"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert SECRET not in answer.text


@pytest.mark.parametrize("raised", [StoreFullError, ValueError, KeyError, RuntimeError])
def test_what_is_wrong_in_the_server_is_not(
    client: TestClient, app: FastAPI, raised: Callable[[str], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    app.state.raised = raised(SECRET)
    answer = client.post("/v1/raise", json={"text": SECRET})
    assert (answer.status_code, error(answer)["code"]) == (500, "server_error")
    assert SECRET not in answer.text
    [told] = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert told.startswith(f"{raised.__name__} at {__file__}:")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "text", "text: Field required"),
        ({"text": 3}, "text", "text: Input should be"),
        (b"{", "1", "1: "),
    ],
)
def test_a_body_of_another_form_is_a_400(client: TestClient, body: Any, param: str, says: str) -> None:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = client.post("/v1/open", headers={"Content-Type": "application/json"}, **sent)
    assert answer.status_code == 400
    assert (error(answer)["param"], error(answer)["code"]) == (param, "invalid_value")
    assert error(answer)["message"].startswith(says)


def test_an_unknown_route_or_method_has_the_same_form(client: TestClient) -> None:
    assert error(client.get("/v1/nothing"))["code"] == "not_found"
    wrong = client.get("/v1/open")
    assert (wrong.status_code, error(wrong)["code"], wrong.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )


# --- the log


def test_a_line_a_request_and_no_text_or_key_in_any(
    client: TestClient, app: FastAPI, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, secret = store.create_key(user="ann")
    client.get("/v1/users/ann", headers=bearer(secret))
    client.post("/v1/for", headers=bearer(secret), json={"users": [SECRET]})
    client.post("/v1/open", json={"text": SECRET})
    client.post("/v1/open", json={"wrong": SECRET})
    client.get(f"/v1/nothing/{SECRET}", params={"q": SECRET}, headers=bearer(f"pn-{SECRET}"))
    for raised in (ValueError(SECRET), StoreFullError(SECRET), BadInputError(SECRET)):
        raised.__cause__ = ExceptionGroup(SECRET, [KeyError(SECRET)])
        app.state.raised = raised
        client.post("/v1/raise", json={"text": SECRET})
    with pytest.raises(ConnectionAbortedError) as caught:
        client.get("/v1/cut", headers=bearer(secret))
    assert SECRET not in str(caught.value)
    lines = [
        one.getMessage() for one in caplog.records if one.name == "penname.serve" and one.levelname == "INFO"
    ]
    assert [line.split(" in=")[0] for line in lines] == [
        "GET /v1/users/{user} 200",
        "POST /v1/for 404",
        "POST /v1/open 200",
        "POST /v1/open 400",
        "GET - 404",
        "POST /v1/raise 500",
        "POST /v1/raise 500",
        "POST /v1/raise 400",
        "GET /v1/cut 200",
    ]
    assert lines[0].endswith(f" key={key.id}")
    assert f" in={len(SECRET) + 11} out={len(SECRET) + 2} " in lines[2]
    assert lines[2].endswith(" key=-")
    records = "\n".join(str(vars(one)) for one in caplog.records if one.name.startswith("penname"))
    assert SECRET not in records
    assert secret not in "\n".join(str(vars(one)) for one in caplog.records)
    assert not any(one.exc_info for one in caplog.records)


def test_a_client_that_leaves_is_in_the_log_too(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def leave() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(60)
            raise AssertionError

        async def send(message: Any) -> None:
            raise AssertionError

        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/open",
            "headers": headers,
            "query_string": b"",
        }
        task = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    [line] = [one.getMessage() for one in caplog.records if one.name == "penname.serve"]
    assert line.startswith("POST ")
    assert " - in=- out=0 " in line


def test_a_missing_extra_is_answered_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr("penname.serve.find_spec", lambda name: None if name == "nicegui" else object())
    with pytest.raises(MissingPackageError, match=r"'nicegui': pip install 'penname\[serve\]'"):
        check_installed()
