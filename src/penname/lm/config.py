"""Which model, and how to run it: one frozen record, read from one short setting or from a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from penname.errors import BadInputError, ModelNotFoundError
from penname.lm.base import Shape

DType = Literal["float32", "bfloat16"]

EMBEDDED = "smollm2-135m"  # the model that comes with penname


@dataclass(frozen=True)
class ModelConfig:
    """One language model. Only `model` is needed; what is None is chosen by the backend.

    Raises:
        BadInputError: a field has a value that it cannot have; the message names it.
    """

    model: str  # "smollm2-135m", a folder, a GGUF file, or http(s)://host[:port]/v1#model-name
    shape: Shape | None = None  # form of a request; None: "chat" if the model has a chat template
    context: int | None = None  # tokens, prompt and completion together; None: what the model says
    dtype: DType | None = None  # of the weights as they are run; None: what the device is fast at
    device: str | None = None  # "cpu", "cuda", "cuda:1"; None: a GPU if there is one
    adapter: str | None = None  # folder of a peft adapter laid over the model; None: none
    embeddings: str | None = None  # of a server: the same model here, whose embeddings soft prompts need
    api_key_env: str | None = None  # environment variable that holds the server's key; never the key itself
    concurrency: int = 8  # requests to a server at the same time
    timeout: float = 120.0  # seconds that a server may stay silent
    retries: int = 5  # further attempts after a failed request to a server; 0: none

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before anything is loaded."""
        _check_types(self)
        _check_choice("shape", self.shape, get_args(Shape))
        _check_choice("dtype", self.dtype, get_args(DType))
        if not self.model.strip():
            raise BadInputError("model: the name is empty")
        if self.remote and not self.remote_model:
            raise BadInputError(f"model: {self.model!r} names no model; write it as {self.model}#model-name")
        if self.embeddings is not None and not self.remote:
            raise BadInputError("embeddings: only a model on a server needs them; name the folder as `model`")
        for name, least in (("context", 1), ("concurrency", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadInputError(f"{name}: {value} is too small; at least {least}")
        if not self.timeout > 0:
            raise BadInputError(f"timeout: {self.timeout} is not a number of seconds above 0")

    @property
    def remote(self) -> bool:
        """Whether `model` names a server."""
        return self.model.lower().startswith(("http://", "https://"))

    @property
    def base_url(self) -> str:
        """The server's address without the model's name, as an OpenAI client wants it."""
        return self.model.partition("#")[0].rstrip("/")

    @property
    def remote_model(self) -> str:
        """The model's name on the server; "" where none was given."""
        return self.model.partition("#")[2].strip()


def parse(spec: str) -> ModelConfig:
    """The configuration that one setting stands for.

    `spec` is "smollm2-135m", a folder, FILE.gguf, http(s)://host[:port]/v1#model-name, or FILE.toml whose
    keys are the fields of `ModelConfig` (relative paths in it count from the file's own folder). Whether the
    folder or GGUF file holds a model is found out on loading.

    Raises:
        ModelNotFoundError: the TOML file is not there.
        BadInputError: an unknown key, a wrong value, or a file that is not TOML.
    """
    spec = spec.strip()
    if not spec.lower().endswith(".toml") or spec.lower().startswith(("http://", "https://")):
        return ModelConfig(model=spec)
    file = Path(spec).expanduser()
    return _from_table(_read_toml(file), file)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise ModelNotFoundError(f"no model configuration at {file}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"{file}: not TOML: {error}") from error
    except OSError as error:
        raise BadInputError(f"{file}: cannot be read: {error.strerror}") from error


def _from_table(table: dict[str, Any], file: Path) -> ModelConfig:
    known = [field.name for field in fields(ModelConfig)]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise BadInputError(f"{file}: unknown key {unknown[0]!r}; the keys are {', '.join(known)}")
    if "model" not in table:
        raise BadInputError(f"{file}: the key 'model' is missing")
    for name in ("model", "adapter", "embeddings"):
        if isinstance(table.get(name), str):
            table[name] = _beside(table[name], file)
    try:
        return ModelConfig(**table)
    except BadInputError as error:
        raise BadInputError(f"{file}: {error}") from None


def _beside(value: str, file: Path) -> str:
    """`value` as a path from the folder of `file`, where such a path exists; else as it stands."""
    beside = file.parent / value
    return str(beside) if value and beside.exists() else value


_TYPES: dict[str, tuple[type, ...]] = {
    "context": (int,),
    "concurrency": (int,),
    "retries": (int,),
    "timeout": (int, float),
}  # the fields that are not text
_REQUIRED = {"model", "concurrency", "timeout", "retries"}


def _check_types(config: ModelConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if value is None and field.name not in _REQUIRED:
            continue
        wanted = _TYPES.get(field.name, (str,))
        if not isinstance(value, wanted) or isinstance(value, bool):
            kind = " or ".join(t.__name__ for t in wanted)
            raise BadInputError(f"{field.name}: {value!r} is not of type {kind}")


def _check_choice(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise BadInputError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
