"""A model behind an OpenAI-compatible server: what it is asked, and what it gives."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server import Answering, Reply, chat, error, events, piece
from penname.errors import BadInputError, ServerRefusedError, StreamCutError
from penname.lm.base import Generation, Sampling, sample_seed
from penname.lm.config import ModelConfig
from penname.lm.remote import RemoteLM
from penname.lm.stops import stop_at, until_stop
from penname.records import Message

SECRET = "sk-very-secret-key-0123456789"

pytestmark = pytest.mark.usefixtures("waits")


# Generating


def test_a_chat_model_gets_the_messages_and_the_sampling(serve):
    server = serve(lambda path, body: chat("Hello."))
    model = server.model()
    prompt = (Message(role="system", content="Be brief."), Message(role="user", content="Greet."))
    sampling = Sampling(max_tokens=9, temperature=0.5, top_p=0.8, stop=("END",), seed=4)
    [[text]] = model.generate([prompt], sampling=sampling)
    assert (text.text, text.prompt_tokens, text.tokens, text.finish) == ("Hello.", 7, 3, "stop")
    assert server.paths == ["/chat/completions"]
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Greet."}],
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.8,
            "stop": ["END"],
            "seed": sample_seed(4, prompt, 0),
        }
    ]


def test_plain_text_becomes_one_user_message_for_a_chat_model(serve):
    server = serve(lambda path, body: chat("ok"))
    server.model().generate(["Greet."])
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Greet."}]


def test_a_completion_model_gets_the_text_as_it_is(serve):
    server = serve(
        lambda path, body: Reply({"choices": [{"index": 0, "text": " mat.", "finish_reason": "length"}]})
    )
    [[text]] = server.model(shape="completion").generate(["The cat sat on the"])
    assert (text.text, text.finish) == (" mat.", "length")
    assert (server.paths, server.bodies[0]["prompt"]) == (["/completions"], "The cat sat on the")


def test_a_completion_model_refuses_messages(serve):
    model = serve(lambda path, body: chat("ok")).model(shape="completion")
    with pytest.raises(BadInputError, match="plain text"):
        model.generate([(Message(role="user", content="Hi"),)])


def test_n_samples_come_in_one_request_where_the_server_honours_n(serve):
    server = serve(lambda path, body: chat(*["ab", "abcd", "ef"][: body["n"]], tokens=8))
    [texts] = server.model().generate(["x"], n=3)
    assert [t.text for t in texts] == ["ab", "abcd", "ef"]
    assert [t.tokens for t in texts] == [2, 4, 2]
    assert len(server.bodies) == 1


def test_choices_are_put_in_order_and_surplus_ones_are_dropped(serve):
    def answer(path: str, body: dict[str, Any]) -> Reply:
        reply = chat("first", "second", "third")
        reply.body["choices"].reverse()
        return reply

    [texts] = serve(answer).model().generate(["x"], n=2)
    assert [t.text for t in texts] == ["first", "second"]


def test_what_a_server_leaves_out_is_asked_for_with_other_seeds(serve):
    server = serve(lambda path, body: chat(f"seed {body['seed']}"))
    [texts] = server.model().generate(["x"], n=3, sampling=Sampling(seed=1))
    assert [t.text for t in texts] == [f"seed {sample_seed(1, 'x', k)}" for k in range(3)]
    assert len({t.text for t in texts}) == 3
    assert len(server.bodies) == 3


def test_a_server_that_refuses_n_is_asked_one_by_one_and_not_with_n_again(serve):
    def answer(path: str, body: dict[str, Any]) -> Reply:
        return error(400, "n must be 1") if body.get("n", 1) > 1 else chat(f"seed {body['seed']}")

    server = serve(answer)
    model = server.model()
    for _ in range(2):
        [texts] = model.generate(["x"], n=2)
        assert len({t.text for t in texts}) == 2
    assert [body.get("n") for body in server.bodies] == [2, None, None, None, None]


def test_greedy_samples_are_asked_for_once(serve):
    server = serve(lambda path, body: chat("same"))
    [texts] = server.model().generate(["x"], n=3, sampling=Sampling(temperature=0))
    assert [t.text for t in texts] == ["same"] * 3
    assert len(server.bodies) == 1
    assert "n" not in server.bodies[0]


def test_stop_strings_are_enforced_where_the_server_ignores_them(serve):
    server = serve(lambda path, body: chat("one END two F three", finish="length"))
    stop = ("A", "B", "C", "D", "END", "F")
    [[text]] = server.model().generate(["x"], sampling=Sampling(stop=stop))
    assert (text.text, text.finish) == ("one ", "stop")
    assert server.bodies[0]["stop"] == ["A", "B", "C", "D"]  # no more than every server takes


def test_an_answer_of_reasoning_only_is_an_empty_text(serve):
    [[text]] = serve(lambda path, body: chat(None, finish="length")).model().generate(["x"])
    assert (text.text, text.finish) == ("", "length")


def test_tokens_are_estimated_where_the_server_does_not_count(serve):
    [[text]] = serve(lambda path, body: chat("six by", tokens=None)).model().generate(["x"])
    assert (text.tokens, text.prompt_tokens) == (2, 17)


def test_results_keep_the_order_and_no_more_than_concurrency_run_at_once(serve):
    meet = threading.Barrier(3, timeout=5)
    lock, running, most = threading.Lock(), 0, 0

    def answer(path: str, body: dict[str, Any]) -> Reply:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meet.wait()  # passes only when three run at once
        with lock:
            running -= 1
        return chat(body["messages"][0]["content"])

    prompts = [f"prompt {i}" for i in range(9)]
    texts = serve(answer).model(concurrency=3).generate(prompts)
    assert [t.text for [t] in texts] == prompts
    assert most == 3


def test_the_first_failure_ends_all(serve):
    release = threading.Event()

    def answer(path: str, body: dict[str, Any]) -> Reply:
        prompt = body["messages"][0]["content"]
        if prompt == "1":
            return error(400, "no")
        if prompt != "0":
            release.wait(5)
        return chat("ok")

    server = serve(answer)
    with pytest.raises(ServerRefusedError):
        server.model(concurrency=1).generate([str(i) for i in range(20)])
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("penname-remote"):
            thread.join(5)
    assert len(server.bodies) <= 3  # the one that failed, the one before, and one that had begun


def test_no_prompts_and_no_samples(serve):
    model = serve(lambda path, body: chat("ok")).model()
    assert model.generate([]) == []
    with pytest.raises(BadInputError):
        model.generate(["x"], n=0)


def kept_by(told: dict[str, Any]) -> Answering:
    """A server that says this of its model, and answers "Hi."."""

    def answer(path: str, body: dict[str, Any]) -> Reply:
        if path == "/models":
            return Reply({"data": [{"id": "tiny", **told}]})
        return events(piece("Hi."), piece("", "stop")) if body.get("stream") else chat("Hi.")

    return answer


def test_vllm_keeps_what_prompts_begin_with_for_each_owner_alone(serve):
    server = serve(kept_by({"owned_by": "vllm"}))
    model = server.model()
    ann, namesake, both = model.of({"ann": 1}), model.of({"ann": 2}), model.of({"ann": 1, "bob": 3})
    for one in (model, ann, model.of({"ann": 1}), namesake, both, model.of({"bob": 3, "ann": 1})):
        one.generate(["hi"])
    list(ann.stream("hi", Sampling()))
    asked = [body for path, body in zip(server.paths, server.bodies, strict=True) if path != "/models"]
    plain, first, again, other, two, swapped, streamed = (body.get("cache_salt") for body in asked)
    assert plain is None, "of nobody's prompts nothing is told apart"
    assert first == again == streamed
    assert two == swapped
    assert len({first, other, two}) == 3
    assert not any("ann" in salt for salt in (first, other, two))
    assert server.paths.count("/models") == 1


@pytest.mark.parametrize("told", [{}, {"owned_by": "somebody"}])
def test_other_servers_are_sent_no_salt_which_they_might_refuse(serve, told):
    server = serve(kept_by(told))
    assert server.model().of({"ann": 1}).generate(["hi"])[0][0].text == "Hi."
    assert "cache_salt" not in server.bodies[-1]


def test_what_was_seen_of_a_server_holds_for_all_owners(serve):
    def answer(path: str, body: dict[str, Any]) -> Reply:
        if path == "/models":
            return error(404, "no list")
        return error(400, "n is not known") if "n" in body else chat("Hi.")

    server = serve(answer)
    model = server.model()
    for number in range(3):
        assert len(model.of({"ann": number}).generate(["hi"], 2)[0]) == 2
    assert sum("n" in body for body in server.bodies) == 1


# Streaming


def test_a_real_stream_with_role_null_content_and_usage(serve):
    server = serve(
        lambda path, body: events(
            piece("", role="assistant"),
            piece("Hel"),
            piece(None),
            piece("lo ✓"),
            piece(None, finish="stop"),
            {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
            {"choices": None, "usage": None},
        )
    )
    assert list(server.model().stream("x", Sampling(seed=3))) == ["Hel", "lo ✓"]
    assert server.bodies[0]["stream"] is True
    assert server.bodies[0]["seed"] == sample_seed(3, "x", 0)


def test_a_completion_stream(serve):
    server = serve(
        lambda path, body: events(
            {"choices": [{"index": 0, "text": "a", "finish_reason": None}]},
            {"choices": [{"index": 0, "text": "b", "finish_reason": "length"}]},
        )
    )
    assert list(server.model(shape="completion").stream("x")) == ["a", "b"]


def whole_of(stream):
    """What a stream returns."""
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def test_a_stream_returns_the_whole_as_the_server_counted_it(serve):
    usage = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 22}}
    replies = iter(
        [
            error(400, "unknown field: stream_options"),
            events(piece("one two", finish="length")),  # it counts nothing
            events(piece("one two", finish="length"), usage),
        ]
    )
    server = serve(lambda path, body: next(replies))
    model = server.model()
    estimated = Generation("one two", model.count("x"), 3, "length")
    assert whole_of(model.stream("x")) == estimated
    assert whole_of(model.stream("x")) == Generation("one two", 11, 22, "length")
    asked = [body.get("stream_options") for body in server.bodies]
    assert asked == [{"include_usage": True}, None, None]  # what it refused is not asked for again


def test_a_stream_ends_before_a_stop_string_that_the_server_ignored(serve):
    pieces = [piece("one E"), piece("N"), piece("D two"), piece(" three", finish="stop")]
    server = serve(lambda path, body: events(*pieces))
    assert "".join(server.model().stream("x", Sampling(stop=("END",)))) == "one "


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (events(piece("Hel"), piece("lo"), done=False), "without saying"),
        (events(piece("Hel"), piece("lo"), done=True), "without saying"),
        (events(piece("Hel"), piece("lo"), done=False, cut=True), "connection broke"),
        (events(piece("Hel"), piece("lo"), "{no json"), "cannot be read"),
        (events(piece("Hel"), piece("lo"), {"error": {"message": "out of memory"}}), "out of memory"),
        (events(piece("Hel"), piece("lo", finish="content_filter")), "content filter"),
    ],
    ids=["ended", "done-only", "cut", "not-json", "error-event", "filter"],
)
def test_a_cut_stream_tells_what_had_arrived_and_is_not_asked_again(serve, reply, why):
    server = serve(lambda path, body: reply)
    got: list[str] = []
    with pytest.raises(StreamCutError, match=why) as caught:
        got.extend(server.model(retries=3).stream("x"))
    assert caught.value.text == "Hello"
    assert len(server.bodies) == 1


def test_opening_a_stream_is_retried(serve):
    replies = iter([error(503, "busy"), events(piece("ok", finish="stop"))])
    assert list(serve(lambda path, body: next(replies)).model(retries=1).stream("x")) == ["ok"]


def test_a_stream_left_early_is_closed(serve):
    server = serve(lambda path, body: events(piece("a"), piece("b"), piece("c", finish="stop")))
    stream = server.model().stream("x")
    assert next(stream) == "a"
    stream.close()


# Keys, names, context, counting


def test_where_the_key_comes_from(serve, monkeypatch):
    server = serve(lambda path, body: chat("ok"))
    server.model().generate(["x"])
    monkeypatch.setenv("OPENAI_API_KEY", "OpenAI's alone")
    server.model().generate(["x"])
    monkeypatch.setenv("PENNAME_API_KEY", "second")
    server.model().generate(["x"])
    monkeypatch.setenv("MINE", "first")
    server.model(api_key_env="MINE").generate(["x"])
    assert server.keys == ["Bearer none", "Bearer none", "Bearer second", "Bearer first"]


def test_a_key_that_is_named_must_be_there_and_look_like_one(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    config = ModelConfig(model="http://localhost/v1#m", api_key_env="MINE")
    with pytest.raises(BadInputError, match=r"MINE.*not set"):
        RemoteLM(config)
    monkeypatch.setenv("MINE", "two\nlines")
    with pytest.raises(BadInputError, match="MINE") as caught:
        RemoteLM(config)
    assert "two" not in str(caught.value)


@pytest.mark.parametrize("model", ["http://#m", "http://host:port/v1#m", "http:///v1#m"])
def test_an_address_that_is_none(model):
    with pytest.raises(BadInputError, match="not an address"):
        RemoteLM(ModelConfig(model=model))


def test_name_and_fingerprint_tell_server_and_model_but_no_password():
    one = RemoteLM(ModelConfig(model="http://me:pass@localhost:8000/v1?key=pass#small"))
    assert one.name == "http://localhost:8000/v1#small"
    assert one.shape == "chat"
    others = ["http://localhost:8000/v1#large", "http://localhost:8001/v1#small"]
    assert len({one.fingerprint, *(RemoteLM(ModelConfig(model=m)).fingerprint for m in others)}) == 3


@pytest.mark.parametrize(
    ("reply", "context"),
    [
        (Reply({"data": [{"id": "other", "max_model_len": 1}, {"id": "tiny", "max_model_len": 4096}]}), 4096),
        (Reply({"data": [{"id": "tiny"}]}), 8192),
        (Reply("not found", 404), 8192),
        (Reply([{"id": "tiny"}]), 8192),
    ],
)
def test_the_context_is_asked_for_once(serve, reply, context):
    server = serve(lambda path, body: reply)
    model = server.model()
    assert server.paths == []
    assert [model.context, model.context] == [context, context]
    assert server.paths == ["/models"]


def test_a_configured_context_is_not_asked_for(serve):
    server = serve(lambda path, body: Reply({}))
    assert server.model(context=1000).context == 1000
    assert server.paths == []


def test_a_key_that_is_refused_shows_when_the_context_is_asked_for(serve):
    with pytest.raises(ServerRefusedError, match="401"):
        _ = serve(lambda path, body: error(401, "no")).model().context


def test_counting_is_an_estimate_from_bytes_and_messages():
    chatty = RemoteLM(ModelConfig(model="http://localhost/v1#m"))
    plain = RemoteLM(ModelConfig(model="http://localhost/v1#m", shape="completion"))
    assert plain.count("x" * 30) == 11
    assert plain.count("日本") == 3
    two = (Message(role="system", content="x" * 30), Message(role="user", content="y" * 4))
    assert chatty.count(two) == 8 + (8 + 10) + (8 + 2)
    assert chatty.count("x" * 30) == 8 + 8 + 10


# Stop strings and seeds


@given(
    st.lists(st.text("ab\n", max_size=5), max_size=8),
    st.lists(st.text("ab\n", max_size=4), max_size=3),
)
def test_a_stopped_stream_is_the_stopped_text(pieces, stops):
    text = "".join(pieces)
    found = [text.find(stop) for stop in stops if stop and stop in text]
    assert stop_at(text, stops) == min(found, default=len(text))
    assert "".join(until_stop(pieces, stops)) == text[: stop_at(text, stops)]


def test_pieces_after_a_stop_are_not_asked_for():
    pieces = iter(["a", "b", "c"])
    assert list(until_stop(pieces, ["b"])) == ["a"]
    assert list(pieces) == ["c"]


def test_seeds_hang_on_seed_prompt_and_number():
    turn = (Message(role="user", content="x"),)
    seeds = [sample_seed(s, p, k) for s in (0, 1) for p in ("x", "y", turn) for k in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(0, turn, 0) == sample_seed(0, (Message(role="user", content="x"),), 0)
