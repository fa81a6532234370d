"""The main job on real documents: real author groups, their histories, profiles and drafts."""

from __future__ import annotations

from pathlib import Path

import pytest

from penname.lm import LanguageModel
from penname.records import Request
from penname.sources import read
from penname.store import Store
from penname.writer import Writer

GROUPS = [("a0671", "a0312"), ("a0019", "a0033"), ("a0218", "a0219")]


@pytest.fixture(scope="module")
def proposals(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("proposals") / "proposals.db")
    fields = {
        "user_field": "authors",
        "text_field": "abstract",
        "title_field": "title",
        "date_field": "created",
    }
    added = store.add(read("jsonl", shared_data / "proposals.jsonl.gz", **fields))
    assert (added.users, added.bad) == (1366, 0)
    return store


def test_it_imports_whole(proposals: Store) -> None:
    ids = {document.id for user in proposals.users() for document in proposals.user(user.id).documents()}
    assert len(ids) == 1099
    again = proposals.user("a0025")
    assert again.count == again.span.documents == 51


def test_three_groups_are_profiled_and_written_for(proposals: Store, embedded_model: LanguageModel) -> None:
    together = {group.users for group in proposals.groups()}
    assert set(GROUPS) <= together
    requests = []
    for users in GROUPS:
        shared = set.intersection(*({d.id for d in proposals.user(user).documents()} for user in users))
        latest = [d for d in proposals.user(users[0]).documents() if d.id in shared][-1]
        moment, excluded = latest.written_at, (latest.id,)
        requests.append(
            Request(task="abstract", input=latest.title, users=users, before=moment, exclude=excluded)
        )
    writer = Writer(proposals, embedded_model, k=1, max_tokens=24, temperature=0)
    drafts = writer.write_many(requests)
    for request, draft in zip(requests, drafts, strict=True):
        assert draft.text
        assert isinstance(draft.prompt, str)
        assert draft.prompt.endswith(f"Title: {request.input}\nAbstract:")
        assert 1 <= len(draft.profiles) <= 2
        for profile in draft.profiles:
            assert profile.text in draft.prompt
            assert profile.before == request.before
        for hit in draft.documents:
            assert request.before is not None
            assert hit.document.written_at is not None
            assert hit.document.written_at < request.before
