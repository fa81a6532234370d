"""A language model behind any OpenAI-compatible server: vLLM, llama.cpp, Ollama, a hosted service …

How requests are sent, repeated and given up on: `penname.lm.connection`. Soft prompts go to vLLM as
embeddings, which are made here (`penname.lm.embeddings`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from penname.errors import BadInputError, ServerRefusedError
from penname.lm import refusals, wire
from penname.lm.base import (
    Generation,
    Owner,
    Prefix,
    Sampling,
    Score,
    Shape,
    check_options,
    sample_seed,
    shares,
)
from penname.lm.config import ModelConfig
from penname.lm.connection import Body, Connection, Streamed
from penname.lm.prefixes import SoftPrompts
from penname.lm.sampling import refuse_thinking
from penname.lm.stops import until_stop
from penname.records import Prompt

if TYPE_CHECKING:
    from penname.lm.embeddings import InputEmbeddings

T = TypeVar("T")

_CONTEXT = 8192  # tokens, where neither the configuration nor the server tells
_STOPS = 4  # stop strings that every server takes; the others are looked for here
_TURN_TOKENS = 8  # what a chat template puts around one message, generously
_CHAT_TOP, _COMPLETION_TOP = 20, 5  # the most alternatives for a token that servers commonly tell
# After a soft prompt a text is drawn as it is here: vLLM would take these from generation_config.json.
_PLAIN: Body = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
_COUNTED: Body = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@dataclass
class _Known:
    """What has been seen of a server."""

    takes_n: bool = True  # until the server refuses it
    tells_usage: bool = True  # of streams; until the server refuses to
    scores: bool = True  # until the server shows that it cannot


class RemoteLM:
    """A model on an OpenAI-compatible server; see `penname.lm.base.LanguageModel` for the methods.

    Without a `shape` in the configuration it is taken for a chat model. It takes soft prompts where the
    configuration names `embeddings` and the server is vLLM. Threads may share it.

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
        self.config = config
        self._connection = Connection(config)
        self._server = self._connection.server
        self._known = _Known()
        self._owner: Owner = frozenset()
        self.name = f"{self._server.where}#{config.remote_model}"
        self.fingerprint = hashlib.sha256(self.name.encode()).hexdigest()
        self.shape = config.shape or "chat"

    def of(self, users: Mapping[str, int]) -> RemoteLM:
        """The same model for these users, by id and number in the store.

        What their prompts begin with is kept for them alone where the server is vLLM.
        """
        mine = copy(self)
        mine._owner = frozenset(users.items())
        return mine

    @cached_property
    def context(self) -> int:
        """Tokens of prompt and completion together: as configured, else as the server tells, else 8192."""
        return self.config.context or self._connection.context() or _CONTEXT

    def count(self, prompt: Prompt) -> int:
        """Exact where the configuration names `embeddings`: their tokeniser is the server's.

        Else an estimate, meant to be too high rather than too low: one token for every three bytes of UTF-8,
        eight for each message, and eight for the answer's opening.
        """
        if self.config.embeddings is not None:
            return len(self._embeddings.codec.prompt(prompt))
        if isinstance(prompt, str) and self.shape == "completion":
            return 1 + wire.estimated(prompt)
        return _TURN_TOKENS + sum(
            _TURN_TOKENS + wire.estimated(turn["content"]) for turn in _messages(prompt)
        )

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
        No server forces a bridge.

        Raises:
            BadInputError: a prefix, and no `embeddings` are known; or it does not fit them.
            ServerRefusedError, ServerError: the server does not read embeddings.
        """
        soft = self._soft(prefixes, len(prompts))
        refuse_thinking(sampling, self.name)
        if n < 1:
            raise BadInputError(f"n: {n} is too small; at least 1")
        wanted = 1 if sampling.temperature == 0 else n
        asked = list(zip(prompts, soft, strict=True))
        samples = self._parallel([partial(self._sample, *one, 0, wanted, sampling) for one in asked])
        missing = [(i, number) for i, got in enumerate(samples) for number in range(len(got), wanted)]
        rest = self._parallel([partial(self._sample, *asked[i], k, 1, sampling) for i, k in missing])
        for (i, _), got in zip(missing, rest, strict=True):
            samples[i] += got
        return samples if wanted == n else [got * n for got in samples]

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Generator[str, None, Generation]:
        """The text, piece by piece. Opening the stream is retried; once it is open, nothing is.

        Returns the whole, with the tokens as the server counted them, or estimates where it does not tell.

        Raises:
            StreamCutError: the stream broke, or ended without saying why; `.text` is what had arrived.
            BadInputError, ServerRefusedError, ServerError: as `generate`.
        """
        self._soft([prefix], 1)
        refuse_thinking(sampling, self.name)
        answer = self._open(self._body(prompt, prefix, sampling, 0) | {"stream": True})
        sent = self._sent(prompt, prefix)
        text = ""
        with closing(answer.pieces()) as pieces:
            for piece in until_stop(pieces, sampling.stop):
                self._check_read(answer.usage, sent)
                text += piece
                yield piece
        self._check_read(answer.usage, sent)
        told = answer.usage.completion_tokens
        whole = len(text) < len(answer.text) or answer.finish != "length"
        return Generation(
            text,
            self._prompt_tokens(answer.usage, prompt),
            wire.estimated(text) if told is None else told,
            "stop" if whole else "length",
        )

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
            BadInputError: a prefix: vLLM tells no log-probabilities after embeddings.
        """
        if any(prefixes or ()):
            raise BadInputError(
                f"{self.name} takes no soft prompts (prefixes) to score after: a model that transformers "
                "runs does"
            )
        if len(prompts) != len(completions):
            raise BadInputError(f"{len(prompts)} prompts but {len(completions)} completions")
        pairs = zip(prompts, completions, strict=True)
        return self._parallel([partial(self._score, prompt, completion) for prompt, completion in pairs])

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Probability of each option after its prompt; a prompt's options sum to 1.

        By the options' scores where the server can score. Else by the first token alone, among the likeliest
        that the server lists: an option whose beginning is not among them gets 0, and that may be all of
        them.

        Raises:
            BadInputError: as `LanguageModel.choose`.
            ServerRefusedError: the server can do neither, or the options begin with the same token.
        """
        check_options(prompts, options)
        if self._known.scores:
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

    def _body(self, prompt: Prompt, prefix: Prefix | None, sampling: Sampling, number: int) -> Body:
        asking = self._asking(prompt) if prefix is None else self._embedded(prompt, prefix)
        body = asking | {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sample_seed(sampling.seed, prompt, number),
        }
        stops = [stop for stop in sampling.stop if stop][:_STOPS]
        return body | ({"stop": stops} if stops else {}) | self._connection.salt(self._owner)

    def _asking(self, prompt: Prompt) -> Body:
        """Model and prompt in the model's shape."""
        if self.shape == "chat":
            return {"model": self.config.remote_model, "messages": _messages(prompt)}
        if not isinstance(prompt, str):
            raise BadInputError(
                f"{self.name} takes plain text, not messages; for a chat model set shape to 'chat'"
            )
        return {"model": self.config.remote_model, "prompt": prompt}

    def _embedded(self, prompt: Prompt, prefix: Prefix) -> Body:
        """Model and prompt after a soft prompt, for vLLM's /completions.

        There is no `prompt` in it: vLLM would answer it as another one, even an empty one.
        """
        return _PLAIN | {
            "model": self.config.remote_model,
            "prompt_embeds": self._embeddings.encoded(prompt, prefix),
            "stop_token_ids": sorted(self._embeddings.codec.ends),  # some are in no configuration
        }

    def _sample(
        self, prompt: Prompt, prefix: Prefix | None, number: int, n: int, sampling: Sampling
    ) -> list[Generation]:
        """At least one and at most `n` texts, from one answer."""
        answer = self._ask_for(self._body(prompt, prefix, sampling, number), n)
        choices = sorted(answer.choices, key=lambda choice: choice.index)
        if any(choice.finish_reason == "content_filter" for choice in choices):
            raise ServerRefusedError(f"the content filter of {self._server.where} withheld the answer", 200)
        usage = answer.usage or wire.Usage()
        self._check_read(usage, self._sent(prompt, prefix))
        prompt_tokens = self._prompt_tokens(usage, prompt)
        shared = wire.shared_out(usage.completion_tokens, [choice.content for choice in choices])
        texts = zip(choices, shared, strict=True)
        return [wire.generation(choice, prompt_tokens, tokens, sampling.stop) for choice, tokens in texts][:n]

    def _ask_for(self, body: Body, n: int) -> wire.Answer:
        """The answer with up to `n` choices; a server that refuses `n` is asked for one."""
        if n == 1 or not self._known.takes_n:
            return self._connection.ask(body)
        try:
            return self._connection.ask(body | {"n": n})
        except ServerRefusedError as error:
            if error.status not in (400, 422):
                raise
        answer = self._connection.ask(body)
        self._known.takes_n = False  # only now is it known that nothing else in the request was wrong
        return answer

    def _open(self, body: Body) -> Streamed:
        """A stream that tells its usage; a server that refuses to is asked without."""
        if "prompt_embeds" in body:
            return Streamed(self._connection, body | _COUNTED)
        if self._known.tells_usage:
            try:
                return Streamed(self._connection, body | {"stream_options": {"include_usage": True}})
            except ServerRefusedError as error:
                if error.status not in (400, 422):
                    raise
        answer = Streamed(self._connection, body)
        self._known.tells_usage = False  # only now is it known that nothing else in the request was wrong
        return answer

    def _soft(self, prefixes: Sequence[Prefix | None] | None, count: int) -> Sequence[Prefix | None]:
        """One prefix or None for each of `count` prompts, before anything is sent.

        Raises:
            BadInputError: there are some, and no `embeddings` are known, or they do not fit.
        """
        given = prefixes if prefixes is not None else [None] * count
        if any(given) and self.config.embeddings is None:
            raise BadInputError(
                f"{self.name} takes no soft prompts (prefixes) where the model's own tokenizer and "
                "embeddings are not known: `embeddings` names the folder that holds them; or use a model "
                "that transformers runs"
            )
        SoftPrompts(given, count, self._embeddings.width if any(given) else 0)
        return given

    @cached_property
    def _embeddings(self) -> InputEmbeddings:
        from penname.lm.embeddings import InputEmbeddings

        return InputEmbeddings(self.config.embeddings or "", self.config.dtype)

    def _sent(self, prompt: Prompt, prefix: Prefix | None) -> int | None:
        """Rows of embeddings that are sent for a prompt; None where there is no soft prompt."""
        return None if prefix is None else len(prefix.rows) + self.count(prompt)

    def _check_read(self, usage: wire.Usage, sent: int | None) -> None:
        """Refuse an answer to something else than the embeddings: many servers pass over unknown fields.

        Raises:
            ServerError: it did not count as many tokens of prompt as rows were sent.
        """
        if sent is not None and usage.prompt_tokens != sent:
            raise refusals.unread(self._server, sent, usage.prompt_tokens)

    def _prompt_tokens(self, usage: wire.Usage, prompt: Prompt) -> int:
        return self.count(prompt) if usage.prompt_tokens is None else usage.prompt_tokens

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
            answer = self._connection.ask(body)
        except ServerRefusedError as error:
            if error.status not in (400, 422):
                raise
            self._known.scores = False
            raise refusals.unscorable(self._server, str(error), error.status) from None
        return self._read_score(answer, body, completion)

    def _read_score(self, answer: wire.Answer, body: Body, completion: str) -> Score:
        told = answer.logprobs()
        # One token alone is the one that was generated: the server has no echo.
        self._known.scores = bool(answer.prompt_logprobs) or len(told.tokens or ()) > 1
        try:
            if self.shape == "chat":
                return wire.tail_score(answer.prompt_logprobs or [], completion)
            return wire.echo_score(told, body["prompt"].removesuffix(completion), completion)
        except wire.UnscorableError as error:
            raise refusals.unscorable(self._server, str(error)) from None

    def _choose_first_token(self, prompt: Prompt, options: Sequence[str]) -> list[float]:
        chat = {"logprobs": True, "top_logprobs": _CHAT_TOP}
        wanted = chat if self.shape == "chat" else {"logprobs": _COMPLETION_TOP}
        answer = self._connection.ask(self._asking(prompt) | {"max_tokens": 1, "temperature": 1} | wanted)
        try:
            return wire.first_token_shares(answer.logprobs().first_tokens(), options)
        except wire.UnscorableError as error:
            raise refusals.unscorable(
                self._server, f"the first token does not decide either: {error}"
            ) from None

    def _parallel(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """The results in order; the first failure is raised at once and what has not begun is dropped."""
        if not jobs:
            return []
        pool = ThreadPoolExecutor(min(self.config.concurrency, len(jobs)), "penname-remote")
        try:
            futures = [pool.submit(job) for job in jobs]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": turn.role, "content": turn.content} for turn in prompt]
