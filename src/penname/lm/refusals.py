"""What it means when a model server does not answer as it should: one clear error for each kind of refusal.

The errors are shown, logged and sent on, so none holds the key or the prompt: the server's own words are
quoted only where they repeat neither.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import openai

from penname.errors import (
    ModelError,
    PennameError,
    PromptTooLongError,
    ServerError,
    ServerRateLimitedError,
    ServerRefusedError,
    ServerUnreachableError,
)

_LONGEST_QUOTE = 300  # characters of a server's explanation that are shown
_OVERLAP = 16  # characters in a row that an explanation may share with what was sent
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|(prompt|input)\b.{0,40}\btoo long|longer than the maximum model length",
    re.IGNORECASE,
)
_ENCODED = re.compile(r"[A-Za-z0-9+/]{80}")  # so long a run of base64 is a piece of embeddings


@dataclass(frozen=True)
class Server:
    """What errors tell about a server. `key` is held only to keep it out of them."""

    where: str  # address without user, password and query
    model: str
    attempts: int  # the most that are made for one request
    timeout: float  # seconds
    key_from: str | None  # environment variable that the key came from; None: no key was set
    key: str = field(repr=False)


class CannotScoreError(ServerRefusedError):
    """The server cannot tell log-probabilities of a text that it is given."""


def refusal(
    error: openai.APIError,
    server: Server,
    sent: Sequence[str],
    offered: Sequence[str] | None = None,
    *,
    soft: bool = False,
) -> PennameError:
    """The error to raise for one that the client raised.

    Args:
        error: of the openai client, after its retries.
        server: who was asked.
        sent: every text that was sent; none of it gets into the message.
        offered: names of the models that the server offers, for a 404; None: not known.
        soft: whether a soft prompt was sent, as embeddings.
    """
    if isinstance(error, openai.APIConnectionError):
        return _unreachable(error, server, sent)
    if not isinstance(error, openai.APIStatusError):
        return ServerError(f"{server.where} sent an error{words(error, server, sent)}")
    status = error.status_code
    said = words(error, server, sent)
    if status == 429:
        return ServerRateLimitedError(_rate_limit(error, server) + said)
    if status >= 500:
        tried = f" ({server.attempts} attempts)" if server.attempts > 1 else ""
        return ServerError(f"{server.where} failed with status {status}{tried}{said}")
    if _too_long(error):
        return PromptTooLongError(
            f"prompt and max_tokens do not fit into the context of {server.model!r} at {server.where}: "
            f"set `context` to what the server has, or use less history{said}"
        )
    advice = (_soft_advice(error, server, offered) if soft else "") or _advice(status, server, offered)
    return ServerRefusedError(f"{server.where} refused the request ({status}): {advice}{said}", status)


def odd_answer(server: Server) -> ServerError:
    """The error for an answer that is not JSON, or has no choices."""
    return ServerError(
        f"{server.where} gave an answer that is not an OpenAI-compatible server's (JSON with choices): "
        "check the address; it usually ends in /v1"
    )


def unread(server: Server, sent: int, counted: int | None) -> ServerError:
    """The error where a server answers something else than the embeddings that it was sent."""
    return ServerError(
        f"{server.where} did not read the {sent:,} rows of embeddings that it was sent (it counted "
        f"{'no' if counted is None else f'{counted:,}'} tokens): soft prompts need vLLM, started with "
        "--enable-prompt-embeds"
    )


def unscorable(server: Server, why: str, status: int = 200) -> CannotScoreError:
    """The error where a server's answer cannot be used for a score."""
    return CannotScoreError(
        f"{server.where} cannot score with {server.model!r}: {why}. Scoring needs log-probabilities of the "
        "prompt (/completions with echo and logprobs, or prompt_logprobs for chat), as vLLM gives them; "
        "or use a local model",
        status,
    )


def words(error: openai.APIError, server: Server, sent: Sequence[str]) -> str:
    """The server's own explanation, ready to be put behind a message; "" where it gave none."""
    said = " ".join(_explanation(error.body).split())
    if not said:
        return ""
    if _repeats(said, [*sent, server.key]) or _ENCODED.search(said):
        return "; its explanation is left out, as it repeats what was sent"
    return f"; it says: {said[:_LONGEST_QUOTE]}"


def _explanation(body: object) -> str:
    """The message in the shapes that servers use; "" for web pages."""
    if isinstance(body, dict):
        found = (body.get(name) for name in ("message", "detail", "error"))
        return next((text for text in found if isinstance(text, str)), "")
    return body if isinstance(body, str) and not body.lstrip().startswith("<") else ""


def _repeats(said: str, sent: Sequence[str]) -> bool:
    """Whether `said` holds a text of `sent`, a long enough piece of one, or quotes any part of one."""
    plain = [" ".join(text.split()) for text in sent]
    escaped = [json.dumps(text)[1:-1] for text in sent]
    texts = [text for text in (*plain, *escaped) if text]
    pieces = {said[i : i + _OVERLAP] for i in range(max(1, len(said) - _OVERLAP + 1))}
    quoted = {match[1] for match in re.finditer(r"[\"'`](.{3,}?)[\"'`]", said)}
    return any(
        (len(text) < _OVERLAP and len(text) > 3 and text in said) or any(p in text for p in pieces | quoted)
        for text in texts
    )


def _too_long(error: openai.APIStatusError) -> bool:
    if error.status_code not in (400, 413, 422):
        return False
    kinds = {error.code, error.type}
    known = {"context_length_exceeded", "exceed_context_size_error"}
    return bool(kinds & known) or bool(_TOO_LONG.search(_explanation(error.body)))


def _unreachable(error: openai.APIConnectionError, server: Server, sent: Sequence[str]) -> ModelError:
    tried = f"{server.attempts} attempts" if server.attempts > 1 else "1 attempt"
    if isinstance(error, openai.APITimeoutError):
        return ServerUnreachableError(
            f"no answer from {server.where} within {server.timeout:g} seconds ({tried}): "
            "is it overloaded? A longer `timeout` waits for it"
        )
    cause = str(error.__cause__ or "")
    why = f": {cause}" if cause and not _repeats(cause, [*sent, server.key]) else ""
    return ServerUnreachableError(
        f"no connection to {server.where} ({tried}){why}; is the server running, and the address right?"
    )


def _rate_limit(error: openai.APIStatusError, server: Server) -> str:
    wait = error.response.headers.get("retry-after", "")
    when = f"; it asks to wait {wait} seconds" if wait.isdigit() else ""
    return (
        f"{server.where} allows no more requests now (429){when}: "
        "try again later, or with a lower `concurrency` or more `retries`"
    )


def _advice(status: int, server: Server, offered: Sequence[str] | None) -> str:
    if status == 401:
        if server.key_from is None:
            return "it wants a key; put it into PENNAME_API_KEY, or a variable that `api_key_env` names"
        return f"it does not accept the key in the environment variable {server.key_from}"
    if status == 403:
        holder = f"the key in {server.key_from}" if server.key_from else "a request without a key"
        return f"{holder} may not use the model {server.model!r}"
    if status == 404:
        return _not_found(server, offered)
    if status in (400, 422):
        return "it cannot use what it was sent; check `shape`, the model and the sampling settings"
    return "check the address, the model and the key"


def _soft_advice(error: openai.APIStatusError, server: Server, offered: Sequence[str] | None) -> str:
    """What to do where embeddings were refused; "" where they are not the reason."""
    if error.status_code not in (400, 404, 405, 422, 501):
        return ""
    if error.status_code == 404 and server.model not in (offered or ()):
        return ""  # another name is wanted first
    said = _explanation(error.body)
    if "hidden_size" in said:
        return f"its model {server.model!r} is not the one that the soft prompts were trained over"
    if error.status_code in (400, 422) and said and "prompt" not in said:
        return ""  # a setting is meant
    return (
        "it takes no soft prompts, which are sent as embeddings: that needs vLLM, started with "
        "--enable-prompt-embeds"
    )


def _not_found(server: Server, offered: Sequence[str] | None) -> str:
    if not offered:
        return f"no model {server.model!r}, or not the right address; it usually ends in /v1"
    if server.model in offered:
        return f"it has the model {server.model!r} but not this way of asking; try the other `shape`"
    near = difflib.get_close_matches(server.model, offered, n=3, cutoff=0.6)
    meant = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    shown = ", ".join(offered[:10]) + (" …" if len(offered) > 10 else "")
    return f"no model {server.model!r}{meant}; it offers {shown}"
