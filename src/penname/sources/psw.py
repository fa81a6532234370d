"""PSW, personalised scientific writing (Step-Back Profiling, arXiv 2406.14275): UP-0 and PSW-1 to PSW-4.

The folder that the authors' notebooks write and read:

    paper_json.json   {paper id: {paperId, title, abstract, year, authors: [author id or {authorId}, …],
                      research_questions?: [text, …], references?: [{title}, …], …}}
    author_json.json  {author id: {papers: [{title, abstract, paperId?, year?, …}], name?,
                      interests?: [text, …], …}}
    paper_research_questions.tsv   paper id, tab, questions in one line: where papers lack them
    author_interests.tsv           author id, tab, list of texts: where authors lack them

The last two may be missing. An author is a user, and each paper of theirs with an abstract a document. What
is asked, where the files hold what it takes:

    PSW-0 (UP-0)  an author's research interests, from the history alone
    PSW-1         the titles of the references → the title
    PSW-2         those and the title → the research questions
    PSW-3         the title and the research questions → the abstract
    PSW-4         the abstract → the title

A request is for all authors in their order, and never uses a paper of the same title. As the notebooks do, it
does not look at years: a history may hold what was written later. The notebooks ask a server for the
references and do not save them: put them into `references` for PSW-1 and PSW-2.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import BadRow, Item, Request, User, check_user_id, digest
from penname.sources._each import Row, needed
from penname.sources._files import blocks, lines
from penname.sources._profiles import moment
from penname.sources._rows import authored, bad, id_of, text_of, why

_PAPERS, _AUTHORS = "paper_json.json", "author_json.json"
_QUESTIONS, _INTERESTS = "paper_research_questions.tsv", "author_interests.tsv"
_TASKS = ("PSW-0", "PSW-1", "PSW-2", "PSW-3", "PSW-4")
_ASKED = "My research interests"  # UP-0 has no input but the history
_REFERENCES = 50  # titles of references in a prompt, as in the notebooks


def read(path: Path, *, task: str | None = None, prefix: str = "") -> Iterator[Item]:
    """The Users and Authored of all authors, then the Requests of UP-0, then each paper's.

    A paper whose author is not in author_json.json is told as a bad row and asked for all the same, unless
    none of its authors is there. The two JSON files are held in memory whole.

    Args:
        path: the folder.
        task: "PSW-0" (or "UP-0") to "PSW-4": only requests of this task.
        prefix: put before every user's id.

    Raises:
        BadInputError: no such folder, file or task, or a file as a whole is broken.
    """
    chosen = _chosen(task)
    if not path.is_dir():
        raise BadInputError(f"{path} is no folder: PSW is a folder with {_PAPERS} and {_AUTHORS}")
    histories = _Histories(path / _AUTHORS, prefix)
    yield from histories.read()
    if "PSW-0" in chosen:
        yield from _interests(path, histories)
    questions, wrong = _table(path / _QUESTIONS)
    yield from wrong
    papers = _object(path / _PAPERS)
    for name, paper in papers.items():
        yield from _paper(path / _PAPERS, name, paper, questions.get(name), histories, chosen)
    for name in questions:
        if name not in papers:
            yield bad(path / _QUESTIONS, 0, f"the paper {name[:60]!r} is not in {_PAPERS}")


def _chosen(task: str | None) -> tuple[str, ...]:
    name = "PSW-0" if task == "UP-0" else task
    if name is None:
        return _TASKS
    if name not in _TASKS:
        raise BadInputError(f"unknown task {name[:40]!r}; there are {', '.join(_TASKS)}")
    return (name,)


def _object(path: Path) -> dict[str, Any]:
    """The JSON object that the file is; a name that stands in it twice is an error."""
    try:
        content = json.loads(b"".join(blocks(path)).decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path} is broken: {why(error)}") from None
    if not isinstance(content, dict):
        raise BadInputError(f"{path} is no JSON object with an entry for each id")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:60]!r} stands twice in an object")
    return found


def _table(path: Path) -> tuple[dict[str, str], list[BadRow]]:
    """(text by id, what was wrong) of two columns with a tab between; nothing where there is no such file."""
    texts: dict[str, str] = {}
    wrong: list[BadRow] = []
    for found in lines(path) if path.exists() else ():
        if isinstance(found, BadRow):
            wrong.append(found)
            continue
        number, raw = found
        try:
            name, tab, text = (
                text_of(raw.decode("utf-8", "surrogateescape"), "the line").strip().partition("\t")
            )
            if not name and not text:
                continue
            if not tab or not text.strip():
                raise BadInputError("the line is not an id, a tab and a text")
            if name in texts:
                raise BadInputError(f"a second line with the id {name[:60]!r}")
            texts[name] = text.strip()
        except BadInputError as error:
            wrong.append(bad(path, number, error))
    return texts, wrong


@dataclass
class _Histories:
    """The authors: their documents, and what must be known of them for the requests."""

    path: Path
    prefix: str
    interests: dict[str, Any] = field(default_factory=dict)  # by author, as the file has them
    titles: dict[tuple[str, str], set[str]] = field(
        default_factory=lambda: defaultdict(set)
    )  # ids by user, title

    def read(self) -> Iterator[Item]:
        for name, author in _object(self.path).items():
            try:
                user = self.user(name)
                if not isinstance(author, dict) or not isinstance(author.get("papers"), list):
                    raise BadInputError("no object with a list 'papers'")
                person = User(id=user, name=text_of(author.get("name"), "name"))
            except (BadInputError, ValidationError) as error:
                yield bad(self.path, 0, f"author {name[:60]!r}: {why(error)}")
                continue
            self.interests[name] = author.get("interests")
            yield person
            for number, paper in enumerate(author["papers"], 1):
                try:
                    yield from self._document(user, paper)
                except (BadInputError, ValidationError) as error:
                    yield bad(self.path, 0, f"author {name[:60]!r}, paper {number}: {why(error)}")

    def user(self, name: str) -> str:
        return check_user_id(self.prefix + name)

    def _document(self, user: str, paper: object) -> list[Item]:
        if not isinstance(paper, dict):
            raise BadInputError("not an object")
        needed(paper, "title", "abstract")
        title, abstract = (text_of(paper[name], name).strip() for name in ("title", "abstract"))
        own = id_of(paper.get("paperId"), "paperId") or digest([title, abstract])
        known = ("title", "abstract", "paperId", "year")
        items = authored(
            [user],
            abstract,
            title=title,
            written_at=moment(paper.get("year")),
            id=own,
            fields={name: value for name, value in paper.items() if name not in known},
        )
        self.titles[user, _key(title)].add(own)
        return [*items]


def _key(title: str) -> str:
    """A title as it is compared: without case and spacing."""
    return " ".join(title.casefold().split())


def _interests(path: Path, histories: _Histories) -> Iterator[Item]:
    """A request of UP-0 for each author whose interests are known."""
    listed, wrong = _table(path / _INTERESTS)
    yield from wrong
    for name in listed:
        if name not in histories.interests:
            yield bad(path / _INTERESTS, 0, f"the author {name[:60]!r} is not in {_AUTHORS}")
    for name, own in histories.interests.items():
        try:
            gold = ", ".join(_texts(own if own else listed.get(name), "interests"))
            if gold:
                user = histories.user(name)
                yield Request(id=f"PSW-0:{user}", task="PSW-0", input=_ASKED, users=(user,), gold=gold)
        except (BadInputError, ValidationError) as error:
            yield bad(path / _INTERESTS, 0, f"author {name[:60]!r}: {why(error)}")


def _texts(value: object, name: str) -> list[str]:
    """A list of texts; as text it is what Python writes for such a list, or else one text."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value) if value.lstrip().startswith("[") else [value]
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise BadInputError(f"{name!r} is no list of texts") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadInputError(f"{name!r} is no list of texts")
    return [text for each in value if (text := text_of(each, name).strip())]


def _paper(
    path: Path, name: str, paper: object, question: str | None, histories: _Histories, chosen: tuple[str, ...]
) -> Iterator[Item]:
    """The requests of a paper, as far as it has what they take."""
    try:
        if not isinstance(paper, dict):
            raise BadInputError("not an object")
        needed(paper, "title", "authors")
        names = _authors(paper)
        users = tuple(histories.user(author) for author in names)
        unknown = [author for author in names if author not in histories.interests]
        if len(unknown) == len(names):
            raise BadInputError(f"none of its authors is in {_AUTHORS}")
        title = text_of(paper["title"], "title").strip()
        same = {id for user in users for id in histories.titles.get((user, _key(title)), ())}  # noqa: A001
        requests = [
            Request(
                id=f"{task}:{histories.prefix}{name}",
                task=task,
                input=asked,
                users=users,
                exclude=tuple(sorted({name, *same})),
                gold=gold,
            )
            for task, asked, gold in _asked(paper, title, question)
            if task in chosen and asked and gold
        ]
    except (BadInputError, ValidationError) as error:
        yield bad(path, 0, f"paper {name[:60]!r}: {why(error)}")
        return
    for author in unknown:
        yield bad(path, 0, f"paper {name[:60]!r}: its author {author[:60]!r} is not in {_AUTHORS}")
    yield from requests


def _authors(paper: Row) -> list[str]:
    """The ids of the authors, in their order."""
    listed = paper["authors"]
    if not isinstance(listed, list):
        raise BadInputError("'authors' is no list")
    names = [id_of(each.get("authorId") if isinstance(each, dict) else each, "authors") for each in listed]
    if not names or not all(names):
        raise BadInputError("'authors' is empty, or an author has no id")
    return names


def _asked(paper: Row, title: str, question: str | None) -> Iterator[tuple[str, str, str]]:
    """(task, input, gold) of PSW-1 to PSW-4; "" where the paper lacks it."""
    abstract = text_of(paper.get("abstract"), "abstract").strip()
    own = paper.get("research_questions")
    questions = "\n".join(_texts(own if own else question, "research_questions"))
    references = "\n".join(_titles(paper.get("references")))
    with_title = f"Title: {title}"
    yield "PSW-1", references, title
    yield "PSW-2", f"{with_title}\n\nReferences:\n{references}" if references and title else "", questions
    yield (
        "PSW-3",
        f"{with_title}\n\nResearch questions:\n{questions}" if questions and title else "",
        abstract,
    )
    yield "PSW-4", abstract, title


def _titles(references: object) -> list[str]:
    """The titles of the first references, as texts or in objects."""
    if references is None:
        return []
    if not isinstance(references, list):
        raise BadInputError("'references' is no list")
    named = (each.get("title") if isinstance(each, dict) else each for each in references)
    return [title for each in named if (title := text_of(each, "references").strip())][:_REFERENCES]
