"""vLLM's completions, imitated for tests: how it takes embeddings, on a small model that is really run.

After its `entrypoints/openai/completion`, `renderers/embed_utils.py` and `v1/engine/output_processor.py`.
"""

from __future__ import annotations

import base64
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from model_server import Reply, error, events
from penname.lm.libraries import quiet
from penname.lm.stops import stop_at

BASE, LORA = "the-base", "mine"  # served names
_UNFINISHED = "\ufffd"


class RefusedError(Exception):
    """A request that vLLM answers with 400."""


class VLLM:
    """A server of the model in `base` and, by a name of its own, of an adapter over it.

    Args:
        enabled: whether it was started with `--enable-prompt-embeds`.
        width: the hidden size that it claims; the model's own where None.
    """

    def __init__(
        self, base: Path, adapter: Path | None = None, *, enabled: bool = True, width: int | None = None
    ) -> None:
        quiet()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.enabled = enabled
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.models: dict[str, Any] = {BASE: AutoModelForCausalLM.from_pretrained(base).eval()}
        self.length = self.models[BASE].config.max_position_embeddings
        self.width = width or self.models[BASE].config.hidden_size
        if adapter is not None:
            from peft import PeftModel

            under: Any = AutoModelForCausalLM.from_pretrained(base)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
                self.models[LORA] = PeftModel.from_pretrained(under, str(adapter)).eval()

    def __call__(self, path: str, body: dict[str, Any]) -> Reply:
        if path == "/models":
            return Reply({"object": "list", "data": [self._card(name) for name in self.models]})
        if body["model"] not in self.models:
            return error(404, f"The model `{body['model']}` does not exist.", type="NotFoundError")
        try:
            prompts = self._prompts(path, body)
            return self._streamed(prompts, body) if body.get("stream") else self._whole(prompts, body)
        except RefusedError as why:
            return error(400, str(why), type="BadRequestError")

    def _card(self, name: str) -> dict[str, Any]:
        adapter = name == LORA
        told = None if adapter else self.length
        parent = BASE if adapter else None
        return {
            "id": name,
            "object": "model",
            "owned_by": "vllm",
            "parent": parent,
            "max_model_len": told,
        }

    def _prompts(self, path: str, body: dict[str, Any]) -> list[torch.Tensor]:
        """(tokens, width) of each prompt: those that came as embeddings before those that came as text."""
        embed = self.models[BASE].get_input_embeddings()
        if path == "/chat/completions":
            ids = self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)
            found = [embed(torch.tensor(ids["input_ids"]))]
        else:
            if not body.get("prompt") and not body.get("prompt_embeds"):
                raise RefusedError("Either prompt or prompt_embeds must be provided and non-empty.")
            if body.get("echo") and body.get("prompt_embeds"):
                raise RefusedError("Echo is unsupported with prompt embeds.")
            sent = body.get("prompt_embeds") or []
            found = [self._decoded(one) for one in ([sent] if isinstance(sent, str) else sent)]
            if body.get("prompt") is not None:  # even an empty one
                found.append(embed(torch.tensor(self.tokenizer(body["prompt"])["input_ids"])))
        for one in found:
            if len(one) + body["max_tokens"] > self.length:
                raise RefusedError(
                    f"This model's maximum context length is {self.length} tokens. However, you requested "
                    f"{body['max_tokens']} output tokens and your prompt contains {len(one)} input tokens."
                )
        return found

    def _decoded(self, sent: str) -> torch.Tensor:
        if not self.enabled:
            raise RefusedError("You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        read = torch.load(BytesIO(base64.b64decode(sent, validate=True)), weights_only=True)
        assert isinstance(read, torch.Tensor)
        if read.dim() != 2:
            raise RefusedError("`prompt_embeds` must be a 2D tensor of shape (num_tokens, hidden_size).")
        if read.shape[1] != self.width:
            raise RefusedError(
                f"`prompt_embeds` hidden_size {read.shape[1]} does not match the model's hidden_size "
                f"{self.width}."
            )
        assert read.is_floating_point()
        return read.to(self.models[BASE].dtype)

    def _whole(self, prompts: list[torch.Tensor], body: dict[str, Any]) -> Reply:
        choices, tokens = [], 0
        for prompt in prompts:
            for number in range(body.get("n", 1)):
                text, finish, ids = self._written(prompt, body, number)
                tokens += len(ids)
                choice = {"index": len(choices), "finish_reason": finish}
                message = {"role": "assistant", "content": text}
                choices.append(choice | ({"message": message} if "messages" in body else {"text": text}))
        return Reply({"id": "cmpl-1", "choices": choices, "usage": self._usage(prompts, tokens)})

    def _streamed(self, prompts: list[torch.Tensor], body: dict[str, Any]) -> Reply:
        [prompt] = prompts
        text, finish, ids = self._written(prompt, body, 0)
        asked = body.get("stream_options", {})
        every = {"usage": self._usage(prompts, 1)} if asked.get("continuous_usage_stats") else {}
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "text": piece, "finish_reason": None}]} | every for piece in text
        ]
        chunks.append({"choices": [{"index": 0, "text": "", "finish_reason": finish}]} | every)
        if asked.get("include_usage"):
            chunks.append({"choices": [], "usage": self._usage(prompts, len(ids))})
        return events(*chunks)

    def _usage(self, prompts: list[torch.Tensor], tokens: int) -> dict[str, int]:
        read = sum(map(len, prompts))
        return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}

    @torch.inference_mode()
    def _written(self, prompt: torch.Tensor, body: dict[str, Any], number: int) -> tuple[str, str, list[int]]:
        """Text, why it ended, and its tokens; read anew for each of them."""
        model = self.models[body["model"]]
        chance = torch.Generator().manual_seed(body.get("seed", 0) + number)
        ends = {self.tokenizer.eos_token_id, *body.get("stop_token_ids", ())}
        rows, ids = prompt, list[int]()
        while True:
            logits = model(inputs_embeds=rows[None]).logits[0, -1]
            ids.append(self._drawn(logits, body["temperature"], chance))
            text = self.tokenizer.decode(ids, skip_special_tokens=True).rstrip(_UNFINISHED)
            end = stop_at(text, body.get("stop", ()))
            if ids[-1] in ends or end < len(text):
                return text[:end], "stop", ids
            if len(ids) == body["max_tokens"]:
                return text, "length", ids
            rows = torch.cat([rows, model.get_input_embeddings()(torch.tensor(ids[-1:]))])

    def _drawn(self, logits: torch.Tensor, temperature: float, chance: torch.Generator) -> int:
        if temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=chance))
