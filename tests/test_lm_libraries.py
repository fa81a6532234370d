"""What the libraries below are told before their first use."""

from __future__ import annotations

import pytest

from penname.lm.libraries import forgetful

NAMES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


def test_few_compiled_shapes_are_kept_unless_the_user_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(NAMES[1], "7")
    forgetful()
    assert int(os.environ[NAMES[0]]) < 1024, "torch's own"
    assert os.environ[NAMES[1]] == "7"
