"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import torch

    from model_server import Answering, Scripted
    from penname.lm import LanguageModel

settings.register_profile("penname", deadline=None)  # a busy machine is no failure
settings.load_profile("penname")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("PENNAME_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: name its folder with PENNAME_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a causal model of two layers with random weights (tests/tiny.py)."""
    from tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def embedded_model() -> LanguageModel:
    """The embedded model, converted in the user's cache folder (a minute the first time)."""
    from penname.errors import MissingPackageError
    from penname.lm import ModelConfig, load_model

    try:
        return load_model(ModelConfig("smollm2-135m", dtype="float32"))
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (rows, tokens) of every pass of a model in transformers, from here on."""
    from penname.lm.network import Network

    passes: list[tuple[int, int]] = []
    forward = Network.forward

    def watched(self: Network, ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        passes.append((ids.shape[0], ids.shape[1]))
        return forward(self, ids, *rest, **options)

    monkeypatch.setattr(Network, "forward", watched)
    return passes


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between retries of a model's server, which are not slept through."""
    from model_server import shortcuts

    return shortcuts(monkeypatch)


@pytest.fixture
def serve(waits: list[float]) -> Iterator[Callable[[Answering], Scripted]]:
    """Starts imitations of a model's server that answer as they are told."""
    from model_server import servers

    with servers() as start:
        yield start
