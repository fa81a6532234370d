"""Hashes are of contents, and converted folders appear whole or not at all."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from penname.errors import ModelError
from penname.lm.files import fingerprint, made_once, sha256


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENNAME_CACHE", str(tmp_path / "cache"))


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = sha256(file)
    assert first == sha256(file) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))  # the same size: only its time tells
    assert sha256(file) != first


def test_a_damaged_memory_of_a_hash_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = sha256(file)
    for memo in (tmp_path / "cache" / "hashes").iterdir():
        memo.write_bytes(b"\xff" * 10)
    assert sha256(file) == first


def test_a_fingerprint_is_of_names_and_contents_not_of_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_bytes(b"same")
    assert fingerprint([tmp_path / "a" / "w"]) == fingerprint([tmp_path / "b" / "w"])
    (tmp_path / "b" / "w").write_bytes(b"other")
    assert fingerprint([tmp_path / "a" / "w"]) != fingerprint([tmp_path / "b" / "w"])


def test_a_folder_is_made_once_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "models" / "whole"

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match=r"No space left on device.*PENNAME_CACHE"):
        made_once(target, fail)
    assert list(target.parent.iterdir()) == []

    made: list[Path] = []
    for _ in range(2):
        made_once(target, lambda folder: made.append(folder))
    assert len(made) == 1
    assert list(target.parent.iterdir()) == [target]


def test_several_that_make_it_at_once_all_get_one_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "models" / "whole"
    together = threading.Barrier(4)

    def make(folder: Path) -> None:
        (folder / "weights").write_text("whole")
        together.wait(timeout=30)

    threads = [threading.Thread(target=made_once, args=(target, make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(target.parent.iterdir()) == [target]
    assert (target / "weights").read_text() == "whole"


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    target = tmp_path / "models" / "whole"
    left = target.with_name(".whole-0123")
    left.mkdir(parents=True)
    os.utime(left, (1, 1))
    made_once(target, lambda folder: None)
    assert list(target.parent.iterdir()) == [target]
