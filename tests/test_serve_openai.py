"""OpenAI's routes by its own client, over a real server on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import stores
from models import ToldModel
from penname.errors import ServerUnreachableError
from penname.lm import LanguageModel
from penname.records import Document
from penname.serve.app import create_app
from penname.serve.engine import Batcher
from penname.serve.house import House
from penname.serve.settings import ServeSettings
from serve_models import TogetherModel, listening, until_waiting

HISTORY = {"ann": "Dear all, thank you so much!", "bob": "ok thx", "eve": "Whatever."}
ASKED: Any = [{"role": "user", "content": "Thank the choir."}]
EXPLAINED = "/v1/users/{user}/drafts/{id}"


class Served:
    """A real server with users ann and bob, whom a service's key acts for, and eve, who is nobody's."""

    def __init__(self, url: str, house: House, keys: dict[str, str], open_clients: ExitStack) -> None:
        self.url = url
        self.house = house
        self.keys = keys
        self._clients = open_clients

    def client(self, key: str) -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.keys.get(key, key), max_retries=0)
        return self._clients.enter_context(made)

    def post(self, body: object, key: str = "ann", path: str = "/v1/chat/completions") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60)

    def get(self, path: str, key: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {self.keys[key]}"}, timeout=60)


Serve = Callable[..., Served]


@contextmanager
def serving(folder: Path, model: LanguageModel, **settings: Any) -> Iterator[Served]:
    chosen = ServeSettings(
        **{"db": stores.fresh("sqlite", folder), "page": False, "per_minute": 100_000, **settings}
    )
    house = House(chosen, model=model)
    keys = {}
    for user, text in HISTORY.items():
        house.store.add_user(user).add([Document(id="first", title="Thanks", text=text)])
        keys[user] = house.store.create_key(user=user, service=False)[1]
    keys["service"] = house.store.create_key(service=True, users=["ann", "bob"])[1]
    try:
        with ExitStack() as clients, listening(create_app(chosen, house)) as url:
            yield Served(url, house, keys, clients)
    finally:
        house.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = ToldModel(lambda prompt: "Topics: thanks" if "Topics" in prompt else "thanks to all of you")
    with serving(tmp_path_factory.mktemp("served"), model) as found:
        yield found


def words(stream: Any) -> tuple[str, list[Any]]:
    """The text of a stream, and its chunks."""
    chunks = list(stream)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


# --- plain


def test_models_are_listed_and_read(served: Served) -> None:
    client = served.client("ann")
    listed = client.models.list().data
    assert [one.id for one in listed] == served.house.models()
    assert all(one.object == "model" and one.owned_by == "penname" for one in listed)
    assert client.models.retrieve("penname/retrieval:recency").id == "penname/retrieval:recency"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("penname/p-dpo:..%2fx")


def test_a_conversation_is_answered(served: Served) -> None:
    made = served.client("ann").chat.completions.create(model="penname/retrieval", messages=ASKED)
    assert made.object == "chat.completion"
    assert made.model == "penname/retrieval"
    assert made.id.startswith("chatcmpl-")
    [choice] = made.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", "thanks to all of you")
    assert made.usage is not None
    assert made.usage.completion_tokens == 5
    assert made.usage.total_tokens == made.usage.prompt_tokens + 5
    assert made.model_extra == {"penname": {"request_id": made.id}}
    explained = served.get(EXPLAINED.format(user="me", id=made.id), "ann").json()
    [draft] = explained["drafts"]
    assert draft["documents"][0]["document"]["text"] == HISTORY["ann"]
    assert draft["prompt_tokens"] == made.usage.prompt_tokens


def test_a_stream_brings_the_same_text_and_its_usage(served: Served) -> None:
    client = served.client("ann")
    plain = client.chat.completions.create(model="penname/none", messages=ASKED)
    text, chunks = words(client.chat.completions.create(model="penname/none", messages=ASKED, stream=True))
    assert text == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({c.id for c in chunks}) == 1
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert all(c.usage is None for c in chunks)
    asked = {"model": "penname/none", "messages": ASKED, "stream": True}
    _, chunks = words(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert served.get(EXPLAINED.format(user="me", id=chunks[0].id), "ann").status_code == 200


def test_events_are_server_sent_and_end_with_done(served: Served) -> None:
    answer = served.post({"model": "penname/none", "messages": ASKED, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])


def test_several_choices_differ_by_their_seed(tmp_path: Path) -> None:
    model = TogetherModel()
    with serving(tmp_path, model) as served:
        client = served.client("ann")
        made = client.chat.completions.create(model="penname/none", messages=ASKED, n=3, seed=7)
        assert [choice.index for choice in made.choices] == [0, 1, 2]
        assert sorted(seed for seeds in model.seeds for seed in seeds) == [7, 8, 9]
        assert made.usage is not None
        assert made.usage.completion_tokens == 6
        asked: Any = {"model": "penname/none", "messages": ASKED, "n": 2, "stream": True}
        texts = {0: "", 1: ""}
        for chunk in client.chat.completions.create(**asked):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == {0: "an answer", 1: "an answer"}
        drafts = served.get(EXPLAINED.format(user="me", id=made.id), "ann").json()["drafts"]
        assert [draft["seed"] for draft in drafts] == [7, 8, 9]


def test_settings_reach_the_model(tmp_path: Path) -> None:
    model = TogetherModel()
    with serving(tmp_path, model) as served:
        served.client("ann").chat.completions.create(
            model="penname/none",
            messages=ASKED,
            temperature=0.3,
            top_p=0.5,
            max_completion_tokens=17,
            stop=["END", "\n\n"],
            seed=-5,
            user="ann",
            store=False,
            parallel_tool_calls=False,
            presence_penalty=0,
            tool_choice="none",
            response_format={"type": "text"},
            metadata={"task": "email", "ticket": "17"},
        )
        [sampling] = model.samplings
        assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.3, 0.5, 17)
        assert {"END", "\n\n"} < set(sampling.stop)


def test_a_text_that_was_cut_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, TogetherModel(lambda _: "a b STOP c d")) as served:
        client = served.client("ann")
        made = client.chat.completions.create(model="penname/none", messages=ASKED, stop="STOP")
        assert made.choices[0].message.content == "a b "


def test_completions_take_a_prompt_or_several(served: Served) -> None:
    client = served.client("ann")
    one = client.completions.create(model="penname/none", prompt="Thank the choir.")
    assert one.object == "text_completion"
    assert one.id.startswith("cmpl-")
    assert (one.choices[0].text, one.choices[0].finish_reason) == ("thanks to all of you", "stop")
    several = client.completions.create(model="penname/none", prompt=["one", "two"], n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    stream = client.completions.create(model="penname/none", prompt="x", stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "thanks to all of you"
    assert chunks[-1].choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client.completions.create(model="penname/none", prompt=[1, 2])
    with pytest.raises(openai.BadRequestError, match="echo"):
        client.completions.create(model="penname/none", prompt="x", echo=True)


def test_a_conversation_with_parts_and_turns_is_one_text(served: Served) -> None:
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": "Yes?", "refusal": None},
        {"role": "user", "content": "Go on.", "name": "ann"},
    ]
    made = served.client("ann").chat.completions.create(model="penname/none", messages=messages)
    [draft] = served.get(EXPLAINED.format(user="me", id=made.id), "ann").json()["drafts"]
    assert draft["request"]["input"] == (
        "system: Be brief.\n\nuser: Hello\nthere\n\nassistant: Yes?\n\nuser: Go on."
    )


# --- whose


def test_a_service_acts_for_its_users(served: Served) -> None:
    client = served.client("service")
    ask = client.chat.completions.create

    def users(made: Any, *named: str) -> list[str]:
        path = EXPLAINED.format(user=named[0], id=made.id)
        found = served.get(path, "service").json()["drafts"][0]
        for user in HISTORY:
            if user not in named:
                assert HISTORY[user] not in json.dumps(found)
        users: list[str] = found["request"]["users"]
        return users

    asked: Any = {"model": "penname/retrieval", "messages": ASKED}
    assert users(ask(**asked, user="ann"), "ann") == ["ann"]
    assert users(ask(**asked, safety_identifier="bob"), "bob") == ["bob"]
    for named in ("bob, ann", '["bob", "ann"]'):
        made = ask(**asked, metadata={"users": named})
        assert users(made, "bob", "ann") == ["bob", "ann"]
        # Ann's own key sees nothing that bob's texts went into.
        assert served.get(EXPLAINED.format(user="me", id=made.id), "ann").status_code == 404
    with pytest.raises(openai.BadRequestError, match="for whom"):
        ask(**asked)
    with pytest.raises(openai.BadRequestError, match=r"metadata\.users"):
        ask(**asked, metadata={"users": "[ann"})


def test_another_users_anything_is_not_found(served: Served) -> None:
    absent = []
    for key, user in (("ann", "bob"), ("ann", "nobody"), ("service", "eve"), ("service", "nobody")):
        with pytest.raises(openai.NotFoundError) as error:
            served.client(key).chat.completions.create(model="penname/none", messages=ASKED, user=user)
        absent.append(str(error.value).replace(user, "X"))
    assert len(set(absent)) == 1
    with pytest.raises(openai.NotFoundError):
        served.client("service").chat.completions.create(
            model="penname/none", messages=ASKED, metadata={"users": "ann,eve"}
        )
    made = served.client("ann").chat.completions.create(model="penname/retrieval", messages=ASKED)
    assert served.get(EXPLAINED.format(user="me", id=made.id), "bob").status_code == 404


def test_without_a_key_there_is_nothing(served: Served) -> None:
    client = served.client("pn-wrong")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    with pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="penname/none", messages=ASKED)


# --- errors


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 5}, "n"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"max_completion_tokens": 100_000}, "max_completion_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 60_000}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"modell": "x"}, "modell"),
        ({"stream": "perhaps"}, "stream"),
    ],
)
def test_what_is_not_taken_is_named(served: Served, body: dict[str, Any], param: str) -> None:
    answer = served.post({"model": "penname/none", "messages": ASKED, **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)


def test_pictures_are_not_taken(served: Served) -> None:
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,x"}}]
    answer = served.post({"model": "penname/none", "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400


@pytest.mark.parametrize("model", ["gpt-4", "penname/p-dpo:/etc", "penname/p-dpo:../x", "penname/pit:.."])
@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(served: Served, model: str, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        served.client("ann").chat.completions.create(model=model, messages=ASKED, stream=stream)
    assert error.value.code == "model_not_found"


def test_what_does_not_fit_the_context_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, ToldModel(context=300)) as served:
        long: Any = [{"role": "user", "content": "word " * 500}]
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as error:
                served.client("ann").chat.completions.create(
                    model="penname/none", messages=long, stream=stream
                )
            assert error.value.code == "context_length_exceeded"


def test_too_many_requests_are_told_when_to_come_back(tmp_path: Path) -> None:
    with serving(tmp_path, ToldModel(), per_minute=2) as served:
        client = served.client("ann")
        for _ in range(2):
            client.chat.completions.create(model="penname/none", messages=ASKED)
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(model="penname/none", messages=ASKED)
        assert int(error.value.response.headers["retry-after"]) >= 1


class Breaking(ToldModel):
    """A model that breaks at the second piece of a stream, or at once."""

    at_once = False

    def stream(self, *asked: Any, **named: Any) -> Iterator[str]:
        if not self.at_once:
            yield "the beginning"
        raise ServerUnreachableError("the secret address of the model")


def test_an_error_after_the_first_byte_is_an_event(tmp_path: Path) -> None:
    model = Breaking()
    with serving(tmp_path, model) as served:
        client = served.client("ann")
        stream = client.chat.completions.create(model="penname/none", messages=ASKED, stream=True)
        with pytest.raises(openai.APIError) as error:
            list(stream)
        assert "secret" not in str(error.value)
        model.at_once = True
        with pytest.raises(openai.InternalServerError) as before:
            client.chat.completions.create(model="penname/none", messages=ASKED, stream=True)
        assert "secret" not in str(before.value)


# --- many at once


def test_requests_of_mixed_users_are_written_together_each_with_its_own_history(tmp_path: Path) -> None:
    model = TogetherModel(lambda prompt: f"{sum(text in prompt for text in HISTORY.values())} histories")
    with serving(tmp_path, model) as served, ThreadPoolExecutor(8) as pool:

        def ask(user: str, stream: bool) -> str:
            asked: Any = {"model": "penname/retrieval", "messages": ASKED, "stream": stream}
            made = served.client(user).chat.completions.create(**asked)
            return words(made)[0] if stream else made.choices[0].message.content

        model.go.clear()
        first = pool.submit(ask, "eve", False)
        model.begun.wait()
        others = [pool.submit(ask, user, stream) for user in ("ann", "bob") for stream in (False, True)]
        assert isinstance(served.house.model, Batcher)
        until_waiting(served.house.model, 4)
        model.go.set()
        assert {first.result(), *(other.result() for other in others)} == {"1 histories"}
        assert [len(batch) for batch in model.batches] == [1, 4]
        prompts = [prompt for prompt, _ in model.batches[1]]
        for user in ("ann", "bob"):
            assert sum(HISTORY[user] in prompt for prompt in prompts) == 2
        assert served.get("/health", "ann").status_code == 200


def test_a_client_that_goes_away_stops_its_stream(tmp_path: Path) -> None:
    class Endless(ToldModel):
        closed = False

        def stream(self, *asked: Any, **named: Any) -> Iterator[str]:
            try:
                while True:
                    yield "word "
            finally:
                self.closed = True
                ended.set()

    from threading import Event

    ended = Event()
    with serving(tmp_path, Endless()) as served:
        asked: Any = {"model": "penname/none", "messages": ASKED, "stream": True}
        stream = served.client("ann").chat.completions.create(**asked)
        next(iter(stream))
        stream.close()
        assert ended.wait(60)


def test_the_embedded_model_writes_the_same_streamed_or_not(
    tmp_path: Path, embedded_model: LanguageModel
) -> None:
    with serving(tmp_path, embedded_model) as served:
        asked: Any = {
            "model": "penname/retrieval",
            "messages": ASKED,
            "temperature": 0,
            "max_tokens": 12,
        }
        ask = served.client("ann").chat.completions.create
        plain = ask(**asked)
        text, chunks = words(ask(**asked, stream=True, stream_options={"include_usage": True}))
        assert text == plain.choices[0].message.content
        assert chunks[-1].usage == plain.usage
        assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason
