"""A causal model as transformers runs it: token ids go in, logits and what is kept of them come out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penname.lm.batches import Limits
from penname.lm.config import DType
from penname.lm.decoding import Decoding, can_write
from penname.lm.folders import loading
from penname.lm.libraries import quiet
from penname.lm.prefixes import FIRST, SoftPrompts
from penname.lm.rollout import Repeated

# A step of 128 texts takes little longer than one of 32: the weights are read once for all. 256 MB of logits.
_CPU = Limits(rows=128, tokens=32_768, logits=64_000_000, kept=32_768)
# Scoring on a CPU, 4,000 tokens keep it as busy as 10,000, whose buffers the system hands out anew for every
# layer, and that took more than half of the time.
_CPU_SCORES = replace(_CPU, rows=64, tokens=4_096)
# Keeps a GPU busy, in some 10 GB.
_GPU = Limits(rows=256, tokens=262_144, logits=1_000_000_000, kept=262_144)


class Network:
    """The weights in a folder, loaded when they are first needed.

    Args:
        adapter: a folder of peft's, or None.
        dtype: None is bfloat16 on a GPU and on a CPU with instructions for it, else float32.
        device: None is a GPU if there is one.
        vocabulary: numbers that one token's logits take, for the size of batches.
    """

    def __init__(
        self, folder: Path, adapter: Path | None, dtype: DType | None, device: str | None, vocabulary: int
    ) -> None:
        self._folder = folder
        self._adapter = adapter
        self._dtype = dtype
        self._asked_device = device
        self.vocabulary = vocabulary

    @property
    def limits(self) -> Limits:
        """What a batch may hold that is written."""
        return _CPU if self.device == "cpu" else _GPU

    @property
    def score_limits(self) -> Limits:
        """What a batch may hold that is only read."""
        return _CPU_SCORES if self.device == "cpu" else _GPU

    @cached_property
    def device(self) -> str:
        """Where it runs, as torch names it."""
        return self._asked_device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def model(self) -> Any:
        """The model; with peft around it where there is an adapter that cannot be added to the weights."""
        return self._loaded[0]

    @property
    def inner(self) -> Any:
        """The causal model, out of what peft may have put around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @cached_property
    def can_share(self) -> bool:
        """Whether rows of what the model keeps of a text can be repeated, and read on from.

        Not so with recurrent layers: transformers' `batch_select_indices` leaves their states as they are, or
        is not there. Nor with adapters that put tokens of their own before each reading. So we look at what
        one token leaves behind.
        """
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        with torch.inference_mode():
            _, kept = self.forward(*self.pad([[0]]), keep=1)
        plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in kept.layers)
        return plain and kept.get_seq_length() == 1

    @cached_property
    def plain(self) -> bool:
        """Whether `Decoding` writes with this model what its plain reading writes; looked at once.

        Where it does not, `Repeated` is what writes: a property of the model, known before the first text.
        """
        return self.can_share and can_write(self.inner, self.pad, self.forward)

    def pad(self, rows: Sequence[Sequence[int]], *, left: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, (rows, longest), padded on the left or the right.

        The mask is made of lengths, not of ids: padding and end token are often one id.
        """
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            start = longest - len(row) if left else 0
            ids[i, start : start + len(row)] = torch.tensor(row)
            mask[i, start : start + len(row)] = 1
        return ids.to(self.device), mask.to(self.device)

    def forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Any = None,
        *,
        keep: int,
        soft: SoftPrompts | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """Logits (rows, `keep`, vocabulary) of the last `keep` tokens, and the cache of keys and values.

        Args:
            ids: (rows, tokens), those that are read now.
            mask: (rows, tokens kept and read), 0 where it is padding.
            cache: of what was read before.
            soft: given where `ids` may hold rows of soft prompts.
        """
        model, takes = self._loaded
        options: dict[str, Any] = {"input_ids": ids}
        if soft is not None and soft.rows is not None:
            options = {"inputs_embeds": _embedded(model.get_input_embeddings(), ids, soft.rows)}
        if "position_ids" in takes:
            options["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in takes:
            options["logits_to_keep"] = keep
        output = model(attention_mask=mask, past_key_values=cache, use_cache=True, **options)
        return output.logits[:, -keep:], output.past_key_values

    def reading(self, cache: Any, mask: torch.Tensor, origin: list[int], most: int) -> Decoding | Repeated:
        """What writes after prompts that have been read; arguments as those of `Decoding`."""
        if self.plain:
            return Decoding(self.inner, cache, mask, origin, most)
        return Repeated(self.forward, cache, mask, origin)

    @cached_property
    def _loaded(self) -> tuple[Any, frozenset[str]]:
        """The model, and the names of what its `forward` takes."""
        quiet()
        from transformers import AutoModelForCausalLM

        fast = self.device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
        dtype = self._dtype or ("bfloat16" if fast else "float32")
        with loading(self._folder):
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._folder, dtype=getattr(torch, dtype), use_safetensors=True
            )
        takes = frozenset(inspect.signature(model.forward).parameters)
        if self._adapter is not None:
            from peft import PeftModel

            with loading(self._adapter), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
                model = PeftModel.from_pretrained(model, str(self._adapter))
                if model.active_peft_config.peft_type == "LORA":
                    # Added to the weights: beside them it takes up to a third of the time again. In
                    # bfloat16 both are as far from float32.
                    model = model.merge_and_unload()
        with loading(self._folder):
            model = model.to(self.device)
        if (head := model.get_output_embeddings()) is not None:
            head.register_forward_pre_hook(_packed)
        return model.eval(), takes


def _packed(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The last tokens' states with nothing between the rows.

    For states cut out of longer ones torch would copy a head whose weights are frozen, as they are where
    there is an adapter, and for every row: that took two thirds of reading a prompt.
    """
    states, *rest = args
    return states.clone(memory_format=torch.contiguous_format), *rest


def _embedded(embed: Any, ids: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """What the model reads for (n, tokens) ids: its own embeddings, and those of soft prompts as they are."""
    soft = ids >= FIRST
    read: torch.Tensor = embed(ids.masked_fill(soft, 0))
    read[soft] = torch.from_numpy(rows).to(read)[ids[soft] - FIRST]
    return read
