"""A language model made ready to be trained: its weights, its tokens, and the LoRA that is laid over it."""

from __future__ import annotations

import ctypes
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from penname.errors import BadInputError, ModelError
from penname.lm import gguf, load_model
from penname.lm.base import Shape
from penname.lm.config import EMBEDDED, DType, ModelConfig, parse
from penname.lm.folders import end_tokens
from penname.lm.libraries import quiet
from penname.lm.text import Codec
from penname.records import Prompt
from penname.train.attention import NAME
from penname.train.lora import fuse
from penname.train.optimizer import Optimizer
from penname.train.packed import PackedReader, register

Weights = Literal["lora", "full"]


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685) on every linear layer but the head."""

    rank: int = 8  # arXiv 2402.05133, appendix
    alpha: int = 16  # the update is scaled by alpha / rank


@dataclass(frozen=True)
class Trainable:
    """A model to train, and how texts become its tokens."""

    spec: str  # as it was named
    fingerprint: str  # of the base weights
    shape: Shape
    context: int
    codec: Codec
    end: int  # the token that ends an answer
    reader: PackedReader

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt."""
        return tuple(self.codec.prompt(prompt))

    def answer(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer with the token that ends it: where to stop is learnt too."""
        return (*self.codec.completion(text), self.end)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are computed with."""
        return self.reader.embeddings.weight.dtype

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What of the model is trained, by name."""
        return {name: one for name, one in self.reader.model.named_parameters() if one.requires_grad}


def load_trainable(
    spec: str | ModelConfig | None = None,
    *,
    weights: Weights | None = "lora",
    lora: LoraSettings = LoraSettings(),
    dtype: DType | None = None,
    device: str | None = None,
    seed: int = 0,
    adapter: Path | None = None,
) -> Trainable:
    """Load a model for training or for reading rewards.

    Args:
        spec: as `penname.lm.load_model` takes it; a server cannot be trained.
        weights: "lora" lays new adapters over frozen weights, "full" trains all weights, None trains none.
        dtype: of the weights that are computed with; None: bfloat16 where the processor is fast at it.
        seed: of the adapters' first values.
        adapter: a peft adapter to lay over the model, frozen, instead of a new one.

    Raises:
        BadInputError: `spec` names a server.
        ModelNotFoundError, ModelError: it cannot be loaded, or cannot be trained here.
    """
    keep_memory()
    config = trainable_config(spec)
    model = load_model(config)
    folder = _weights_folder(config)
    quiet()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    register()
    device = device or config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = getattr(torch, dtype or config.dtype or fast_dtype(device))
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=precision, use_safetensors=True, attn_implementation=NAME
        )
        codec = Codec(AutoTokenizer.from_pretrained(folder), end_tokens(folder))
    except Exception as error:  # the libraries raise of every kind
        raise ModelError(f"cannot load {config.model}: {type(error).__name__}: {error}") from error
    network.to(device)
    network.requires_grad_(weights == "full")
    if adapter is not None:
        network = _with_adapter(network, adapter)
    elif weights == "lora":
        network = _with_lora(network, lora, seed)
    if hasattr(network, "peft_config"):
        fuse(network)
    network.eval()  # no dropout: a prompt read once stands for all its answers
    reader = PackedReader(network)
    reader.check()
    return Trainable(config.model, model.fingerprint, model.shape, model.context, codec, _end(codec), reader)


def save_weights(model: Trainable, optimizer: Optimizer, result: Path) -> None:
    """Write what was trained into a result's folder: adapter/ in float32, or model/ where it was all weights.

    A whole model comes with its tokenizer: the base is not needed any more.
    """
    network: Any = model.reader.model
    if not hasattr(network, "peft_config"):
        network.save_pretrained(result / "model")
        model.codec.save(result / "model")
        return
    _take_masters(model, optimizer)
    for one in network.peft_config.values():
        one.base_model_name_or_path = model.spec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft looks for the base's configuration under its name
        network.save_pretrained(result / "adapter")
    (result / "adapter" / "README.md").unlink(missing_ok=True)  # peft's own card names paths of this machine


def save_merged(model: Trainable, optimizer: Optimizer, result: Path) -> None:
    """Write model/ with what was trained laid into the base's weights: any program can load it."""
    dtype = model.dtype
    if hasattr(model.reader.model, "peft_config"):
        model.reader.model.float()  # the sum is rounded once, not each part of it
        _take_masters(model, optimizer)
    save_whole(model, result / "model", dtype)


def save_whole(model: Trainable, folder: Path, dtype: torch.dtype) -> None:
    """Write the model with its adapter, if it has one, laid into the weights. It is of no use afterwards."""
    network: Any = model.reader.model
    if hasattr(network, "peft_config"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = network.merge_and_unload()
    network.to(dtype).save_pretrained(folder)
    # Who loads it is to put requests in the form in which it learnt them.
    model.codec.save(folder, template=model.shape == "chat")


def _take_masters(model: Trainable, optimizer: Optimizer) -> None:
    """Put the float32 values that were trained in the place of what was computed with."""
    for name, parameter in model.parameters.items():
        parameter.data = optimizer.masters[name].data


def fast_dtype(device: str) -> DType:
    """bfloat16 on a GPU and on a CPU with instructions for it, else float32."""
    fast = device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bfloat16" if fast else "float32"


def trainable_config(spec: str | ModelConfig | None) -> ModelConfig:
    """The configuration of a model that is to be trained; nothing is loaded.

    Raises:
        BadInputError: `spec` names a server, or an adapter.
        ModelNotFoundError: it names a configuration that is not there.
    """
    config = spec if isinstance(spec, ModelConfig) else parse(spec or EMBEDDED)
    if config.remote:
        raise BadInputError(f"{config.model} is a server: it cannot be trained from here; name a folder")
    if config.adapter is not None:
        raise BadInputError("adapter: merge it into the model first; training lays its own over the base")
    return config


def _weights_folder(config: ModelConfig) -> Path:
    if config.model == EMBEDDED or Path(config.model).suffix.lower() == ".gguf":
        return gguf.weights_folder(gguf.find(config.model))
    return Path(config.model).expanduser()


def _with_lora(network: Any, settings: LoraSettings, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers by old names
        torch.manual_seed(seed)
        return get_peft_model(network, config, autocast_adapter_dtype=False)


def _with_adapter(network: Any, folder: Path) -> Any:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(
                network, str(folder), is_trainable=False, autocast_adapter_dtype=False
            )
    except Exception as error:
        raise ModelError(f"cannot load the adapter {folder}: {type(error).__name__}: {error}") from error


def _end(codec: Codec) -> int:
    if codec.end is None:
        raise ModelError("the model's tokenizer has no token that ends a text: nothing can be learnt to stop")
    return codec.end


def keep_memory() -> None:
    """Have glibc keep what is freed, and take large blocks from what it has kept: training 1.3 times as fast.

    Else every large tensor is handed out by the system anew, page by page. Other systems are left alone.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    limit = 2**31 - 1
    libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: bytes from which a block is the system's own
    libc.mallopt(-1, limit)  # M_TRIM_THRESHOLD: what is free at the top stays ours
    libc.mallopt(-2, 2**28)  # M_TOP_PAD
