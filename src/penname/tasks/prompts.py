"""How a request is put to a model: the texts of `prompts.toml`, filled in, quoted and made to fit.

What does not fit is left out by one rule, and said: documents first, the least relevant before the others;
then profiles, the last author's first; the request never. In the tasks of LaMP and LongLaMP documents are cut
instead, by those benchmarks' rule (`penname.tasks.budget`).
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
from penname.tasks.answers import labelled
from penname.tasks.base import Task
from penname.tasks.budget import item_text, lay_out, share

MAX_EXAMPLE = 500  # characters of each side of an example: a style shows in 100 tokens

_LINE_ENDS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"  # what str.splitlines and models take for one
_OUR_TAGS = re.compile(r"<(?=\s*/?\s*(?:profile|document|notes)\b)", re.IGNORECASE)


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

    @property
    def openings(self) -> tuple[str, ...]:
        """How profiles begin in a completion prompt: what no line of a user's text may begin with."""
        profiles = (self.completion[name] for name in ("profile", "profile_of_several"))
        begun = (text.strip().partition("$")[0].strip() for text in profiles)
        return tuple(opening for opening in begun if opening)


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


def quote_labels(text: str, labels: Sequence[str], openings: Sequence[str] = ()) -> str:
    """`text` as data among labelled examples: a line that could pass for a label of ours is quoted with >.

    Args:
        labels: what a colon follows.
        openings: what else a line of ours begins with.
    """
    ours = [*(rf"{re.escape(label)}\s*:" for label in labels), *map(re.escape, openings)]
    label = rf"(^|[{_LINE_ENDS}])(?=\s*(?:{'|'.join(ours)}))"
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
            next to the request; where the task has an `item`, it stands first, as the benchmarks have it.
        count: tokens of a prompt.
        room: tokens that the prompt may have.

    Raises:
        PromptTooLongError: the request alone has more than `room` tokens.
    """
    shown = [[hit for hit in of_author if task.example(hit.document)] for of_author in hits]
    # Round by round over the authors: everybody's best, then everybody's second …
    ranked = [
        of_author[rank]
        for rank in range(max(map(len, shown), default=0))
        for of_author in shown
        if rank < len(of_author)
    ]
    dropped = _no_examples(task, sum(map(len, hits)) - len(ranked))
    kept = list(profiles)
    render = _completion if shape == "completion" else _chat

    def put(documents: Sequence[str]) -> Prompt:
        return render(task, request, texts, kept, documents)

    block = _Blocks(task, request, texts, shape)
    if task.item:
        dropped += _fit_request(put, kept, count, room)
        ranked, blocks, cut = _shared(task, ranked, block, lambda items: count(put(items)), room)
        return BuiltPrompt(put(blocks), tuple(kept), tuple(ranked), (*dropped, *cut))
    blocks = [block.example(hit) for hit in ranked]
    while blocks and count(put(blocks[::-1])) > room:
        blocks.pop()
        dropped.append(_named(ranked.pop()))
    dropped += _fit_request(put, kept, count, room) if not blocks else []
    return BuiltPrompt(put(blocks[::-1]), tuple(kept), tuple(ranked), tuple(dropped))


def quoted_material(
    task: Task, request: Request, profiles: Sequence[Profile], hits: Sequence[Hit], texts: PromptTexts
) -> list[str]:
    """Profiles, then documents, each in tags of its own, quoted as data for a chat model.

    A document is shortened as an example is; one that does not show the task done is left out.
    """
    block = _Blocks(task, request, texts, "chat")
    shown = [hit for hit in hits if task.example(hit.document)]
    return [
        *(_described(request, profile) for profile in profiles),
        *(
            block.item(hit, shorten(item_text(task, hit.document))) if task.item else block.example(hit)
            for hit in shown
        ),
    ]


def _no_examples(task: Task, number: int) -> list[str]:
    """The documents that do not show the task done, in words."""
    if not number:
        return []
    inputs = (task.example_input,) if isinstance(task.example_input, str) else task.example_input
    lacking = " or ".join([*(() if task.bare_examples else inputs), task.example_output])
    return [f"{number} {'document' if number == 1 else 'documents'} without a {lacking}"]


def _fit_request(
    put: Callable[[Sequence[str]], Prompt], kept: list[Profile], count: Callable[[Prompt], int], room: int
) -> list[str]:
    """Take profiles from `kept`, the last first, until they and the request fit; those taken, in words."""
    dropped = []
    while (tokens := count(put([]))) > room:
        if not kept:
            raise PromptTooLongError(
                f"the request has {tokens:,} tokens and the model has room for {max(room, 0):,}: "
                "shorten it, ask for fewer tokens, or use a model with a longer context"
            )
        dropped.append(f"profile of {kept.pop().user!r}")
    return dropped


def _shared(
    task: Task, hits: Sequence[Hit], block: _Blocks, size: Callable[[Sequence[str]], int], room: int
) -> tuple[list[Hit], list[str], list[str]]:
    """(the hits that have a place, their blocks, what was cut in words), by the benchmarks' rule."""
    whole = [item_text(task, hit.document) for hit in hits]
    kept = share(whole, lambda number, text: block.item(hits[number], text), size, room)
    placed = [(hit, block.item(hit, text)) for hit, text in zip(hits, kept, strict=True) if text]
    cut = [
        f"the end of {_named(hit)}, past its share of the prompt" if text else _named(hit)
        for hit, text, before in zip(hits, kept, whole, strict=True)
        if text != before
    ]
    return [hit for hit, _ in placed], [text for _, text in placed], cut


def _named(hit: Hit) -> str:
    return f"document {hit.document.id!r} of {hit.user!r}"


@dataclass(frozen=True)
class _Blocks:
    """Documents as they stand in a prompt, quoted as data."""

    task: Task
    request: Request
    texts: PromptTexts
    shape: Literal["completion", "chat"]

    def example(self, hit: Hit) -> str:
        """The task done, each side shortened to what a style needs; a bare example by its output alone."""
        found = self.task.example(hit.document)
        assert found is not None  # build_prompt has left the others out
        shown, written = shorten(found[0]), shorten(found[1])
        task = self.task
        bare = task.bare_label or task.output_label
        if self.shape == "chat":
            shown, written = quote_tags(shown), quote_tags(written)
            sides = f"{task.input_label}: {shown}\n{task.output_label}: {written}"
            return self._tagged(hit, sides if shown else f"{bare}: {written}")
        shown, written = self._quoted(shown), self._quoted(written)
        if not shown:
            return f"{bare}: {written}"
        labels = {"input_label": task.input_label, "output_label": task.output_label}
        return fill(self.texts.completion["example"], **labels, input=shown, output=written).strip()

    def item(self, hit: Hit, text: str) -> str:
        """The document in the task's own layout, with `text` of the part that may be cut."""
        item = lay_out(self.task, hit.document, text)
        if self.shape == "chat":
            return self._tagged(hit, quote_tags(item))
        return self._quoted(item)

    def _quoted(self, text: str) -> str:
        return quote_labels(text, self.task.labels, self.texts.openings)

    def _tagged(self, hit: Hit, text: str) -> str:
        return f"<document{_author(self.request, hit.user)}>\n{text}\n</document>"


def _author(request: Request, user: str) -> str:
    """Which author a tag is about, where there are several."""
    if len(request.users) == 1 or user not in request.users:
        return ""
    return f' author="{request.users.index(user) + 1}"'


def _described(request: Request, profile: Profile) -> str:
    return f"<profile{_author(request, profile.user)}>\n{quote_tags(profile.text)}\n</profile>"


def _asked(request: Request) -> str:
    """The request's input, with its options where the answer is one of them."""
    options = (f"{label} {option}" for label, option in labelled(request.options))
    return "\n".join([request.input.strip(), *options])


def _completion(
    task: Task, request: Request, texts: PromptTexts, profiles: Sequence[Profile], documents: Sequence[str]
) -> Prompt:
    blocks = []
    for profile in profiles:
        about = quote_labels(profile.text, task.labels, texts.openings)
        if len(request.users) == 1:
            blocks.append(fill(texts.completion["profile"], profile=about))
        else:
            place, authors = str(request.users.index(profile.user) + 1), str(len(request.users))
            template = texts.completion["profile_of_several"]
            blocks.append(fill(template, number=place, authors=authors, profile=about))
    asked = quote_labels(_asked(request), task.labels, texts.openings)
    if task.item:
        items = ", and ".join(documents) + task.lead if documents else ""
        ending = f"{items}{asked}\n{task.output_label}:"
    else:
        blocks += documents
        ending = fill(
            texts.completion["request"],
            input_label=task.input_label,
            output_label=task.output_label,
            input=asked,
        )
    return "\n\n".join([*(block.strip() for block in blocks), ending])


def _chat(
    task: Task, request: Request, texts: PromptTexts, profiles: Sequence[Profile], documents: Sequence[str]
) -> Prompt:
    described = [_described(request, profile) for profile in profiles]
    asked = fill(
        texts.chat["write"],
        material="".join(f"{block}\n\n" for block in (*described, *documents)),
        instruction=task.instruction,
        input_label=task.input_label,
        input=_asked(request),
    )
    return (
        Message(role="system", content=fill(texts.chat["write_system"])),
        Message(role="user", content=asked),
    )
