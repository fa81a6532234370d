"""The way to an OpenAI-compatible server: a request goes out, and its answer or one clear error comes back.

The `openai` client carries the requests. It repeats those that failed (no connection, no answer in time, 408,
409, 429, 5xx), each time after a longer wait with some chance in it, or after the wait that the server asks
for (up to two minutes; a longer one ends the attempts). What it gives up on becomes one clear error
(`penname.lm.refusals`).
"""

from __future__ import annotations

import hmac
import os
import secrets
import weakref
from collections.abc import Generator
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import openai

from penname.errors import BadInputError, PennameError, StreamCutError
from penname.lm import refusals, wire
from penname.lm.base import Owner
from penname.lm.config import ModelConfig

Body = dict[str, Any]

_SECRET = secrets.token_bytes(32)
_CONNECT = 10.0  # seconds for a connection to come about, at most


class Connection:
    """One server and one model on it. Threads may share it.

    Raises (by every method that asks the server): as `penname.lm.remote.RemoteLM`.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Nothing is sent yet.

        Raises:
            BadInputError: an address that is none, or `api_key_env` names a variable that is not set.
        """
        where = _address(config.base_url)
        key_from, key = _api_key(config)
        self.server = refusals.Server(
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

    def ask(self, body: Body) -> wire.Answer:
        """The whole answer: of /chat/completions where messages are asked, else of /completions."""
        try:
            return wire.read(wire.Answer, self._client.post(_path(body), cast_to=object, body=body))
        except openai.APIError as error:
            raise self._refusal(error, body) from None
        except UnicodeEncodeError:
            raise _not_utf8() from None
        except ValueError:  # not JSON, or not with the fields of an answer; its text may repeat the prompt
            raise refusals.odd_answer(self.server) from None

    def open(self, body: Body) -> openai.Stream[object]:
        """The events of a streamed answer. Opening it is retried; once it is open, nothing is."""
        kind = openai.Stream[object]
        try:
            return self._client.post(_path(body), cast_to=object, body=body, stream=True, stream_cls=kind)
        except openai.APIError as error:
            raise self._refusal(error, body) from None
        except UnicodeEncodeError:
            raise _not_utf8() from None

    def context(self) -> int | None:
        """Tokens of the model's context, where the server tells them (vLLM)."""
        entries = {entry.id: entry for entry in self._listed}
        entry = entries.get(self.server.model)
        if entry and not entry.max_model_len and entry.parent:
            entry = entries.get(entry.parent)  # vLLM tells an adapter's length with its base
        return (entry.max_model_len if entry else None) or None

    @property
    def salted(self) -> bool:
        """Whether the server keeps what prompts begin with by a salt: it is vLLM."""
        return any(entry.owned_by == "vllm" for entry in self._listed)

    def salt(self, owner: Owner) -> Body:
        """What to add to a request, so that what its prompt begins with is kept for this owner alone (vLLM).

        Nobody else can name the salt: it hangs on a secret of this process.
        """
        if not owner or not self.salted:
            return {}
        return {"cache_salt": hmac.digest(_SECRET, repr(sorted(owner)).encode(), "sha256").hex()}

    @cached_property
    def _listed(self) -> list[wire.ModelEntry]:
        """The models of the server; [] where it has no list of them."""
        try:
            return self._models(self._client)
        except openai.APIStatusError as error:
            if error.status_code not in (404, 405, 501):
                raise self._refusal(error, {}) from None
            return []
        except openai.APIError as error:
            raise self._refusal(error, {}) from None

    def _refusal(self, error: openai.APIError, body: Body) -> PennameError:
        offered = self._offered() if isinstance(error, openai.NotFoundError) else None
        return refusals.refusal(error, self.server, texts(body), offered, soft="prompt_embeds" in body)

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


class Streamed:
    """One answer as it comes: its pieces, and what it told so far. Raises as `Connection.open`."""

    def __init__(self, connection: Connection, body: Body) -> None:
        self._server = connection.server
        self._body = body
        self._stream = connection.open(body)
        self.text = ""
        self.finish: str | None = None
        self.usage = wire.Usage()

    def pieces(self) -> Generator[str]:
        """The pieces, to the answer's declared end.

        Raises:
            StreamCutError: the stream broke, or ended without saying why; `.text` is what had arrived.
        """
        with self._stream as stream:
            try:
                for event in stream:
                    chunk = wire.read(wire.Chunk, event)
                    self.usage = chunk.usage or self.usage
                    for choice in (chunk.choices or [])[:1]:
                        self.text += choice.content
                        self.finish = choice.finish_reason or self.finish
                        if choice.content:
                            yield choice.content
            except openai.APIConnectionError:
                raise self._cut("the connection broke") from None
            except openai.APIError as error:
                said = refusals.words(error, self._server, texts(self._body))
                raise self._cut(f"it reported an error{said}") from None
            except ValueError:
                raise self._cut("a piece of it cannot be read") from None
        if self.finish is None:
            raise self._cut("it ended without saying that it was complete")
        if self.finish == "content_filter":
            raise self._cut("a content filter ended it")

    def _cut(self, why: str) -> StreamCutError:
        return StreamCutError(f"the answer of {self._server.where} is not whole: {why}; ask again", self.text)


def texts(body: Body) -> list[str]:
    """Every text in a request that is someone's own."""
    return [body["prompt"]] if "prompt" in body else [turn["content"] for turn in body.get("messages", ())]


def _path(body: Body) -> str:
    return "/chat/completions" if "messages" in body else "/completions"


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


def _not_utf8() -> BadInputError:
    return BadInputError("the prompt holds half a character (a lone surrogate), which cannot be sent")
