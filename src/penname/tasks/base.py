"""What a task is: how a request reads, how a document shows one done, how an answer is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penname.records import Document
from penname.tasks.answers import read_choice, read_option

WRITING = ("rouge1", "rougeL", "chrf", "similarity", "bits_per_byte")  # where no paper names others


@dataclass(frozen=True)
class Task:
    """A kind of writing, from an input to an output.

    `example_input` and `example_output` name the parts of a history document that show each: `title`, `text`,
    or a key of its `fields`. Several parts of an input are joined by line ends, without those that are
    missing. A document without the output, or without any part of the input, is no example of this task.

    A task with an `item` has the official layout of LaMP and LongLaMP: each document is shown as `item` says,
    best first, and the documents share the room of the prompt (see `penname.tasks.budget`). The inputs of
    these tasks hold their own instruction.
    """

    name: str
    help: str
    instruction: str  # what a chat model is asked
    input_label: str
    output_label: str
    example_input: str | tuple[str, ...] = "title"
    example_output: str = "text"
    max_tokens: int = 256  # of the answer
    one_line: bool = False  # the answer ends with its first line
    bare_examples: bool = False  # a document without the input is still an example, by its output alone
    bare_label: str = ""  # stands before such an output; the output's own label where empty
    metrics: tuple[str, ...] = WRITING  # names in `penname.evaluate.METRICS`, as the paper's table has them
    choices: tuple[str, ...] = ()  # the labels an answer is one of
    item: str = ""  # a document in the prompt, with $title, $text or a key of its fields for its parts
    lead: str = ""  # completion models: stands between the items and the request
    query_pattern: str = ""  # its groups are what retrieval is asked; the input where it does not match

    def example(self, document: Document) -> tuple[str, str] | None:
        """(input, output) as `document` shows them, or None where it is no example.

        The input is "" where the task has bare examples and the document shows none.
        """
        names = (self.example_input,) if isinstance(self.example_input, str) else self.example_input
        shown = "\n".join(found for name in names if (found := part(document, name)))
        written = part(document, self.example_output)
        return (shown, written) if written and (shown or self.bare_examples) else None

    def parse(self, text: str, options: tuple[str, ...] = ()) -> str | None:
        """The answer in what a model wrote; None where there is none.

        Where there are `options` it is the label of one, such as "(b)"; where the task has choices, one of
        them; else the text itself without the blanks around it, or its first line where the task wants one.
        """
        if options:
            return read_option(text, options)
        if self.choices:
            return read_choice(text, self.choices)
        answer = text.strip()
        return (answer.splitlines()[0].rstrip() if answer and self.one_line else answer) or None

    def query(self, text: str) -> str:
        """What retrieval is asked for the input `text`: by LaMP's own rules for its tasks, else `text`."""
        found = re.match(self.query_pattern, text, re.DOTALL)
        return " ".join(found.groups()).strip() or text if found else text

    def stop(self) -> tuple[str, ...]:
        """Where a completion ends: a model that goes on to another example has finished this one."""
        return ("\n",) if self.one_line else tuple(f"\n{label}:" for label in self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """What may stand before a colon at the beginning of a line of ours."""
        found = (self.input_label, self.output_label, self.bare_label)
        return tuple(dict.fromkeys(label for label in found if label))


def part(document: Document, name: str) -> str:
    """The named part of a document as text, a number as its digits; "" where there is none."""
    value = {"title": document.title, "text": document.text}.get(name, document.fields.get(name))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value).strip()
