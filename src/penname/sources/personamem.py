"""PersonaMem, version 1 (arXiv 2504.14225): multiple choice over a long conversation.

`questions_{size}.csv` (size: 32k, 128k or 1M) has the columns

    persona_id, question_id, question_type, topic, context_length_in_tokens, context_length_in_letters,
    distance_to_ref_in_blocks, distance_to_ref_in_tokens, num_irrelevant_tokens,
    distance_to_ref_proportion_in_context, user_question_or_message, correct_answer ("(a)"),
    all_options (a list of texts "(a) …", written as Python writes it), shared_context_id,
    end_index_in_shared_context

and in some releases more. `shared_contexts_{size}.jsonl`, beside it,
has {id: [{role, content}, …]} on each line.

A persona is a user. Each message of the role user is a document, without the "User: " that the files put
before it; the system's and the assistant's are not the user's texts and are left out. A question may see the
first `end_index` messages of its own context: what the persona said later, or in another context, is in its
`exclude`. Documents have no dates; their ids keep their order.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import Authored, BadRow, Item, Request, check_user_id, digest
from penname.sources._arrays import objects
from penname.sources._conversation import Turn, turns_of
from penname.sources._files import check_file
from penname.sources._rows import authored, bad, text_of, why
from penname.sources._tables import Cells, table

_COLUMNS = (
    "persona_id", "question_id", "user_question_or_message", "correct_answer", "all_options",
    "shared_context_id", "end_index_in_shared_context",
)  # fmt: skip
_QUESTIONS = re.compile(r"questions_([^.]+)\.csv(?:\.gz)?")
_SPEAKER = re.compile(r"\s*user:\s*", re.IGNORECASE)
_ENDS = (".jsonl", ".jsonl.gz")  # of the contexts file
_SHORT = 12  # characters of a context in a document's id
_MAX_OPTIONS = 100_000  # characters of `all_options`; a hostile one is not for the parser of literals


@dataclass(frozen=True)
class _Question:
    line: int
    id: str
    user: str
    input: str
    gold: str
    options: tuple[str, ...]
    context: str
    end: int  # messages of the context that it may see


@dataclass
class _Context:
    """What is known of the contexts that were read, by their ids."""

    lengths: dict[str, int] = field(default_factory=dict)  # in messages
    turns: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # documents: place, id

    def hidden(self, question: _Question, contexts: set[str]) -> tuple[str, ...]:
        """The ids of the persona's documents that this question may not see."""
        return tuple(
            name
            for context in sorted(contexts)
            for place, name in self.turns.get(context, ())
            if context != question.context or place >= question.end
        )


def read(path: Path, *, split: str | None = None, prefix: str = "") -> Iterator[Item]:
    """The Authored of all contexts, then a Request of the task "choice" for each question.

    The questions are held in memory; the contexts pass through it one at a time. A question without its
    context, a context without a question, and a second question or context of the same id are bad rows.

    Args:
        path: a questions file, or the folder that holds it.
        split: "32k", "128k" or "1M"; needed where the folder has several, which share their personas.
        prefix: put before every persona's id.

    Raises:
        BadInputError: no such file or size, no contexts beside it, or a file as a whole is broken.
    """
    questions_file = _questions_file(path, split)
    name = questions_file.name.removesuffix(".gz").removesuffix(".csv")
    beside = [questions_file.with_name(name.replace("questions", "shared_contexts") + end) for end in _ENDS]
    contexts_file = next((file for file in beside if file.exists()), None)
    if contexts_file is None or not _QUESTIONS.fullmatch(questions_file.name):
        raise BadInputError(
            f"{questions_file} needs its contexts beside it: there is no file {beside[0].name}"
        )
    questions: list[_Question] = []
    for found in _questions(questions_file, prefix):
        if isinstance(found, BadRow):
            yield found
        else:
            questions.append(found)
    context = _Context()
    yield from _documents(contexts_file, questions, context)
    yield from _requests(questions_file, questions, context, contexts_file.name)


def _questions_file(path: Path, split: str | None) -> Path:
    if not path.is_dir():
        if split is not None:
            raise BadInputError(f"{path} is no folder, so there is no split {split!r} to choose in it")
        check_file(path)
        return path
    sizes = {m[1]: file for file in sorted(path.iterdir()) if (m := _QUESTIONS.fullmatch(file.name))}
    chosen = {size: file for size, file in sizes.items() if split is None or size.lower() == split.lower()}
    if not chosen:
        raise BadInputError(
            f"{path} has no questions_{split or '*'}.csv (sizes there: {', '.join(sizes) or 'none'})"
        )
    if len(chosen) > 1:
        raise BadInputError(
            f"{path} has the sizes {', '.join(chosen)}, whose personas are the same: choose one as the split"
        )
    return next(iter(chosen.values()))


def _questions(path: Path, prefix: str) -> Iterator[_Question | BadRow]:
    met: set[str] = set()
    for found in table(path, _COLUMNS):
        if isinstance(found, BadRow):
            yield found
            continue
        line, cells = found
        try:
            question = _question(line, cells, prefix)
            if question.id in met:
                raise BadInputError(f"a second question with the id {question.id[:60]!r}")
        except (BadInputError, ValidationError) as error:
            yield bad(path, line, error)
        else:
            met.add(question.id)
            yield question


def _question(line: int, cells: Cells, prefix: str) -> _Question:
    values = {name: text_of(cells[name], name).strip() for name in _COLUMNS}
    for name in _COLUMNS:
        if not values[name]:
            raise BadInputError(f"the cell {name!r} is empty")
    end = values["end_index_in_shared_context"]
    if not (end.isascii() and end.isdecimal()) or len(end) > 12:
        raise BadInputError(f"'end_index_in_shared_context' is no number of messages: {end[:40]!r}")
    options, gold = _options(values["all_options"]), values["correct_answer"]
    if sum(option.startswith(gold) for option in options) != 1:
        raise BadInputError(f"the correct answer {gold[:40]!r} begins none, or several, of the options")
    return _Question(
        line,
        id=prefix + values["question_id"],
        user=check_user_id(prefix + values["persona_id"]),
        input=values["user_question_or_message"],
        gold=gold,
        options=options,
        context=values["shared_context_id"],
        end=int(end),
    )


def _options(written: str) -> tuple[str, ...]:
    """The list of options, which stands in its cell as Python (or JSON) writes a list of texts."""
    try:
        value: Any = ast.literal_eval(written) if len(written) <= _MAX_OPTIONS else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(each, str) for each in value):
        raise BadInputError("'all_options' is no list of at least two texts")
    options = tuple(text_of(each, "all_options").strip() for each in value)
    if not all(options) or len(set(options)) != len(options):
        raise BadInputError("'all_options' has an empty option, or one twice")
    return options


def _documents(path: Path, questions: list[_Question], context: _Context) -> Iterator[Item]:
    """The documents of every context that a question has, as far as one of them may see it."""
    ends: dict[str, dict[str, int]] = defaultdict(dict)  # by context: how far each user's questions see
    for question in questions:
        users = ends[question.context]
        users[question.user] = max(users.get(question.user, 0), question.end)
    for found in objects(path):
        if isinstance(found, BadRow):
            yield found
            continue
        line, row = found
        for name, messages in row.items():
            if name not in ends or name in context.turns:
                again = name in context.turns
                yield bad(
                    path, line, f"{'a second' if again else 'no question has the'} context {name[:60]!r}"
                )
                continue
            try:
                turns = turns_of(messages, name[:60])
            except BadInputError as error:
                yield bad(path, line, error)
            else:
                context.lengths[name], context.turns[name] = len(turns), []
                yield from _turns(path, line, name, turns, ends[name], context.turns[name])


def _turns(
    path: Path, line: int, name: str, turns: list[Turn], ends: dict[str, int], kept: list[tuple[int, str]]
) -> Iterator[Item]:
    """The documents of one context, which go to `kept` too."""
    # Requests name thousands of these ids: that of a context, 64 digits long, is cut to what tells it apart.
    short = name if len(name) <= _SHORT else digest(name)[:_SHORT]
    for place, turn in enumerate(turns):
        text = turn.content[found.end() :] if (found := _SPEAKER.match(turn.content)) else turn.content
        users = [user for user, end in ends.items() if place < end]
        if turn.role != "user" or not text.strip() or not users:
            continue
        id = f"{short}:{place:05d}"  # noqa: A001
        try:
            for user in users:
                yield from _document(user, text, id, name, place)
        except (BadInputError, ValidationError) as error:
            yield bad(path, line, f"message {place + 1} of the context {name[:60]!r}: {why(error)}")
        else:
            kept.append((place, id))


def _document(user: str, text: str, id: str, context: str, place: int) -> list[Authored]:  # noqa: A002
    return authored([user], text, id=id, fields={"context": context, "message": place})


def _requests(path: Path, questions: list[_Question], context: _Context, name: str) -> Iterator[Item]:
    contexts: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        contexts[question.user].add(question.context)
    for question in questions:
        length, its = context.lengths.get(question.context), f"its context {question.context[:60]!r}"
        if length is None or length < question.end:
            lacks = f"is not in {name}, or broken there"
            lacks = lacks if length is None else f"has {length} messages, and it sees {question.end}"
            yield bad(path, question.line, f"the question {question.id[:60]!r} is left out: {its} {lacks}")
            continue
        yield Request(
            id=question.id,
            task="choice",
            input=question.input,
            users=(question.user,),
            exclude=context.hidden(question, contexts[question.user]),
            gold=question.gold,
            options=question.options,
        )
