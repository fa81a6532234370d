"""All that can be asked, by name: writing of one's own, chat, and the published benchmarks' tasks.

The four tasks on proposals (P-1 to P-4) and those of personalised scientific writing (PSW-0, called UP-0 by
its paper, to PSW-4; arXiv 2406.14275) follow a text on its way: what it builds on, its title, its questions
or motivation, its abstract.
"""

from __future__ import annotations

from penname.errors import UnknownTaskError
from penname.tasks.base import Task
from penname.tasks.lamp import LAMP, LONGLAMP

_ROUGE = ("rouge1", "rougeL")
_THE_TITLE = "Write the title of this text, on one line."

_GENERAL = (
    Task("write", "any text, from what it is about", "Write this text.", "About", "Text"),
    Task("email", "an e-mail from its subject", "Write the e-mail with this subject.", "Subject", "E-mail"),
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
        _THE_TITLE,
        "Text",
        "Title",
        example_input="text",
        example_output="title",
        max_tokens=32,
        one_line=True,
    ),
    Task(
        "chat",
        "a reply to a person's message",
        "Reply to this message in the way that suits the person who wrote it.",
        "Message",
        "Reply",
        example_input=(),
        bare_examples=True,
        bare_label="Earlier message",
    ),
    Task(
        "choice",
        "the answer that suits a person best, of those given",
        "Choose the answer that suits the person who asks best. Answer with its letter in brackets alone.",
        "Question",
        "Answer",
        example_input=(),
        max_tokens=16,
        one_line=True,
        bare_examples=True,
        bare_label="Earlier message",
        metrics=("accuracy",),
    ),
)

_PROPOSALS = (
    Task(
        "P-1",
        "a proposal's title from the titles of those it builds on",
        "Write the title of a proposal that builds on the proposals with these titles, on one line.",
        "Builds on",
        "Title",
        example_input="builds_on",
        example_output="title",
        max_tokens=32,
        one_line=True,
        bare_examples=True,
    ),
    Task(
        "P-2",
        "a proposal's motivation from its title and what it builds on",
        "Write the motivation of this proposal. Its title stands last, after those of what it builds on.",
        "Proposal",
        "Motivation",
        example_input=("builds_on", "title"),
        example_output="motivation",
        max_tokens=128,
        bare_examples=True,
    ),
    Task(
        "P-3",
        "a proposal's abstract from its title and motivation",
        "Write the abstract of the proposal with this title and motivation.",
        "Proposal",
        "Abstract",
        example_input=("title", "motivation"),
        max_tokens=128,
    ),
    Task(
        "P-4",
        "a proposal's title from its abstract",
        "Write the title of the proposal with this abstract, on one line.",
        "Abstract",
        "Title",
        example_input="text",
        example_output="title",
        max_tokens=32,
        one_line=True,
    ),
)

# A history of papers holds neither interests nor questions: where these are asked, it is material and shows
# no example.
_PSW = (
    Task(
        "PSW-0",
        "an author's research interests from the papers (UP-0)",
        "Name the research interests of the person who wrote these papers, on one line, separated by commas.",
        "Asked for",
        "Interests",
        example_input=(),
        max_tokens=64,
        one_line=True,
        bare_examples=True,
        bare_label="Earlier paper",
        metrics=_ROUGE,
    ),
    Task(
        "PSW-1",
        "a paper's title from the titles of its references",
        "Write the title of a paper by these authors that has these references, on one line.",
        "References",
        "Title",
        example_input=(),
        example_output="title",
        max_tokens=48,
        one_line=True,
        bare_examples=True,
        metrics=_ROUGE,
    ),
    Task(
        "PSW-2",
        "a paper's research questions from its title and references",
        "Write the research questions of the paper with this title and these references.",
        "Paper",
        "Research questions",
        example_input=(),
        bare_examples=True,
        bare_label="Earlier paper",
        metrics=_ROUGE,
    ),
    Task(
        "PSW-3",
        "a paper's abstract from its title and research questions",
        "Write the abstract of the paper with this title and these research questions.",
        "Paper",
        "Abstract",
        metrics=_ROUGE,
    ),
    Task(
        "PSW-4",
        "a paper's title from its abstract",
        "Write the title of the paper with this abstract, on one line.",
        "Abstract",
        "Title",
        example_input="text",
        example_output="title",
        max_tokens=48,
        one_line=True,
        metrics=_ROUGE,
    ),
)

TASKS = {task.name: task for task in (*_GENERAL, *_PROPOSALS, *LAMP, *LONGLAMP, *_PSW)}


def task(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownTaskError: there is none; the message offers the nearest.
    """
    if name not in TASKS:
        raise UnknownTaskError(name, TASKS)
    return TASKS[name]
