"""Servers that are down, busy, wrong or rude: one clear error for each, and no secret in it."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest

from model_server import Reply, chat, error
from penname.errors import (
    BadInputError,
    PromptTooLongError,
    ServerError,
    ServerRateLimitedError,
    ServerRefusedError,
    ServerUnreachableError,
)
from penname.lm.config import ModelConfig
from penname.lm.remote import RemoteLM
from penname.records import Message

SECRET = "sk-very-secret-key-0123456789"
PRIVATE = "Dear diary, today I told nobody about the blue bicycle."

pytestmark = pytest.mark.usefixtures("waits")


# Retries


def test_what_may_pass_is_tried_again_after_longer_and_longer_waits(serve, waits):
    replies = iter([error(s, "busy") for s in (408, 409, 429, 500, 503)] + [chat("at last")])
    [[text]] = serve(lambda path, body: next(replies)).model(retries=5).generate(["x"])
    assert text.text == "at last"
    assert len(waits) == 5
    assert all(0.375 * 2**k <= wait <= 0.5 * 2**k for k, wait in enumerate(waits))


def test_the_wait_that_the_server_asks_for_is_kept(serve, waits):
    replies = iter([Reply("", 429, {"Retry-After": "7"}), chat("ok")])
    serve(lambda path, body: next(replies)).model(retries=1).generate(["x"])
    assert waits == [7]


def test_no_retry_where_the_server_asks_for_too_long_a_wait(serve, waits):
    model = serve(lambda path, body: Reply("", 429, {"Retry-After": "3600"})).model(retries=5)
    with pytest.raises(ServerRateLimitedError, match="3600 seconds"):
        model.generate(["x"])
    assert waits == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_tried_again(serve, waits, status):
    model = serve(lambda path, body: error(status, "no")).model(retries=5)
    with pytest.raises(ServerRefusedError) as caught:
        model.generate(["x"])
    assert caught.value.status == status
    assert waits == []


# Refusals


def test_a_server_that_is_down(waits):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    gone = RemoteLM(ModelConfig(model=f"{where}#tiny", retries=2))
    for call in (lambda: gone.generate(["x"]), lambda: list(gone.stream("x")), lambda: gone.context):
        with pytest.raises(
            ServerUnreachableError, match=rf"no connection to {where} \(3 attempts\).*running"
        ):
            call()
    assert len(waits) == 6


def test_a_server_that_never_answers(serve):
    release = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> Reply:
        release.wait(5)
        return chat("too late")

    with pytest.raises(ServerUnreachableError, match=r"within 0\.05 seconds"):
        serve(answer).model(timeout=0.05).generate(["x"])
    release.set()


def test_an_answer_cut_in_the_middle_is_no_answer(serve):
    reply = chat("ok")
    reply.cut = True
    with pytest.raises(ServerUnreachableError):
        serve(lambda path, body: reply).model().generate(["x"])


def test_a_server_that_keeps_failing(serve):
    with pytest.raises(ServerError, match=r"status 502 \(3 attempts\)") as caught:
        serve(lambda path, body: Reply("<html>Bad gateway</html>", 502)).model(retries=2).generate(["x"])
    assert "html" not in str(caught.value)


def test_too_many_requests(serve):
    with pytest.raises(ServerRateLimitedError, match="quota used up"):
        serve(lambda path, body: error(429, "quota used up")).model(retries=1).generate(["x"])


def test_401_names_the_variable_of_the_key(serve, monkeypatch):
    server = serve(lambda path, body: error(401, f"wrong key {SECRET}"))
    with pytest.raises(ServerRefusedError, match="PENNAME_API_KEY"):
        server.model().generate(["x"])
    monkeypatch.setenv("MY_KEY", SECRET)
    with pytest.raises(ServerRefusedError, match="the environment variable MY_KEY") as caught:
        server.model(api_key_env="MY_KEY").generate(["x"])
    assert SECRET not in str(caught.value)


def test_403_names_the_model(serve):
    with pytest.raises(ServerRefusedError, match="may not use the model 'tiny'"):
        serve(lambda path, body: error(403, "no")).model().generate(["x"])


def test_404_tells_what_the_server_offers(serve):
    def answer(path: str, body: dict[str, Any]) -> Reply:
        if path == "/models":
            return Reply({"data": [{"id": "tiny-1b"}, {"id": "huge-70b"}]})
        return error(404, "no such model")

    with pytest.raises(ServerRefusedError, match=r"did you mean 'tiny-1b'\?.*offers tiny-1b, huge-70b"):
        serve(answer).model("tiny-1").generate(["x"])
    with pytest.raises(ServerRefusedError, match="the other `shape`"):
        serve(answer).model("tiny-1b").generate(["x"])


def test_404_everywhere_is_a_wrong_address(serve):
    with pytest.raises(ServerRefusedError, match="ends in /v1"):
        serve(lambda path, body: Reply("not found", 404)).model().generate(["x"])


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "too many tokens", code="context_length_exceeded"),
        error(400, "request (9000 tokens) exceeds it", type="exceed_context_size_error"),
        error(400, "This model's maximum context length is 2048 tokens."),
        Reply({"object": "error", "message": "The prompt is too long", "code": 400}, 400),
        Reply({"detail": "exceeds the context window"}, 422),
    ],
)
def test_a_prompt_beyond_the_context(serve, reply):
    with pytest.raises(PromptTooLongError, match="context of 'tiny'"):
        serve(lambda path, body: reply).model().generate(["x"])


@pytest.mark.parametrize(
    "reply",
    [
        Reply("<html>Welcome</html>", headers={"Content-Type": "text/html"}),
        Reply("{broken"),
        Reply("null"),
        Reply({"choices": []}),
        Reply({"choices": [{"index": 0, "finish_reason": "stop"}]}),
        Reply({"choices": "many"}),
        Reply({"unrelated": True}),
    ],
)
def test_an_answer_that_is_none(serve, reply):
    with pytest.raises(ServerError, match="JSON with choices"):
        serve(lambda path, body: reply).model().generate(["x"])


def test_json_under_another_name_is_still_json(serve):
    reply = chat("ok")
    reply.headers = {"Content-Type": "text/plain"}
    [[text]] = serve(lambda path, body: reply).model().generate(["x"])
    assert text.text == "ok"


def test_a_content_filter_is_a_refusal(serve):
    with pytest.raises(ServerRefusedError, match="content filter"):
        serve(lambda path, body: chat(None, finish="content_filter")).model().generate(["x"])


@pytest.mark.parametrize(
    "said",
    [
        f"cannot use {PRIVATE}",
        f"cannot use {json.dumps(PRIVATE + chr(10) + 'ünd')}",
        "unexpected word 'bicycle' in the input",
        f"{PRIVATE[10:40]}",
        f"key {SECRET} is unknown",
    ],
)
def test_no_error_tells_the_prompt_or_the_key(serve, monkeypatch, said):
    monkeypatch.setenv("PENNAME_API_KEY", SECRET)
    model = serve(lambda path, body: error(400, said)).model()
    for prompt in (f"{PRIVATE}\nünd", (Message(role="user", content=f"{PRIVATE}\nünd"),)):
        with pytest.raises(ServerRefusedError, match="explanation is left out") as caught:
            model.generate([prompt])
        assert "bicycle" not in str(caught.value)
        assert SECRET not in str(caught.value)
        assert caught.value.__suppress_context__  # a traceback does not show the client's error either


def test_half_a_character_in_a_prompt(serve):
    model = serve(lambda path, body: chat("ok")).model()
    with pytest.raises(BadInputError, match="half a character"):
        model.generate(["broken \ud83d emoji"])
    with pytest.raises(BadInputError, match="half a character"):
        list(model.stream("broken \ud83d emoji"))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_prompt_goes_to_no_server_but_the_one_that_was_named(serve, status):
    other = serve(lambda path, body: chat("stolen"))
    elsewhere = {"Location": f"http://127.0.0.1:{other.port}/v1/chat/completions"}
    model = serve(lambda path, body: Reply("", status, elsewhere)).model()
    with pytest.raises(ServerError, match=str(status)):
        model.generate([PRIVATE])
    assert other.bodies == []
