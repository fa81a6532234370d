"""Between text and tokens: prompts in, texts out as their tokens come."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

from penname.errors import BadInputError
from penname.lm.base import Generation, Sampling, Thinking
from penname.lm.stops import beginning, stop_at
from penname.records import Message, Prompt, check_text

# Names that end tokens go by. Small models end a text with one that their configuration does not name.
_END_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<eos>",
)
_UNFINISHED = "\ufffd"  # what a decoder gives for bytes that are no whole character yet
_JOINER = "\u200b"  # zero-width space: splits a control token without changing how the text looks


class Codec:
    """A tokenizer of transformers, used in one way by all backends.

    What users wrote is data: the names of control tokens in a prompt are encoded as the plain characters that
    they are, so no text can end a turn or begin one.

    Args:
        tokenizer: a tokenizer of transformers.
        ends: token ids that end a text, besides those that the tokenizer itself has.
    """

    def __init__(self, tokenizer: Any, ends: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # a tokenizer keeps its settings of the moment in itself
        added = {token.content: at for at, token in tokenizer.added_tokens_decoder.items()}
        special = {t.content: at for at, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._control = sorted((name for name in added if len(name) > 1), key=len, reverse=True)
        own = {tokenizer.eos_token_id, tokenizer.bos_token_id} - {
            None
        }  # after a beginning comes another text
        self.ends = frozenset(own | {special[name] for name in _END_NAMES if name in special} | set(ends))
        self.end: int | None = next(
            (token for token in (tokenizer.eos_token_id, *sorted(self.ends)) if token is not None), None
        )
        between = special.get("<|endoftext|>"), tokenizer.eos_token_id, tokenizer.bos_token_id
        self._start = next((token for token in between if token is not None), 0)

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._tokenizer.chat_template)

    def prompt(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, at least one (an empty prompt is the token that begins texts).

        Raises:
            BadInputError: a conversation that the model's chat template refuses, or for which it has none.
        """
        if isinstance(prompt, str):
            ids = self._encode(prompt, begin=True, plain=True)
        else:
            ids = self._encode(self._render(prompt), begin=False, plain=False)
        return ids or [self._start]

    def completion(self, text: str) -> list[int]:
        """Token ids of what follows a prompt: nothing is put before it."""
        return self._encode(text, begin=False, plain=True)

    def thinking(self, thinking: Thinking) -> tuple[list[int], list[int]]:
        """Token ids of the cue that opens a thought, and of the bridge between thought and answer.

        Raises:
            BadInputError: there is no bridge, or the budget does not hold the two.
        """
        cue, bridge = self.completion(thinking.cue), self.completion(thinking.bridge)
        if not bridge:
            raise BadInputError("thinking: an empty bridge cannot be told from any other place in a text")
        if len(cue) + len(bridge) > thinking.budget:
            raise BadInputError(
                f"thinking: a budget of {thinking.budget:,} tokens does not hold cue and bridge, which alone "
                f"take {len(cue) + len(bridge):,}: raise the budget or shorten them"
            )
        return cue, bridge

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, control tokens left out, and NUL, which no database keeps."""
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).replace("\x00", "")

    def save(self, folder: Path, *, template: bool = True) -> None:
        """Write the tokenizer where a model's weights lie; a model without a template takes no chat."""
        tokenizer = copy(self._tokenizer)
        if not template:
            tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)

    def _encode(self, text: str, *, begin: bool, plain: bool) -> list[int]:
        check_text(text)
        with self._lock:
            encoded = self._tokenizer(
                text, add_special_tokens=begin, split_special_tokens=plain, verbose=False
            )
        return list(encoded["input_ids"])

    def _render(self, prompt: tuple[Message, ...]) -> str:
        if not self.has_template:
            raise BadInputError("this model has no chat template: give it plain text (shape = 'completion')")
        from jinja2 import TemplateError

        turns = [{"role": m.role, "content": self._as_data(m.content)} for m in prompt]
        try:
            rendered = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except (TemplateError, IndexError) as error:
            raise BadInputError(f"the model's chat template refuses this conversation: {error}") from error
        return str(rendered)

    def _as_data(self, content: str) -> str:
        """`content` with the names of control tokens broken up: the template's own lie in the same text."""
        for name in self._control:
            if name in content:
                content = content.replace(name, name[0] + _JOINER + name[1:])
        return content


class Writing:
    """One text while it is written: tokens go in, and it says when to end and why.

    `text` grows by whole characters only. `finish` is None until the text has ended. With thinking, the text
    is a thought that ends with the bridge, and the answer behind the bridge's first occurrence; where the
    bridge is late, its tokens are taken in place of those that are pushed.

    Raises:
        BadInputError: as `Codec.thinking`.
    """

    def __init__(self, codec: Codec, prompt: Sequence[int], sampling: Sampling) -> None:
        self._codec = codec
        self.sampling = sampling
        self.prompt = prompt
        self.ids: list[int] = []
        self.finish: Literal["stop", "length"] | None = None
        self.answer: int | None = 0
        """Where in `text` the answer begins; None until its bridge has come."""
        self._before = 0  # tokens before the answer, once it has begun
        self._bridge: list[int] = []
        self._forced = 0  # tokens of the bridge that were taken in place of pushed ones
        self._late = 0  # tokens of thought after which the bridge is due
        if sampling.thinking is not None:
            self.answer = None
            cue, self._bridge = codec.thinking(sampling.thinking)
            self._late = sampling.thinking.budget - len(cue) - len(self._bridge)
        self._text = ""
        self._window = 0  # tokens are decoded from here: some change with the one before them
        self._read = 0  # tokens that `_text` already holds

    @property
    def text(self) -> str:
        """What is written so far."""
        # Decoded when it is asked for: where nothing in the text can end it, that is once.
        self._take(last=self.finish is not None)
        return self._text

    def push(self, token: int) -> int:
        """Take the next token; returns the one that stands in the text, for the model to read on from."""
        if self.answer is None:
            return self._think(token)
        if token in self._codec.ends:
            self.finish = "stop"
            return token
        self.ids.append(token)
        if len(self.ids) - self._before >= self.sampling.max_tokens:
            self.finish = "length"
        self._stop()
        return token

    def generation(self) -> Generation:
        """The text up to the first stop string in its answer, with its counts."""
        text = self.text[: self._end()]
        return Generation(text, len(self.prompt), len(self.ids), self.finish or "length")

    def _think(self, token: int) -> int:
        """As `push`, before the answer. An end token there would leave the text without an answer."""
        thinking = self.sampling.thinking
        assert thinking is not None
        due = len(self.ids) >= self._late or token in self._codec.ends
        if due and not self._forced:
            self._forced = self._begun()
        if due or self._forced:
            token = self._bridge[self._forced]
            self._forced += 1
        self.ids.append(token)
        at = self.text.find(thinking.bridge)
        if at >= 0:
            self.answer = at + len(thinking.bridge)
        elif self._forced == len(self._bridge):  # a tokenizer that writes it otherwise
            self.answer = len(self.text)
        if self.answer is not None:
            self._before = len(self.ids)
            self._stop()  # the bridge's last token may reach into the answer
        return token

    def _begun(self) -> int:
        """Tokens of the bridge that the thought ends with already: it need not begin a second time."""
        whole = len(self._bridge)
        return next(n for n in range(whole - 1, -1, -1) if self.ids[len(self.ids) - n :] == self._bridge[:n])

    def _stop(self) -> None:
        if self.sampling.stop and self._end() < len(self.text):
            self.finish = "stop"

    def _end(self) -> int:
        """Where the first stop string of the answer begins."""
        start = len(self.text) if self.answer is None else self.answer
        return start + stop_at(self.text[start:], self.sampling.stop)

    def _take(self, *, last: bool) -> None:
        """Move what the new tokens say into `_text`; at the end, bytes of half a character are dropped."""
        if self._read == len(self.ids):
            return
        held = self._codec.decode(self.ids[self._window : self._read])
        text = self._codec.decode(self.ids[self._window :])
        if last:
            text = text.rstrip(_UNFINISHED)
        elif text.endswith(_UNFINISHED):
            return
        self._text += text[len(held) :]
        self._window, self._read = self._read, len(self.ids)


class Showing:
    """What of a text may be shown while it is written: joined it is what `Writing.generation` gives.

    What may be the beginning of a stop string is held back until more of the text decides it. Stop strings
    count in the answer alone.
    """

    def __init__(self, writing: Writing, stops: Sequence[str]) -> None:
        self._writing = writing
        self._stops = stops
        self._shown = 0

    def new(self) -> str:
        """What has come since the last call; "" where there is nothing."""
        writing = self._writing
        text = writing.text
        if writing.finish is not None:
            text = writing.generation().text
        elif writing.answer is not None:
            text = text[: len(text) - beginning(text[writing.answer :], self._stops)]
        piece = text[self._shown :]
        self._shown += len(piece)
        return piece

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._writing.finish is not None

    def end(self) -> None:
        """Let the text end as it stands."""
        self._writing.finish = self._writing.finish or "stop"


def streamed(
    writing: Writing, steps: Iterator[None], stops: Sequence[str]
) -> Generator[str, None, Generation]:
    """The pieces of a text as each step adds to it; returns the whole."""
    showing = Showing(writing, stops)
    for _ in steps:
        if piece := showing.new():
            yield piece
    return writing.generation()
