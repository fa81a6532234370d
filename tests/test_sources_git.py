"""The source `git`, on repositories made here; git itself is the peer."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penname.errors import BadInputError, EmptySourceError, MissingPackageError
from penname.records import Authored, BadRow, Document, User
from penname.sources import read
from penname.sources.git import strip_trailers

DATE = "2024-03-01T10:00:00+02:00"


class Repository:
    """A repository in a folder, with commits made at will."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str, **environment: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        kept |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        command = ["git", "-C", str(self.path), *arguments]
        return subprocess.run(
            command, env=kept | environment, check=True, capture_output=True, text=True
        ).stdout

    def commit(
        self,
        message: str | bytes,
        name: str = "Ann",
        email: str = "Ann@x.org",
        date: str = DATE,
        **files: str | None,
    ) -> str:
        for file, content in files.items():
            path = self.path / file.replace("__", "/")
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        message_file = self.path / ".git" / "message"
        message_file.write_bytes(message if isinstance(message, bytes) else message.encode())
        who = {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": email, "GIT_AUTHOR_DATE": date}
        who |= {"GIT_COMMITTER_NAME": "C", "GIT_COMMITTER_EMAIL": "c@x.org", "GIT_COMMITTER_DATE": DATE}
        self.git("add", "-A", **who)
        options = ("-q", "--allow-empty", "--allow-empty-message", "--no-verify", "--cleanup=verbatim")
        self.git("commit", *options, "-F", str(message_file), **who)
        return self.git("rev-parse", "HEAD").strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo")


def documents(path: Path) -> list[tuple[str, Document]]:
    return [(item.user, item.document) for item in read("git", path) if isinstance(item, Authored)]


def test_a_commit_is_a_document_of_its_author(repository: Repository) -> None:
    first = repository.commit("Add two files\n\nBecause.\n", a="1\n2\n", **{"src__b c": "3\n"})
    second = repository.commit("Change them\n", a="1\n", **{"src__b c": None})
    user, *items = read("git", repository.path)
    assert user == User(id="ann@x.org", name="Ann")
    newest, oldest = (item.document for item in items if isinstance(item, Authored))
    assert (newest.id, oldest.id) == (second, first)
    assert (oldest.title, oldest.text) == ("Add two files", "Add two files\n\nBecause.")
    assert oldest.written_at == datetime(2024, 3, 1, 8, tzinfo=UTC)
    assert oldest.fields == {
        "commit": first, "files": 2, "insertions": 3, "deletions": 0, "summary": "A a, A src/b c",
    }  # fmt: skip
    assert (newest.fields["summary"], newest.fields["deletions"]) == ("M a, D src/b c", 2)


def test_hostile_messages_and_names_do_not_shift_anything(repository: Repository) -> None:
    evil = "Subject\x1e\x1f\n\n:100644 100644 a b M\n\n1\t2\tname\n" + "0" * 40 + "\n"
    repository.commit(evil, name='A"; `x` $(y)', email="weird'\"@x.org", **{"1\t2\tn\n": "x", ":000 M": "y"})
    repository.commit("Second\n", **{"0" * 40: "binary\0"})
    (_, second), (user, first) = documents(repository.path)
    assert user == "weird'\"@x.org"
    assert first.text == evil.strip()
    assert (first.fields["files"], first.fields["insertions"]) == (2, 2)
    assert (second.fields["files"], second.fields["insertions"]) == (1, 0)


def test_co_authors_share_the_document_in_order(repository: Repository) -> None:
    repository.commit(
        "Together\n\nText.\n\nReviewed-by: Z <z@x.org>\nCo-authored-by: Bob <BOB@x.org>\n"
        "Co-Authored-By: Ann <ann@x.org>\nSigned-off-by: Ann <ann@x.org>\n"
    )
    found = [(user, d.position, d.n_authors, d.text) for user, d in documents(repository.path)]
    assert found == [("ann@x.org", 0, 2, "Together\n\nText."), ("bob@x.org", 1, 2, "Together\n\nText.")]
    assert {item.id: item.name for item in read("git", repository.path) if isinstance(item, User)} == {
        "ann@x.org": "Ann",
        "bob@x.org": "Bob",
    }


def test_the_mailmap_joins_addresses_of_authors_and_co_authors(repository: Repository) -> None:
    mailmap = "Ann Lee <ann@new.org> <ann@old.org>\nBob Ray <bob@new.org> <bob@old.org>\n"
    message = "One\n\nCo-authored-by: B <bob@old.org>\n"
    repository.commit(message, email="ann@old.org", **{".mailmap": mailmap})
    assert [user for user, _ in documents(repository.path)] == ["ann@new.org", "bob@new.org"]


@pytest.mark.parametrize(
    ("message", "text", "others"),
    [
        ("Subject only", "Subject only", []),
        ("S\n\nSigned-off-by: A <a@x>", "S", []),
        ("S\n\nNote: this stays", "S\n\nNote: this stays", []),
        ("S\n\nFixes: #1\nReviewed-by: A <a@x>", "S", []),
        ("S\n\nb\nCo-authored-by: A <a@x>\nc", "S\n\nb\nc", ["A <a@x>"]),
        ("Signed-off-by: A <a@x>", "", []),
        ("", "", []),
    ],
)
def test_trailers(message: str, text: str, others: list[str]) -> None:
    assert strip_trailers(message) == (text, others)


def test_merges_are_left_out_and_many_files_are_summed_up(repository: Repository) -> None:
    repository.commit("Base\n", **{f"f{i:02}": "x\n" for i in range(30)})
    repository.git("checkout", "-q", "-b", "side")
    repository.commit("Side\n", side="s")
    repository.git("checkout", "-q", "main")
    repository.commit("Main\n", main="m")
    who = {
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@x",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@x",
    }
    repository.git("merge", "-q", "--no-ff", "-m", "Merge", "side", **who)
    found = documents(repository.path)
    assert sorted(document.title for _, document in found) == ["Base", "Main", "Side"]
    base = next(document for _, document in found if document.title == "Base")
    assert base.fields["files"] == 30
    assert base.fields["summary"].endswith("A f19, … and 10 more")


def test_a_commit_that_cannot_be_used_is_told_and_the_rest_is_kept(repository: Repository) -> None:
    repository.commit("Good\n")
    for message, email in (("", "a@x"), ("No address\n", ""), ("S\n" + "x" * 1_100_000, "a@x")):
        repository.commit(message, email=email)
    items = list(read("git", repository.path))
    reasons = [item.why for item in items if isinstance(item, BadRow)]
    for reason, part in zip(reversed(reasons), ("no text", "no user", "the limit"), strict=True):
        assert part in reason
    assert all("commit" in item.file for item in items if isinstance(item, BadRow))
    assert [document.title for _, document in documents(repository.path)] == ["Good"]


def test_a_message_that_is_not_utf_8_is_told(tmp_path: Path, repository: Repository) -> None:
    repository.commit("Good\n")
    tree = repository.git("rev-parse", "HEAD^{tree}").strip()
    who = "A <a@x> 1700000000 +0000"
    raw = f"tree {tree}\nauthor {who}\ncommitter {who}\n\n".encode() + b"caf\xe9 \xff\n"
    (tmp_path / "raw").write_bytes(raw)
    commit = repository.git("hash-object", "-t", "commit", "-w", str(tmp_path / "raw")).strip()
    repository.git("update-ref", "HEAD", commit)
    (bad,) = read("git", repository.path)
    assert isinstance(bad, BadRow)
    assert "not UTF-8" in bad.why


def test_what_is_no_repository_is_refused(tmp_path: Path, repository: Repository) -> None:
    with pytest.raises(EmptySourceError, match="no commit yet"):
        list(read("git", repository.path))
    (repository.path / "sub").mkdir()
    for path in (tmp_path, repository.path / "sub"):
        with pytest.raises(BadInputError, match="no git repository"):
            list(read("git", path))
    with pytest.raises(BadInputError, match="no folder"):
        list(read("git", tmp_path / "missing"))


def test_a_damaged_repository_keeps_what_came_before(repository: Repository) -> None:
    first = repository.commit("First\n")
    repository.commit("Second\n")
    repository.commit("Third\n")
    (repository.path / ".git" / "objects" / first[:2] / first[2:]).unlink()
    items = list(read("git", repository.path))
    assert [item.document.title for item in items if isinstance(item, Authored)][:1] == ["Third"]
    assert isinstance(items[-1], BadRow)
    assert "git could not read" in items[-1].why


def test_git_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Repository) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackageError, match="install git"):
        list(read("git", repository.path))


def test_an_untrusted_owner_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Repository
) -> None:
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'fatal: detected dubious ownership in repository' >&2\nexit 128\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(BadInputError, match=r"safe\.directory"):
        list(read("git", repository.path))


def test_our_environment_does_not_lead_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Repository
) -> None:
    repository.commit("Mine\n")
    other = Repository(tmp_path / "other")
    other.commit("Other\n")
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    assert [document.title for _, document in documents(repository.path)] == ["Mine"]


def test_a_hostile_configuration_runs_nothing(tmp_path: Path, repository: Repository) -> None:
    mark = tmp_path / "ran"
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    evil.chmod(0o755)
    tree = repository.commit("One\n", a="1", **{".gitattributes": "* diff=evil\n"})
    signed = f"tree {repository.git('rev-parse', 'HEAD^{tree}').strip()}\nparent {tree}\n" + (
        "author A <a@x> 1700000000 +0000\ncommitter A <a@x> 1700000000 +0000\n"
        "gpgsig -----BEGIN PGP SIGNATURE-----\n \n abc\n -----END PGP SIGNATURE-----\n\nSigned\n"
    )
    (tmp_path / "signed").write_text(signed)
    commit = repository.git("hash-object", "-t", "commit", "-w", str(tmp_path / "signed")).strip()
    repository.git("update-ref", "HEAD", commit)
    programs = (
        "core.pager core.fsmonitor core.sshCommand core.editor core.alternateRefsCommand gpg.program "
        "diff.external diff.evil.command diff.evil.textconv pager.log"
    )
    for name in programs.split():
        repository.git("config", name, str(evil))
    settings = (
        f"log.showSignature=true core.hooksPath={tmp_path} diff.orderFile=/missing log.showRoot=false "
        "color.ui=always log.follow=true format.pretty=raw diff.renames=copies"
    )
    for setting in settings.split():
        repository.git("config", *setting.split("=", 1))
    repository.git("config", "alias.log", f"!{evil}")
    assert [document.title for _, document in documents(repository.path)] == ["Signed", "One"]
    assert not mark.exists()


def test_a_partial_clone_fetches_nothing(tmp_path: Path, repository: Repository) -> None:
    mark = tmp_path / "ran"
    commit = repository.commit("One\n", a="1")
    repository.commit("Two\n", a="2")
    for name, value in (("core.repositoryFormatVersion", "1"), ("extensions.partialClone", "origin"),
                        ("remote.origin.promisor", "true"), ("protocol.ext.allow", "always"),
                        ("remote.origin.url", f"ext::sh -c touch% {mark}"),
                        ("remote.origin.uploadpack", f"touch {mark}; true")):  # fmt: skip
        repository.git("config", name, value)
    tree = repository.git("rev-parse", f"{commit}^{{tree}}").strip()
    blob = repository.git("rev-parse", f"{commit}:a").strip()
    for missing in (tree, blob):
        (repository.path / ".git" / "objects" / missing[:2] / missing[2:]).unlink()
    for url in (None, str(tmp_path / "repo")):
        if url:
            repository.git("config", "remote.origin.url", url)
        try:
            items = list(read("git", repository.path))
        except BadInputError:
            items = []
        assert all(isinstance(item, User | Authored | BadRow) for item in items)
        assert not mark.exists()


def test_reading_can_stop_anywhere(repository: Repository) -> None:
    for number in range(20):
        repository.commit(f"Commit {number}\n")
    items = read("git", repository.path)
    assert isinstance(next(items), User)
    del items  # a process that lived on would be a ResourceWarning, which is an error here
