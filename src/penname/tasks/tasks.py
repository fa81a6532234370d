"""What can be asked: each task says how a request reads, and how a document of the history shows one done."""

from __future__ import annotations

from dataclasses import dataclass

from penname.errors import UnknownTaskError
from penname.records import Document


@dataclass(frozen=True)
class Task:
    """A kind of writing, from an input to an output.

    `example_input` and `example_output` name the part of a history document that shows each: `title`, `text`,
    or a key of its `fields`. A document that lacks one of them is no example of this task.
    """

    name: str
    help: str
    instruction: str  # what a chat model is asked
    input_label: str
    output_label: str
    example_input: str = "title"
    example_output: str = "text"
    max_tokens: int = 256  # of the answer
    one_line: bool = False  # the answer ends with its first line

    def example(self, document: Document) -> tuple[str, str] | None:
        """(input, output) as `document` shows them, or None where it has not both."""
        shown, written = part(document, self.example_input), part(document, self.example_output)
        return (shown, written) if shown and written else None

    def stop(self) -> tuple[str, ...]:
        """Where a completion ends: a model that goes on to another example has finished this one."""
        return ("\n",) if self.one_line else (f"\n{self.input_label}:", f"\n{self.output_label}:")


def part(document: Document, name: str) -> str:
    """The named part of a document as text; "" where there is none."""
    value = {"title": document.title, "text": document.text}.get(name, document.fields.get(name))
    return value.strip() if isinstance(value, str) else ""


TASKS = {
    task.name: task
    for task in (
        Task("write", "any text, from what it is about", "Write this text.", "About", "Text"),
        Task(
            "email", "an e-mail from its subject", "Write the e-mail with this subject.", "Subject", "E-mail"
        ),
        Task("post", "a post from its title", "Write the post with this title.", "Title", "Post"),
        Task(
            "abstract",
            "an abstract from its title",
            "Write the abstract of the document with this title.",
            "Title",
            "Abstract",
        ),
        Task(
            "title",
            "a title from its text",
            "Write the title of this text, on one line.",
            "Text",
            "Title",
            example_input="text",
            example_output="title",
            max_tokens=32,
            one_line=True,
        ),
    )
}


def task(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownTaskError: there is none; the message offers the nearest.
    """
    if name not in TASKS:
        raise UnknownTaskError(name, TASKS)
    return TASKS[name]
