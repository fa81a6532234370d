"""A git repository: the commit messages of each author, with what the change touched as context.

`git log` is run as a program, never through a shell, and its output is read as it comes. The repository is
not trusted: nothing that its configuration names is run (see _SAFE), and nothing is fetched. Merges are left
out; authors are told apart by e-mail address in lower case, after .mailmap; Co-authored-by makes co-authors.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from penname.errors import BadInputError, EmptySourceError, MissingPackageError
from penname.records import Authored, Item, User
from penname.sources._files import BLOCK, TOO_LONG, split
from penname.sources._rows import authored, bad, users_of

# What a hostile repository could set to have something run or read on our behalf.
_SAFE = {
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.pager": "cat",
    "diff.orderFile": "/dev/null",
    "gpg.program": "false",
    "log.showRoot": "true",
    "log.showSignature": "false",
}
_FORMAT = "%x00".join(("", "%H", "%aN", "%aE", "%at", "%B", ""))  # no message can hold a NUL
_LOG = (
    *("log", "-z", f"--format={_FORMAT}", "--raw", "--numstat", "--no-merges", "--use-mailmap"),
    *("--no-renames", "--no-ext-diff", "--no-textconv", "--no-show-signature", "--no-notes", "--no-color"),
    *("--submodule=short", "--encoding=UTF-8", "HEAD", "--"),
)
_COUNTS = re.compile(rb"(\d+|-)\t(\d+|-)\t")
_HASH = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_TRAILER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*): +\S.*|\(cherry picked from commit [0-9a-f]+\)|[ \t]+\S.*")
_SIGNED = re.compile(r"[A-Za-z-]+-by: .*|\(cherry picked from commit .*", re.IGNORECASE)
_CO_AUTHOR = re.compile(r"co-authored-by:[ \t]*(.*<[^<>]*>)[ \t]*", re.IGNORECASE)
_CONTACT = re.compile(r"(.*?)\s*<([^<>]*)>")
_LONGEST_CONTACT = 1000  # characters of a co-author's name and address
_SHOWN_FILES = 20  # named in a summary
_SHOWN_PATH = 200  # characters of one path in it


@dataclass
class _Commit:
    """One commit as git tells it; `changes` are "M path" and so on."""

    hash: str
    header: list[bytes | None] = field(default_factory=list)  # author name, e-mail, epoch seconds, message
    changes: list[str] = field(default_factory=list)
    files: int = 0
    insertions: int = 0
    deletions: int = 0


def read(path: Path) -> Iterator[Item]:
    """A User for each author when first met, then an Authored per commit and author, newest first.

    Document: text is the message without trailers, title its first line, date the author's. `fields` has
    `commit`, `files`, `insertions`, `deletions` and `summary` ("M src/a.py, A b.py", at most 20 files).

    Raises:
        BadInputError: no repository at `path` (its top folder is meant), or git does not trust its owner.
        EmptySourceError: it has no commit yet.
        MissingPackageError: git is not installed.
    """
    if not path.is_dir():
        raise BadInputError(f"{path} is no folder; a git repository's top folder is meant")
    people = _People(path)
    started = False
    try:
        with _git(path, *_LOG) as output:
            for commit in _commits(split(iter(lambda: output.read(BLOCK), b""), b"\0")):
                started = True
                yield from _items(path, commit, people)
    except BadInputError as error:
        if not started:
            raise
        yield bad(path, 0, error)  # such as a damaged object: what came before it is kept


def _items(path: Path, commit: _Commit, people: _People) -> Iterator[Item]:
    try:
        documents = _documents(commit, people)
    except (BadInputError, ValidationError) as error:
        yield bad(f"{path} commit {commit.hash[:12]}", 0, error)
        return
    yield from people.newcomers()
    yield from documents


def _documents(commit: _Commit, people: _People) -> list[Authored]:
    if len(commit.header) != 4 or None in commit.header:
        raise BadInputError(f"a part of the commit is missing or {TOO_LONG}")
    name, email, when, message = (part or b"" for part in commit.header)
    try:
        text, others = strip_trailers(message.decode("utf-8"))
        author = people.add(name.decode("utf-8", "replace"), email.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadInputError(f"not UTF-8: {error.reason} at byte {error.start + 1}") from None
    users = list(dict.fromkeys([author, *(people.mapped(other) for other in others)]))
    fields = {
        "commit": commit.hash,
        "files": commit.files,
        "insertions": commit.insertions,
        "deletions": commit.deletions,
        "summary": _summary(commit),
    }
    title = text.partition("\n")[0].strip()
    return authored(
        users_of(users, "author"), text, title=title, written_at=_moment(when), id=commit.hash, fields=fields
    )


def _moment(seconds: bytes) -> datetime:
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        raise BadInputError(f"the author's date {seconds[:40]!r} is impossible") from None


def _summary(commit: _Commit) -> str:
    more = commit.files - len(commit.changes)
    return ", ".join(commit.changes) + (f", … and {more} more" if more > 0 else "")


def strip_trailers(message: str) -> tuple[str, list[str]]:
    """A commit message without its trailers, and its co-authors as "Name <e-mail>".

    A last paragraph of trailers goes as a whole where one of them is signed by somebody (…-by:); lines that
    name a co-author or a sign-off go wherever they are.
    """
    message = message.replace("\r\n", "\n").strip()
    paragraphs = re.split(r"\n[ \t]*\n", message)
    others = [found[1] for line in message.split("\n") if (found := _CO_AUTHOR.fullmatch(line))]
    last = paragraphs[-1].split("\n")
    if len(paragraphs) > 1 and all(map(_TRAILER.fullmatch, last)) and any(map(_SIGNED.fullmatch, last)):
        del paragraphs[-1]
    kept = [
        line
        for line in "\n\n".join(paragraphs).split("\n")
        if not line.lower().startswith(("co-authored-by:", "signed-off-by:"))
    ]
    return "\n".join(kept).strip(), others


class _People:
    """Who has been met in this repository, and who a Co-authored-by line means."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.met: set[str] = set()
        self.new: list[User] = []
        self.contacts: dict[str, str] = {}

    def add(self, name: str, email: str) -> str:
        """The user id of an author."""
        user = email.strip().lower()
        (user,) = users_of(user, "author e-mail")
        if user not in self.met:
            self.met.add(user)
            self.new.append(User(id=user, name=" ".join(name.replace("\0", "").split())))
        return user

    def mapped(self, contact: str) -> str:
        """The user id that .mailmap gives a contact."""
        if contact not in self.contacts:
            if len(contact) > _LONGEST_CONTACT:
                raise BadInputError(f"the co-author {contact[:80]!r}… has {len(contact):,} characters")
            with _git(self.path, "check-mailmap", "--", contact) as output:
                known = output.read(BLOCK).decode("utf-8", "replace").strip()
            found = _CONTACT.fullmatch(known)
            if found is None:
                raise BadInputError(f"the co-author {contact[:80]!r} has no e-mail address")
            self.contacts[contact] = self.add(*found.groups())
        return self.contacts[contact]

    def newcomers(self) -> list[User]:
        """Those met since the last call."""
        new, self.new = self.new, []
        return new


def _commits(tokens: Iterator[bytes | None]) -> Iterator[_Commit]:
    """git's output, cut at NULs, as commits: five parts each, then pairs of status and path, then counts."""
    commit: _Commit | None = None
    for token in tokens:
        token = None if token is None else token.lstrip(b"\n")
        if token is None:
            continue
        if token.startswith(b":") and commit is not None:
            _add_change(commit, token, next(tokens, None))
        elif counts := _COUNTS.match(token):
            _add_counts(commit, counts)
        elif _HASH.fullmatch(token):
            if commit is not None:
                yield commit
            commit = _Commit(token.decode("ascii"), [next(tokens, None) for _ in range(4)])
    if commit is not None:
        yield commit


def _add_change(commit: _Commit, status: bytes, path: bytes | None) -> None:
    commit.files += 1
    if len(commit.changes) < _SHOWN_FILES and path is not None:
        name = path.decode("utf-8", "replace")[:_SHOWN_PATH]
        commit.changes.append(f"{status[-1:].decode('ascii', 'replace')} {name}")


def _add_counts(commit: _Commit | None, counts: re.Match[bytes]) -> None:
    if commit is not None:  # binary files count "-"
        commit.insertions += int(counts[1]) if counts[1] != b"-" else 0
        commit.deletions += int(counts[2]) if counts[2] != b"-" else 0


@contextmanager
def _git(path: Path, *arguments: str) -> Iterator[IO[bytes]]:
    """git's output as a stream; it is stopped where the reader stops.

    Raises:
        BadInputError, EmptySourceError, MissingPackageError: git failed, said on leaving.
    """
    settings = [part for name, value in _SAFE.items() for part in ("-c", f"{name}={value}")]
    command = ["git", "--no-pager", "-C", str(path), *settings, *arguments]
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=_environment(path),
            )
        except FileNotFoundError:
            raise MissingPackageError("git", "the source 'git'", "install git, from git-scm.com") from None
        assert process.stdout is not None
        try:
            yield process.stdout
            failed = process.wait()
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        if failed:
            complaints.seek(0)
            raise _failure(path, complaints.read(4000).decode("utf-8", "replace"))


def _environment(path: Path) -> dict[str, str]:
    """Ours, less what points git elsewhere, and with all transports and the folders above shut."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    if "GIT_CONFIG_GLOBAL" in os.environ:  # the person's own: safe.directory may stand there
        kept["GIT_CONFIG_GLOBAL"] = os.environ["GIT_CONFIG_GLOBAL"]
    return kept | {
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_CEILING_DIRECTORIES": str(path.resolve().parent),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


def _failure(path: Path, complaint: str) -> BadInputError:
    """What git said on its way out, as an error of ours."""
    if "dubious ownership" in complaint:
        return BadInputError(
            f"git does not trust {path}, which another user owns; if you do: "
            f"git config --global --add safe.directory {path.resolve()}"
        )
    if "not a git repository" in complaint:
        return BadInputError(f"{path} is no git repository; name the repository's top folder")
    if (
        "unknown revision" in complaint
        or "bad revision" in complaint
        or "does not have any commits" in complaint
    ):
        return EmptySourceError(f"the git repository {path} has no commit yet")
    return BadInputError(
        f"git could not read {path}: {' '.join(complaint.split())[:400] or 'no reason given'}"
    )
