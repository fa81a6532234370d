"""The public face: what `import penname` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import penname

HEAVY = (
    "torch",
    "transformers",
    "sqlalchemy",
    "openvino_genai",
    "numpy",
    "openai",
    "rich",
    "bm25s",
    "pydantic",
)


def test_the_public_names_are_sorted_and_there() -> None:
    assert penname.__all__ == sorted(penname.__all__)
    for name in penname.__all__:
        assert getattr(penname, name) is not None
    assert dir(penname) == penname.__all__


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Storr'"):
        _ = penname.Storr


def test_importing_loads_nothing_heavy() -> None:
    code = f"import sys, penname; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
