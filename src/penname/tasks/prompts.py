"""How a request is put to a model: the texts of `prompts.toml`, filled in, quoted and made to fit.

What does not fit is left out by one rule, and said: documents first, the least relevant before the others;
then profiles, the last author's first; the request never.
"""

from __future__ import annotations

import os
import re
import string
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from penname.errors import BadInputError, PromptTooLongError
from penname.records import Hit, Message, Profile, Prompt, Request, digest
from penname.tasks.tasks import Task

MAX_EXAMPLE = 1_500  # characters of an example's input and of its output: a style shows in 100 words

_LINE_ENDS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"  # what str.splitlines and models take for one
_OUR_TAGS = re.compile(r"<(?=/?\s*(?:profile|document|notes)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class PromptTexts:
    """The texts of a prompts file: `completion` and `chat` map names to templates."""

    completion: dict[str, str]
    chat: dict[str, str]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read `path`, else the file named by PENNAME_PROMPTS, else penname's own.

        Raises:
            BadInputError: the file is not there, is no TOML, or a text or one of its $names is missing.
        """
        own = cls._parse(
            resources.files(__package__).joinpath("prompts.toml").read_text("utf-8"), "prompts.toml"
        )
        named = path or os.environ.get("PENNAME_PROMPTS")
        if not named:
            return own
        try:
            text = Path(named).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"prompts file {named}: {error}") from None
        return cls._parse(text, str(named), own)

    @classmethod
    def _parse(cls, text: str, where: str, model: PromptTexts | None = None) -> Self:
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise BadInputError(f"prompts file {where}: {error}") from None
        texts = cls(completion=dict(tables.get("completion", {})), chat=dict(tables.get("chat", {})))
        if model is not None:
            _same_names(texts.completion, model.completion, f"{where} [completion]")
            _same_names(texts.chat, model.chat, f"{where} [chat]")
        return texts

    @property
    def fingerprint(self) -> str:
        """Changes when any text does: part of every cache key."""
        return digest([self.completion, self.chat])


def _same_names(given: dict[str, str], wanted: dict[str, str], where: str) -> None:
    """Each text is there, no other is, and each uses the $names that penname's own uses."""
    if set(given) != set(wanted):
        missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
        raise BadInputError(f"prompts file {where}: missing {missing}, unknown {extra}")
    for key, text in wanted.items():
        if not isinstance(given[key], str):
            raise BadInputError(f"prompts file {where}: {key} is no text")
        needs = set(string.Template(text).get_identifiers())
        has = set(string.Template(given[key]).get_identifiers())
        if has != needs:
            raise BadInputError(f"prompts file {where}: {key} needs ${sorted(needs)} and has ${sorted(has)}")


def fill(template: str, **values: str) -> str:
    """`template` with its $names replaced; what is put in is never read as a template."""
    return string.Template(template.removeprefix("\n")).substitute(values)


def quote_tags(text: str) -> str:
    """`text` as data inside our tags: it cannot close or open one of them."""
    return _OUR_TAGS.sub("&lt;", text.strip())


def quote_labels(text: str, labels: Sequence[str]) -> str:
    """`text` as data among labelled examples: a line that could pass for a label of ours is quoted with >."""
    names = "|".join(re.escape(label) for label in labels)
    label = rf"(^|[{_LINE_ENDS}])(?=\s*(?:{names})\s*:)"
    return re.sub(label, r"\1> ", text.strip(), flags=re.IGNORECASE)


def shorten(text: str, limit: int = MAX_EXAMPLE) -> str:
    """The first `limit` characters of `text`, ended after its last whole sentence, or else word, with …"""
    text = text.strip()
    if len(text) <= limit:
        return text
    head = text[:limit]
    ends = [match.end() for match in re.finditer(r"[.!?…](?=\s)", head)]
    if ends and ends[-1] > limit // 2:
        return head[: ends[-1]] + " …"
    return head.rsplit(None, 1)[0] + " …"


def continuation(answer: str, shape: Literal["completion", "chat"]) -> str:
    """`answer` as a model of that shape would go on with it after the prompt: for scoring real texts."""
    return f" {answer.strip()}" if shape == "completion" else answer.strip()


@dataclass(frozen=True)
class BuiltPrompt:
    """A prompt that fits, what it holds, and what did not fit, in words."""

    prompt: Prompt
    profiles: tuple[Profile, ...]
    hits: tuple[Hit, ...]
    dropped: tuple[str, ...]


def build_prompt(
    task: Task,
    request: Request,
    *,
    shape: Literal["completion", "chat"],
    texts: PromptTexts,
    profiles: Sequence[Profile],
    hits: Sequence[Sequence[Hit]],
    count: Callable[[Prompt], int],
    room: int,
) -> BuiltPrompt:
    """The request with its profiles and documents, in `room` tokens at most.

    Args:
        profiles: in author order.
        hits: for each author, best first. In the prompt the best document of the first author stands last,
            next to the request.
        count: tokens of a prompt.
        room: tokens that the prompt may have.

    Raises:
        PromptTooLongError: the request alone has more than `room` tokens.
    """
    shown = [[hit for hit in of_author if task.example(hit.document)] for of_author in hits]
    unfit = sum(map(len, hits)) - sum(map(len, shown))
    noun = "document" if unfit == 1 else "documents"
    dropped = [f"{unfit} {noun} without a {task.example_input} or {task.example_output}"] if unfit else []
    # Round by round over the authors: everybody's best, then everybody's second …
    ranked = [
        of_author[rank]
        for rank in range(max(map(len, shown), default=0))
        for of_author in shown
        if rank < len(of_author)
    ]
    kept = list(profiles)
    render = _completion if shape == "completion" else _chat
    while count(prompt := render(task, request, texts, kept, ranked)) > room:
        if ranked:
            lost = ranked.pop()
            dropped.append(f"document {lost.document.id!r} of {lost.user!r}")
        elif kept:
            dropped.append(f"profile of {kept.pop().user!r}")
        else:
            raise PromptTooLongError(
                f"the request has {count(prompt):,} tokens and the model has room for {max(room, 0):,}: "
                "shorten it, ask for fewer tokens, or use a model with a longer context"
            )
    return BuiltPrompt(prompt, tuple(kept), tuple(ranked), tuple(dropped))


def _completion(
    task: Task, request: Request, texts: PromptTexts, profiles: Sequence[Profile], hits: Sequence[Hit]
) -> Prompt:
    labels = (task.input_label, task.output_label)
    blocks = []
    for profile in profiles:
        about = quote_labels(profile.text, labels)
        if len(request.users) == 1:
            blocks.append(fill(texts.completion["profile"], profile=about))
        else:
            place, authors = str(request.users.index(profile.user) + 1), str(len(request.users))
            template = texts.completion["profile_of_several"]
            blocks.append(fill(template, number=place, authors=authors, profile=about))
    for hit in reversed(hits):
        shown, written = _example(task, hit)
        blocks.append(
            fill(
                texts.completion["example"],
                input_label=task.input_label,
                output_label=task.output_label,
                input=quote_labels(shown, labels),
                output=quote_labels(written, labels),
            )
        )
    asked = fill(
        texts.completion["request"],
        input_label=task.input_label,
        output_label=task.output_label,
        input=quote_labels(request.input, labels),
    )
    return "\n\n".join([*(block.strip() for block in blocks), asked])


def _chat(
    task: Task, request: Request, texts: PromptTexts, profiles: Sequence[Profile], hits: Sequence[Hit]
) -> Prompt:
    place = {user: number for number, user in enumerate(request.users, start=1)}
    several = len(request.users) > 1

    def author(user: str) -> str:
        return f' author="{place[user]}"' if several and user in place else ""

    material = [
        f"<profile{author(profile.user)}>\n{quote_tags(profile.text)}\n</profile>" for profile in profiles
    ]
    for hit in reversed(hits):
        shown, written = _example(task, hit)
        material.append(
            f"<document{author(hit.user)}>\n{task.input_label}: {quote_tags(shown)}\n"
            f"{task.output_label}: {quote_tags(written)}\n</document>"
        )
    asked = fill(
        texts.chat["write"],
        material="".join(f"{block}\n\n" for block in material),
        instruction=task.instruction,
        input_label=task.input_label,
        input=request.input.strip(),
    )
    return (
        Message(role="system", content=fill(texts.chat["write_system"])),
        Message(role="user", content=asked),
    )


def _example(task: Task, hit: Hit) -> tuple[str, str]:
    """The two sides of an example, each shortened to what a style needs."""
    example = task.example(hit.document)
    assert example is not None  # build_prompt has left the others out
    return shorten(example[0]), shorten(example[1])
