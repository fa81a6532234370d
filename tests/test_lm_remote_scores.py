"""Log-probabilities from a server: laid over the text, or missing."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from model_server import Answering, Reply, chat, error
from penname.errors import BadInputError, ServerRefusedError

pytestmark = pytest.mark.usefixtures("waits")


# Scoring: a toy model whose tokens are words, and whose probabilities hang on the token and what is before it


def tokens_of(text: str) -> list[str]:
    return re.findall(r" ?\w+|\W", text)


def logprob(token: str, before: str) -> float:
    return -((sum(map(ord, token)) + 7 * len(before)) % 97 + 1) / 10


def echoing(special: str = "", offsets: bool = True) -> Answering:
    """A server that repeats the prompt with its probabilities, as vLLM does, and writes one token more."""

    def answer(path: str, body: dict[str, Any]) -> Reply:
        assert path == "/completions"
        assert (body["echo"], body["max_tokens"]) == (True, 1)
        tokens = ([special] if special else []) + tokens_of(body["prompt"]) + [" more"]
        starts = [len("".join(tokens[:i])) for i in range(len(tokens))]
        skip = len(special)
        text = "".join(tokens)
        values = [
            None if i == 0 else logprob(t, text[skip:at])
            for i, (t, at) in enumerate(zip(tokens, starts, strict=True))
        ]
        told = {"tokens": tokens, "token_logprobs": values, "text_offset": starts if offsets else None}
        return Reply({"choices": [{"text": text[skip:], "logprobs": told, "finish_reason": "length"}]})

    return answer


def naive_score(prompt: str, completion: str) -> list[float]:
    at, values = 0, []
    for token in tokens_of(prompt + completion):
        if at + len(token) > len(prompt):
            values.append(logprob(token, (prompt + completion)[:at]))
        at += len(token)
    return values


PAIRS = [
    ("The cat", " sat down."),
    ("The ca", "t sat"),  # "cat" straddles the border
    ("Ünïcode ", "“quoted” 日本 text\n\nend"),
    ("one two", " two two two"),
]


@pytest.mark.parametrize("special", ["", "<s>"])
@pytest.mark.parametrize("offsets", [True, False])
def test_scores_are_the_completions_part_of_the_echo(serve, special, offsets):
    model = serve(echoing(special, offsets)).model(shape="completion")
    scores = model.score([p for p, _ in PAIRS], [c for _, c in PAIRS])
    for (prompt, completion), score in zip(PAIRS, scores, strict=True):
        expected = naive_score(prompt, completion)
        assert score.per_token == pytest.approx(expected)
        assert score.tokens == len(expected)
        assert score.total == pytest.approx(sum(expected))


def test_pieces_of_characters_are_laid_by_the_servers_offsets(serve):
    # "é" is two tokens, each half a character; the offsets count characters.
    told = {
        "tokens": ["caf", "bytes:\\xc3", "bytes:\\xa9", " au", " lait", "!"],
        "token_logprobs": [None, -1, -2, -3, -4, -5],
        "text_offset": [0, 3, 3, 4, 7, 12],
    }
    server = serve(lambda path, body: Reply({"choices": [{"text": "", "logprobs": told}]}))
    model = server.model(shape="completion")
    assert model.score(["café"], [" au lait"])[0].per_token == (-3, -4)
    assert model.score(["caf"], ["é au lait"])[0].per_token == (-1, -2, -3, -4)


def test_an_empty_completion_is_certain_and_costs_nothing(serve):
    server = serve(echoing())
    assert server.model(shape="completion").score(["x"], [""])[0].total == 0
    assert server.bodies == []


def test_an_empty_prompt_needs_a_token_before_the_text(serve):
    [score] = serve(echoing("<s>")).model(shape="completion").score([""], ["one two"])
    assert score.per_token == pytest.approx(naive_score("", "one two"))
    with pytest.raises(ServerRefusedError, match="must not be empty"):
        serve(echoing()).model(shape="completion").score([""], ["one two"])


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {"content": [{"token": "x", "logprob": -1, "top_logprobs": []}]},
        {"tokens": ["x"], "token_logprobs": [-1], "text_offset": [11]},
        {"tokens": ["x"], "token_logprobs": [-1], "text_offset": [0]},
        {"tokens": 3},
    ],
)
def test_a_server_without_echo_says_that_it_cannot_score(serve, logprobs):
    server = serve(lambda path, body: Reply({"choices": [{"text": "x", "logprobs": logprobs}]}))
    with pytest.raises(ServerRefusedError, match="cannot score"):
        server.model(shape="completion").score(["The cat"], [" sat"])


def test_a_server_that_refuses_echo_says_that_it_cannot_score(serve):
    model = serve(lambda path, body: error(400, "only no echo is supported")).model(shape="completion")
    with pytest.raises(ServerRefusedError, match=r"cannot score.*only no echo.*local model") as caught:
        model.score(["The cat"], [" sat"])
    assert caught.value.status == 400


def test_prompts_and_completions_must_pair(serve):
    with pytest.raises(BadInputError, match="2 prompts but 1 completions"):
        serve(echoing()).model(shape="completion").score(["a", "b"], ["c"])


def prompt_logprobs(*tokens: tuple[str, float]) -> Reply:
    told = [
        None,
        *({str(i): {"logprob": v, "rank": 1, "decoded_token": t}} for i, (t, v) in enumerate(tokens)),
    ]
    return Reply({"choices": [{"message": {"content": "x"}}], "prompt_logprobs": told})


def test_chat_is_scored_by_the_end_of_the_prompt(serve):
    told = prompt_logprobs(("hi", -9), ("<|assistant|>", -8), (" Good", -1), ("", -2), (" é", -3))
    server = serve(lambda path, body: told)
    [score] = server.model().score(["hi"], ["Good é"])  # " Good" straddles the border
    assert score.per_token == (-1, -2, -3)
    body = server.bodies[0]
    assert body["messages"][-1] == {"role": "assistant", "content": "Good é"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_a_chat_completion_that_begins_with_a_cut_character(serve):
    told = prompt_logprobs(("<|assistant|>", -8), ("", -2), ("é", -3))
    assert serve(lambda path, body: told).model().score(["hi"], ["é"])[0].per_token == (-2, -3)


def test_a_chat_template_that_changes_the_completion(serve):
    told = prompt_logprobs(("<|assistant|>", -8), ("good", -1))
    with pytest.raises(ServerRefusedError, match="chat template"):
        serve(lambda path, body: told).model().score(["hi"], [" good "])


# Choosing


def test_choosing_by_scores(serve):
    [shares] = serve(echoing()).model(shape="completion").choose(["Is it"], [[" yes", " no"]])
    weights = [math.exp(sum(naive_score("Is it", option))) for option in (" yes", " no")]
    assert shares == pytest.approx([w / sum(weights) for w in weights])


def test_many_choices_in_one_call_keep_their_order(serve):
    model = serve(echoing()).model(shape="completion", concurrency=3)
    prompts, options = (
        ["Is it", "Was it", "Will it be"],
        [[" yes", " no"], [" a", " b", " c"], [" so", " not"]],
    )
    one_by_one = [model.choose([prompt], [mine])[0] for prompt, mine in zip(prompts, options, strict=True)]
    assert model.choose(prompts, options) == [pytest.approx(shares) for shares in one_by_one]
    with pytest.raises(BadInputError, match="3 prompts and 2 lists"):
        model.choose(prompts, options[:2])


def first_token(**top: float) -> Answering:
    """A chat server that cannot score, and lists these first tokens with their probabilities."""

    def answer(path: str, body: dict[str, Any]) -> Reply:
        reply = chat("x")
        if body.get("logprobs"):
            listed = [{"token": t.replace("_", " "), "logprob": math.log(p)} for t, p in top.items()]
            content = [{"token": "x", "logprob": -1, "top_logprobs": listed}]
            reply.body["choices"][0]["logprobs"] = {"content": content}
        return reply

    return answer


def test_choosing_by_the_first_token_where_the_server_cannot_score(serve):
    server = serve(first_token(yes=0.5, _yes=0.1, no=0.2, maybe=0.1, _=0.1))
    model = server.model(concurrency=1)
    for _ in range(2):
        assert model.choose(["Is it?"], [["yes", "no", "never"]]) == [pytest.approx([0.75, 0.25, 0])]
    asked_for_scores = ["prompt_logprobs" in body for body in server.bodies]
    assert asked_for_scores.count(False) == 2
    assert asked_for_scores.count(True) <= 3  # of the first choice only


def test_an_option_that_is_a_whole_token_is_told_from_one_that_begins_alike(serve):
    model = serve(first_token(**{"1": 0.3, "10": 0.1, "5": 0.4})).model()
    assert model.choose(["Rate it"], [["1", "5", "10"]]) == [pytest.approx([0.375, 0.5, 0.125])]


def test_options_with_the_same_first_token_are_not_guessed(serve):
    with pytest.raises(ServerRefusedError, match="same token"):
        serve(first_token(**{"1": 0.3, "5": 0.4})).model().choose(["Rate it"], [["1", "5", "10"]])


def test_options_that_the_model_would_not_begin_have_no_chance(serve):
    assert serve(first_token(Well=0.9)).model().choose(["Is it?"], [["yes", "no"]]) == [[0, 0]]


def test_a_server_that_lists_no_first_tokens_is_not_taken_for_one_that_would_say_something_else(serve):
    with pytest.raises(ServerRefusedError, match="does not tell which tokens could come first"):
        serve(first_token()).model().choose(["Is it?"], [["yes", "no"]])


@pytest.mark.parametrize("echo", ["refused", "ignored"])
def test_a_completion_server_that_lists_first_tokens(serve, echo):
    def answer(path: str, body: dict[str, Any]) -> Reply:
        if body.get("echo") and echo == "refused":
            return error(400, "no echo")
        told = {
            "tokens": [" a"],
            "token_logprobs": [math.log(0.6)],
            "top_logprobs": [{" a": math.log(0.6), " b": math.log(0.2)}],
        }
        return Reply({"choices": [{"text": " a", "logprobs": told}]})

    server = serve(answer)
    model = server.model(shape="completion", concurrency=1)
    for _ in range(2):
        assert model.choose(["x"], [[" a", " b"]]) == [pytest.approx([0.75, 0.25])]
    assert sum("echo" in body for body in server.bodies) <= 2  # not tried again for the second choice


@pytest.mark.parametrize("options", [[], ["a", ""]])
def test_nothing_to_choose_from(serve, options):
    with pytest.raises(BadInputError):
        serve(echoing()).model().choose(["x"], [options])
