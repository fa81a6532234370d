"""A language model behind any OpenAI-compatible server: vLLM, llama.cpp, Ollama, a hosted service …

The `openai` client carries the requests. It repeats those that failed (no connection, no answer in time, 408,
409, 429, 5xx), each time after a longer wait with some chance in it, or after the wait that the server asks
for (up to two minutes; a longer one ends the attempts). What it gives up on becomes one clear error
(`penname.lm.refusals`).
"""

from __future__ import annotations

import hashlib
import math
import os
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from functools import cached_property, partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai

from penname.errors import BadInputError, PennameError, ServerRefusedError, StreamCutError
from penname.lm import refusals, wire
from penname.lm.base import Generation, Prefix, Sampling, Score, Shape, check_options, sample_seed, shares
from penname.lm.config import ModelConfig
from penname.lm.prefixes import refuse
from penname.lm.sampling import refuse_thinking
from penname.lm.stops import stop_at, until_stop
from penname.records import Prompt

T = TypeVar("T")
Body = dict[str, Any]

_CONTEXT = 8192  # tokens, where neither the configuration nor the server tells
_CONNECT = 10.0  # seconds for a connection to come about, at most
_STOPS = 4  # stop strings that every server takes; the others are looked for here
_BYTES_PER_TOKEN = (
    3  # fewer than tokenisers reach on nearly every text, so that an estimate is rarely too low
)
_TURN_TOKENS = 8  # what a chat template puts around one message, generously
_CHAT_TOP, _COMPLETION_TOP = 20, 5  # the most alternatives for a token that servers commonly tell


class RemoteLM:
    """A model on an OpenAI-compatible server; see `penname.lm.base.LanguageModel` for the methods.

    Without a `shape` in the configuration it is taken for a chat model. Threads may share it.

    Raises (by every method that asks the server):
        ServerUnreachableError: no connection, or no answer in time, after all retries.
        ServerRateLimitedError: 429 after all retries.
        ServerRefusedError: it said no; the message says what to do.
        ServerError: status 5xx after all retries, or an answer that cannot be read.
        PromptTooLongError: the server says that prompt and `max_tokens` exceed its context.
    """

    shape: Shape

    def __init__(self, config: ModelConfig) -> None:
        """Nothing is sent yet.

        Raises:
            BadInputError: an address that is none, or `api_key_env` names a variable that is not set.
        """
        where = _address(config.base_url)
        key_from, key = _api_key(config)
        self._config = config
        self._server = refusals.Server(
            where, config.remote_model, config.retries + 1, config.timeout, key_from, key
        )
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=key,
            timeout=openai.Timeout(config.timeout, connect=min(config.timeout, _CONNECT)),
            max_retries=config.retries,
            # A prompt goes to the server that was named, and to no other that it points to.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        weakref.finalize(self, self._client.close)  # left to itself it can be collected after its sockets
        self._takes_n = True  # until the server refuses it
        self._scores = True  # until the server shows that it cannot
        self.name = f"{where}#{config.remote_model}"
        self.fingerprint = hashlib.sha256(self.name.encode()).hexdigest()
        self.shape = config.shape or "chat"
        self._path = "/chat/completions" if self.shape == "chat" else "/completions"

    @cached_property
    def context(self) -> int:
        """Tokens of prompt and completion together: as configured, else as the server tells, else 8192."""
        if self._config.context:
            return self._config.context
        try:
            entries = self._models(self._client)
        except openai.APIStatusError as error:
            if error.status_code not in (404, 405, 501):  # servers without a list of models
                raise self._refusal(error, {}) from None
            entries = []
        except openai.APIError as error:
            raise self._refusal(error, {}) from None
        lengths = [e.max_model_len for e in entries if e.id == self._config.remote_model and e.max_model_len]
        return lengths[0] if lengths else _CONTEXT

    def count(self, prompt: Prompt) -> int:
        """An estimate, meant to be too high rather than too low: the server's tokeniser is not at hand.

        One token for every three bytes of UTF-8, eight for each message, and eight for the answer's opening.
        """
        if isinstance(prompt, str) and self.shape == "completion":
            return 1 + _tokens(prompt)
        return _TURN_TOKENS + sum(_TURN_TOKENS + _tokens(turn["content"]) for turn in _messages(prompt))

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        sampling: Sampling = Sampling(),
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[list[Generation]]:
        """`n` texts for each prompt, in order; `concurrency` requests run at once, and one failure ends all.

        The n samples are asked for in one request, and those that the server leaves out one by one, each with
        a seed of its own. Samples that came in one answer share its seed (the server makes them differ), and
        its token count is shared out by length. Greedy samples are asked for once: they are all the same.
        No server takes soft prompts, or forces a bridge.
        """
        refuse(prefixes, self.name)
        refuse_thinking(sampling, self.name)
        if n < 1:
            raise BadInputError(f"n: {n} is too small; at least 1")
        wanted = 1 if sampling.temperature == 0 else n
        samples = self._parallel([partial(self._sample, p, 0, wanted, sampling) for p in prompts])
        missing = [(i, number) for i, got in enumerate(samples) for number in range(len(got), wanted)]
        rest = self._parallel([partial(self._sample, prompts[i], k, 1, sampling) for i, k in missing])
        for (i, _), got in zip(missing, rest, strict=True):
            samples[i] += got
        return samples if wanted == n else [got * n for got in samples]

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Iterator[str]:
        """The text, piece by piece. Opening the stream is retried; once it is open, nothing is.

        Raises:
            StreamCutError: the stream broke, or ended without saying why; `.text` is what had arrived.
        """
        refuse([prefix], self.name)
        refuse_thinking(sampling, self.name)
        body = self._body(prompt, sampling, 0) | {"stream": True}
        with closing(self._pieces(body)) as pieces:
            yield from until_stop(pieces, sampling.stop)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        """log p(completion | prompt) for each pair.

        A token that straddles the border counts to the completion. Plain text needs /completions with `echo`
        and `logprobs`; chat needs vLLM's `prompt_logprobs`.

        Raises:
            ServerRefusedError: the server cannot score.
        """
        refuse(prefixes, self.name)
        if len(prompts) != len(completions):
            raise BadInputError(f"{len(prompts)} prompts but {len(completions)} completions")
        pairs = zip(prompts, completions, strict=True)
        return self._parallel([partial(self._score, prompt, completion) for prompt, completion in pairs])

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Probability of each option after its prompt; a prompt's options sum to 1.

        By the options' scores where the server can score. Else by the first token alone, among the likeliest
        that the server lists: an option whose beginning is not among them gets 0.

        Raises:
            BadInputError: as `LanguageModel.choose`.
            ServerRefusedError: the server can do neither, or the options begin with the same token.
        """
        check_options(prompts, options)
        if self._scores:
            asked = [prompt for prompt, mine in zip(prompts, options, strict=True) for _ in mine]
            try:
                scores = iter(self.score(asked, [option for mine in options for option in mine]))
            except refusals.CannotScoreError:
                pass
            else:
                return [shares([next(scores).total for _ in mine]) for mine in options]
        pairs = zip(prompts, options, strict=True)
        return self._parallel([partial(self._choose_first_token, prompt, mine) for prompt, mine in pairs])

    # One request

    def _body(self, prompt: Prompt, sampling: Sampling, number: int) -> Body:
        body = self._asking(prompt) | {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sample_seed(sampling.seed, prompt, number),
        }
        stops = [stop for stop in sampling.stop if stop][:_STOPS]
        return body | {"stop": stops} if stops else body

    def _asking(self, prompt: Prompt) -> Body:
        """Model and prompt in the model's shape."""
        if self.shape == "chat":
            return {"model": self._config.remote_model, "messages": _messages(prompt)}
        if not isinstance(prompt, str):
            raise BadInputError(
                f"{self.name} takes plain text, not messages; for a chat model set shape to 'chat'"
            )
        return {"model": self._config.remote_model, "prompt": prompt}

    def _sample(self, prompt: Prompt, number: int, n: int, sampling: Sampling) -> list[Generation]:
        """At least one and at most `n` texts, from one answer."""
        answer = self._ask_for(self._body(prompt, sampling, number), n)
        choices = sorted(answer.choices, key=lambda choice: choice.index)
        if any(choice.finish_reason == "content_filter" for choice in choices):
            raise ServerRefusedError(f"the content filter of {self._server.where} withheld the answer", 200)
        usage = answer.usage or wire.Usage()
        prompt_tokens = self.count(prompt) if usage.prompt_tokens is None else usage.prompt_tokens
        shared = _share_out(usage.completion_tokens, [choice.content for choice in choices])
        texts = zip(choices, shared, strict=True)
        return [_generation(choice, prompt_tokens, tokens, sampling.stop) for choice, tokens in texts][:n]

    def _ask_for(self, body: Body, n: int) -> wire.Answer:
        """The answer with up to `n` choices; a server that refuses `n` is asked for one."""
        if n == 1 or not self._takes_n:
            return self._ask(body)
        try:
            return self._ask(body | {"n": n})
        except ServerRefusedError as error:
            if error.status not in (400, 422):
                raise
        answer = self._ask(body)
        self._takes_n = False  # only now is it known that nothing else in the request was wrong
        return answer

    def _score(self, prompt: Prompt, completion: str) -> Score:
        if not completion:
            return Score(total=0.0, tokens=0, per_token=())
        body = self._asking(prompt) | {"max_tokens": 1, "temperature": 1}  # 0 tokens mean "no limit" to some
        if self.shape == "chat":
            body["messages"] = [*body["messages"], {"role": "assistant", "content": completion}]
            body |= {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": 0}
        else:
            body |= {"prompt": body["prompt"] + completion, "echo": True, "logprobs": 1}
        try:
            answer = self._ask(body)
        except ServerRefusedError as error:
            if error.status not in (400, 422):
                raise
            self._scores = False
            raise refusals.unscorable(self._server, str(error), error.status) from None
        return self._read_score(answer, body, completion)

    def _read_score(self, answer: wire.Answer, body: Body, completion: str) -> Score:
        told = answer.logprobs()
        # One token alone is the one that was generated: the server has no echo.
        self._scores = bool(answer.prompt_logprobs) or len(told.tokens or ()) > 1
        try:
            if self.shape == "chat":
                return wire.tail_score(answer.prompt_logprobs or [], completion)
            return wire.echo_score(told, body["prompt"].removesuffix(completion), completion)
        except wire.UnscorableError as error:
            raise refusals.unscorable(self._server, str(error)) from None

    def _choose_first_token(self, prompt: Prompt, options: Sequence[str]) -> list[float]:
        chat = {"logprobs": True, "top_logprobs": _CHAT_TOP}
        wanted = chat if self.shape == "chat" else {"logprobs": _COMPLETION_TOP}
        answer = self._ask(self._asking(prompt) | {"max_tokens": 1, "temperature": 1} | wanted)
        try:
            return wire.first_token_shares(answer.logprobs().first_tokens(), options)
        except wire.UnscorableError as error:
            raise refusals.unscorable(
                self._server, f"the first token does not decide either: {error}"
            ) from None

    def _ask(self, body: Body) -> wire.Answer:
        try:
            return wire.read(wire.Answer, self._client.post(self._path, cast_to=object, body=body))
        except openai.APIError as error:
            raise self._refusal(error, body) from None
        except UnicodeEncodeError:
            raise _not_utf8() from None
        except ValueError:  # not JSON, or not with the fields of an answer; its text may repeat the prompt
            raise refusals.odd_answer(self._server) from None

    def _open(self, body: Body) -> openai.Stream[object]:
        kind = openai.Stream[object]
        try:
            return self._client.post(self._path, cast_to=object, body=body, stream=True, stream_cls=kind)
        except openai.APIError as error:
            raise self._refusal(error, body) from None
        except UnicodeEncodeError:
            raise _not_utf8() from None

    def _pieces(self, body: Body) -> Generator[str, None, None]:
        """The pieces of a streamed answer as they come, to its declared end."""
        text, finish = "", None
        with self._open(body) as stream:
            try:
                for event in stream:
                    for choice in (wire.read(wire.Chunk, event).choices or [])[:1]:
                        text += choice.content
                        finish = choice.finish_reason or finish
                        if choice.content:
                            yield choice.content
            except openai.APIConnectionError:
                raise self._cut("the connection broke", text) from None
            except openai.APIError as error:
                said = refusals.words(error, self._server, _texts(body))
                raise self._cut(f"it reported an error{said}", text) from None
            except ValueError:
                raise self._cut("a piece of it cannot be read", text) from None
        if finish is None:
            raise self._cut("it ended without saying that it was complete", text)
        if finish == "content_filter":
            raise self._cut("a content filter ended it", text)

    def _cut(self, why: str, text: str) -> StreamCutError:
        return StreamCutError(f"the answer of {self._server.where} is not whole: {why}; ask again", text)

    def _refusal(self, error: openai.APIError, body: Body) -> PennameError:
        offered = self._offered() if isinstance(error, openai.NotFoundError) else None
        return refusals.refusal(error, self._server, _texts(body), offered)

    def _offered(self) -> list[str] | None:
        """The models of the server; None where it does not tell."""
        try:
            return [entry.id for entry in self._models(self._client.with_options(max_retries=0))]
        except openai.APIError:
            return None

    def _models(self, client: openai.OpenAI) -> list[wire.ModelEntry]:
        """The server's list of models; [] where it is in a form of its own."""
        try:
            return wire.read(wire.Models, client.get("/models", cast_to=object)).data
        except ValueError:
            return []

    def _parallel(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """The results in order; the first failure is raised at once and what has not begun is dropped."""
        if not jobs:
            return []
        pool = ThreadPoolExecutor(min(self._config.concurrency, len(jobs)), "penname-remote")
        try:
            futures = [pool.submit(job) for job in jobs]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _address(url: str) -> str:
    """The address as it may be shown: without user, password and query, which can be secrets."""
    wrong = BadInputError("model: not an address; write it as http(s)://host[:port]/v1#model-name")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text can hold the password
        raise wrong from None
    if not host:
        raise wrong
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme.lower()}://{shown}{f':{port}' if port else ''}{parts.path}"


def _api_key(config: ModelConfig) -> tuple[str | None, str]:
    """The environment variable that holds the key, and the key; (None, "none") where there is none.

    A variable that the configuration names must be set: another service's key is never sent in its place, nor
    OpenAI's own to any server but OpenAI's.
    """
    named = config.api_key_env
    openai_itself = config.base_url.lower().startswith("https://api.openai.com/")
    usual = ["PENNAME_API_KEY", "OPENAI_API_KEY"] if openai_itself else ["PENNAME_API_KEY"]
    for name in [named] if named else usual:
        if key := os.environ.get(name, "").strip():
            if not key.isascii() or not key.isprintable() or " " in key:
                raise BadInputError(f"the environment variable {name} holds characters that no key has")
            return name, key
    if named:
        raise BadInputError(f"the environment variable {named}, which `api_key_env` names, is not set")
    return None, "none"


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": turn.role, "content": turn.content} for turn in prompt]


def _texts(body: Body) -> list[str]:
    """Every text in a request that is someone's own."""
    return [body["prompt"]] if "prompt" in body else [turn["content"] for turn in body.get("messages", ())]


def _not_utf8() -> BadInputError:
    return BadInputError("the prompt holds half a character (a lone surrogate), which cannot be sent")


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode(errors="replace")) / _BYTES_PER_TOKEN)


def _share_out(total: int | None, texts: Sequence[str]) -> list[int]:
    """Tokens of each text: the server's count shared out by length, or estimates where it gave none."""
    if total is None:
        return [_tokens(text) for text in texts]
    length = sum(map(len, texts))
    return [round(total * len(text) / length) if length else total // len(texts) for text in texts]


def _generation(choice: wire.Choice, prompt_tokens: int, tokens: int, stops: Sequence[str]) -> Generation:
    text = choice.content
    end = stop_at(text, stops)
    whole = end < len(text) or choice.finish_reason != "length"
    return Generation(text[:end], prompt_tokens, tokens, "stop" if whole else "length")
