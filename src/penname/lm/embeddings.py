"""What a server is sent for a prompt after a soft prompt: embeddings, made here of the model's own files.

vLLM, started with `--enable-prompt-embeds`, takes them in `prompt_embeds` of /completions: the base64 of a
tensor (tokens, width) as `torch.save` writes it. Of the model nothing is read but its tokenizer and its table
of input embeddings, and of that only the rows of the prompt's tokens.
"""

from __future__ import annotations

import base64
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penname.errors import ModelError, ModelNotFoundError
from penname.lm.base import Prefix
from penname.lm.config import EMBEDDED, DType
from penname.lm.folders import check_model, end_tokens, loading
from penname.lm.libraries import quiet
from penname.lm.text import Codec
from penname.records import Prompt

if TYPE_CHECKING:
    import torch


class InputEmbeddings:
    """The tokenizer and the input embeddings of a model; each is read when it is first needed.

    Args:
        model: its folder, a GGUF file, or "smollm2-135m".
        dtype: of what is sent; None: as the table is saved. vLLM casts it to its own.

    Raises:
        ModelNotFoundError: there is no such model.
        MissingPackageError: the embedded model's package is not installed.
    """

    def __init__(self, model: str, dtype: DType | None = None) -> None:
        self._folder = _folder(model)
        self._dtype = dtype
        check_model(self._folder)

    @cached_property
    def codec(self) -> Codec:
        """Between text and token ids."""
        quiet()
        from transformers import AutoTokenizer

        with loading(self._folder):
            tokenizer = AutoTokenizer.from_pretrained(self._folder)
        return Codec(tokenizer, end_tokens(self._folder))

    @property
    def width(self) -> int:
        """Numbers of a token's embedding.

        Raises:
            ModelError: the table cannot be used; the message says why.
        """
        return int(self._table.shape[1])

    def encoded(self, prompt: Prompt, prefix: Prefix) -> str:
        """The soft prompt's rows and the prompt's own, as vLLM reads them.

        Raises:
            BadInputError: a conversation that the model's chat template refuses, or for which it has none.
            ModelError: as `width`.
        """
        import torch

        own = self._table[self.codec.prompt(prompt)]
        own = own if self._dtype is None else own.to(getattr(torch, self._dtype))
        rows = torch.cat([torch.from_numpy(prefix.rows).to(own.dtype), own])
        # vLLM reads no other form (it unpickles plain tensors only). Nothing is ever unpickled here.
        saved = BytesIO()
        torch.save(rows, saved)
        return base64.b64encode(saved.getvalue()).decode("ascii")

    @cached_property
    def _table(self) -> torch.Tensor:
        """(vocabulary, width) as saved. The file is mapped: what is not asked for is not read."""
        import torch
        from safetensors import safe_open

        names = self._names()
        for file in sorted(self._folder.glob("*.safetensors")):
            with loading(file), safe_open(file, framework="pt") as saved:
                held = set(saved.keys())
                name = next((name for name in names if name in held), None)
                table = None if name is None else saved.get_tensor(name)
            if not isinstance(table, torch.Tensor):
                continue
            if table.ndim != 2 or table.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                raise ModelError(f"{file}: {name} is no table of embeddings that can be sent: {table.dtype}")
            return table
        raise ModelNotFoundError(f"{self._folder} holds no input embeddings: none of {', '.join(names)}")

    def _names(self) -> list[str]:
        """What the table may be called in the files; the causal model's own name for it comes first."""
        quiet()
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        with loading(self._folder), torch.device("meta"):  # the modules alone, without any numbers
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self._folder))
        embed = model.get_input_embeddings()
        if type(embed) is not torch.nn.Embedding:
            raise ModelError(
                f"{self._folder}: soft prompts cannot be sent to a server of this model: its embeddings are "
                f"more than a table ({type(embed).__name__}); write with it here"
            )
        name = next(name for name, weight in model.named_parameters() if weight is embed.weight)
        return list(dict.fromkeys([name, name.removeprefix(f"{model.base_model_prefix}.")]))


def _folder(model: str) -> Path:
    if model == EMBEDDED or model.lower().endswith(".gguf"):
        from penname.lm import gguf

        return gguf.weights_folder(gguf.find(model))
    return Path(model).expanduser()
