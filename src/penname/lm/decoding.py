"""Writing many texts after few prompts: keys and values of a prompt are held once for all of its texts.

Each text has room for its own tokens' keys and values from the start, so that a step copies nothing. What a
new token sees, its prompt and its own text, are two attentions, joined by the sums of their exponentials. The
queries of all texts of a prompt go through the prompt's keys together: one matrix product a head, where
one text at a time would read the whole prompt again.

Texts may join while others are written. Every step fills one column of all texts: those of a newcomer begin
at the present one, and a bias hides from it what lies before. When all older texts have left, the columns
that nobody sees are given up.

The rest of a step is the model's own forward pass over one token a text. It works with any model of
transformers whose layers all see the whole text through its attention interface and keep nothing else from
token to token; `Decoding` is only made for models that `TransformersLM` has found to be so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from penname.lm.rollout import filled

NAME = "penname_texts"
# Room for newcomers grows by so much at once: each growth moves all that is kept.
_ROWS, _COLUMNS = 8, 128
_NOT_PLAIN = ("softcap", "s_aux", "sliding_window")  # what transformers asks of an attention besides


class NotPlainError(Exception):
    """A model's attention does what is not done here."""


@dataclass
class _Layer:
    """What one layer keeps; `heads` are those of keys, perhaps fewer than those of queries.

    prompt_keys, prompt_values: (prompts, heads, longest prompt, width), padded on the left.
    keys, values: (texts, heads, columns, width). All may have rows to spare at the end.
    """

    prompt_keys: torch.Tensor
    prompt_values: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class Decoding:
    """Texts that are being written after prompts that have been read.

    Args:
        model: the causal model, prepared by `prepare`.
        cache: what transformers kept of the prompts, one row for each.
        mask: (prompts, longest), 0 where a prompt is padded, on the left.
        origin: for each text the prompt that it follows.
        most: tokens of a text at most.
    """

    def __init__(self, model: Any, cache: Any, mask: torch.Tensor, origin: Sequence[int], most: int) -> None:
        self._model = model
        self._origin = list(origin)
        self._begins = [0] * len(origin)  # the column of each text's first token
        self.written = 0
        """Columns whose keys and values are kept: of a text that began in the first, as many tokens."""
        self.layers = [_room(layer.keys, layer.values, len(origin), most) for layer in cache.layers]
        self.lengths: list[int] = mask.sum(dim=1).tolist()
        """Tokens of each prompt that is kept: where the positions of its texts begin."""
        self._arrange()

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (texts, vocabulary) of what follows `tokens` (texts,), the next token of each text."""
        output = self._model(
            input_ids=tokens[:, None],
            position_ids=(self._starts + self.written)[:, None],
            attention_mask=self._seen,
            use_cache=False,
            decoding=self,
        )
        self.written += 1
        logits: torch.Tensor = output.logits
        return logits[:, -1]

    def keep(self, order: Sequence[int]) -> None:
        """Go on with these texts alone; one that stays where it is costs nothing.

        Args:
            order: the texts that stay, in their new order; each is moved to its place or one before it.
        """
        for layer in self.layers:
            for to, text in enumerate(order):
                if to != text:
                    for kept in (layer.keys, layer.values):
                        kept[to, :, : self.written] = kept[text, :, : self.written]
        self._origin = [self._origin[text] for text in order]
        self._begins = [self._begins[text] for text in order]
        self._leave()
        self._shift()
        self._arrange()

    def join(self, cache: Any, mask: torch.Tensor, origin: Sequence[int], most: int) -> None:
        """Write more texts too, after more prompts that have been read. Arguments as those of the class."""
        prompts, texts = len(self.lengths), len(self._origin)
        self._origin += [prompts + at for at in origin]
        self._begins += [self.written] * len(origin)
        self.lengths += mask.sum(dim=1).tolist()
        longest, room = max(self.lengths), self.written + most
        for layer, new in zip(self.layers, cache.layers, strict=True):
            layer.prompt_keys = _with_prompts(layer.prompt_keys, prompts, new.keys, longest)
            layer.prompt_values = _with_prompts(layer.prompt_values, prompts, new.values, longest)
            layer.keys = _with_texts(layer.keys, texts, len(origin), self.written, room)
            layer.values = _with_texts(layer.values, texts, len(origin), self.written, room)
        self._arrange()

    def mix(
        self, layer: _Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """(texts, heads, width): what each text's new token takes from all that it sees.

        `query` is (texts, heads, width); `key` and `value` are (texts, heads of keys, width).
        """
        texts, heads = key.shape[:2]
        prompts = len(self.lengths)
        end = self.written + 1
        layer.keys[:texts, :, end - 1] = key
        layer.values[:texts, :, end - 1] = value
        # Heads that share their keys are further queries.
        query = query.reshape(texts, heads, -1, query.shape[-1])
        hidden = None if self._hidden is None else self._hidden[..., :end]
        own, own_sum = _attend(
            query, layer.keys[:texts, :, :end], layer.values[:texts, :, :end], hidden, scale
        )
        # (prompts, texts of a prompt, …) to (prompts, heads, all queries, width), and back
        asked = query if self._even else query[self._grid]
        asked = asked.view(prompts, -1, *query.shape[1:]).transpose(1, 2)
        found, sums = _attend(
            asked.flatten(2, 3),
            layer.prompt_keys[:prompts],
            layer.prompt_values[:prompts],
            self._padding,
            scale,
        )
        shape = asked.shape[:-1]
        read = self._texts(found.reshape(*shape, -1).transpose(1, 2))
        share = (self._texts(sums.reshape(shape).transpose(1, 2)) - own_sum).sigmoid()
        return torch.lerp(own, read, share[..., None].to(own.dtype)).flatten(1, 2)

    def _texts(self, grid: torch.Tensor) -> torch.Tensor:
        """(texts, …) of what lies as (prompts, texts of a prompt, …)."""
        return grid.flatten(0, 1) if self._even else grid[self._place, self._column]

    def _leave(self) -> None:
        """Prompts of which no text is left make room for the last ones."""
        staying = sorted(set(self._origin))
        if len(staying) == len(self.lengths):
            return
        order = filled(staying)
        for layer in self.layers:
            for to, prompt in enumerate(order):
                if to != prompt:
                    for kept in (layer.prompt_keys, layer.prompt_values):
                        kept[to] = kept[prompt]
        self.lengths = [self.lengths[prompt] for prompt in order]
        self._origin = [order.index(prompt) for prompt in self._origin]

    def _shift(self) -> None:
        """Give up the columns that no text sees any more."""
        first, texts = min(self._begins), len(self._begins)
        if not first:
            return
        for layer in self.layers:
            for kept in (layer.keys, layer.values):
                kept[:texts, :, : self.written - first] = kept[:texts, :, first : self.written].clone()
        self.written -= first
        self._begins = [begin - first for begin in self._begins]

    def _arrange(self) -> None:
        """Lay the texts out by their prompts: a row of the grid for each, as long as the longest needs."""
        device = self.layers[0].keys.device
        texts: list[list[int]] = [[] for _ in self.lengths]
        column = []
        for text, prompt in enumerate(self._origin):
            column.append(len(texts[prompt]))
            texts[prompt].append(text)
        widest = max(map(len, texts))
        grid = [text for row in texts for text in row + [0] * (widest - len(row))]
        self._even = grid == list(range(len(self._origin)))  # nothing has to be moved then
        self._grid = torch.tensor(grid, device=device)
        self._place = torch.tensor(self._origin, device=device)
        self._column = torch.tensor(column, device=device)
        # A token of column c stands at its text's start + c.
        lengths, begins = (torch.tensor(each, device=device) for each in (self.lengths, self._begins))
        self._starts = lengths[self._place] - begins
        columns = self.layers[0].prompt_keys.shape[2]
        self._padding = self._bias(columns - lengths, columns) if min(self.lengths) < columns else None
        columns = self.layers[0].keys.shape[2]
        self._hidden = self._bias(begins, columns) if any(self._begins) else None
        # Made by us, or the model would make one of what it thinks that each token sees.
        self._seen = torch.ones(len(self._origin), 1, 1, 1, dtype=torch.bool, device=device)

    def _bias(self, begins: torch.Tensor, columns: int) -> torch.Tensor:
        """(rows, 1, 1, columns), -inf before the column where each of the rows begins."""
        kept = self.layers[0].keys
        hidden = torch.arange(columns, device=kept.device) < begins[:, None]
        bias = torch.zeros(hidden.shape, dtype=kept.dtype, device=kept.device)
        return bias.masked_fill(hidden, float("-inf"))[:, None, None]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    decoding: Decoding | None = None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An attention function as transformers calls it; all but `Decoding.read` gets torch's own, as always.

    Raises:
        NotPlainError: in decoding, the model's attention does what is not done here.
    """
    if decoding is None:
        own: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return own
    place: Any = module.layer_idx
    if place >= len(decoding.layers) or any(others.get(name) is not None for name in _NOT_PLAIN):
        raise NotPlainError
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed = decoding.mix(decoding.layers[place], query[:, :, 0], key[:, :, 0], value[:, :, 0], scale)
    return mixed[:, None], None


def prepare(model: Any) -> bool:
    """Make `model` one that `Decoding` can use, where it reads by torch's attention; all else stays as it is.

    False where it reads by another attention, or has none that can be set.
    """
    if getattr(model.config, "_attn_implementation", None) != "sdpa" or not model._supports_attention_backend:
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def can_write(model: Any, pad: Callable[..., Any], forward: Callable[..., Any]) -> bool:
    """Whether `Decoding` writes with the causal model what its plain reading writes; prepares it if so.

    Args:
        pad: rows of ids to ids and mask, as `TransformersLM` pads them.
        forward: ids and mask to logits and the cache.
    """
    # Ids across the vocabulary: the first ones are control tokens, of extreme states in many models.
    ids = [model.get_input_embeddings().num_embeddings * place // 10 for place in range(10)]
    prompts, texts, origin = [ids[:3], ids[3:5]], [ids[5:7], ids[6:8], ids[7:9]], [0, 1, 1]
    with torch.inference_mode():
        padded, mask = pad(prompts)
        _, cache = forward(padded, mask, keep=1)
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            return False
        whole = [prompts[at] + text for at, text in zip(origin, texts, strict=True)]
        wanted = forward(*pad(whole), keep=1)[0][:, -1].float()
        if not prepare(model):
            return False
        try:
            reading = Decoding(model, cache, mask, origin, 2)
            reading.read(padded.new_tensor([text[0] for text in texts]))
            found = reading.read(padded.new_tensor([text[1] for text in texts])).float()
        except NotPlainError:
            found = torch.full_like(wanted, torch.nan)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    alike = torch.allclose(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
    if not alike:
        model.set_attn_implementation("sdpa")
    return alike


def _room(keys: torch.Tensor, values: torch.Tensor, texts: int, most: int) -> _Layer:
    shape = texts, keys.shape[1], most
    return _Layer(
        keys, values, keys.new_empty(*shape, keys.shape[-1]), values.new_empty(*shape, values.shape[-1])
    )


def _with_prompts(kept: torch.Tensor, prompts: int, new: torch.Tensor, longest: int) -> torch.Tensor:
    """`kept`, of which the first `prompts` rows count, with the rows of `new` behind them.

    All are (rows, heads, tokens, width), padded on the left; no prompt has more than `longest` tokens.
    """
    rows = prompts + len(new)
    if rows > len(kept) or not longest <= kept.shape[2] <= 2 * longest:
        larger = kept.new_zeros(_up(rows, _ROWS), kept.shape[1], longest, kept.shape[3])
        _fill(larger[:prompts], kept[:prompts])
        kept = larger
    kept[prompts:rows] = 0  # what is hidden is multiplied by 0, and must be a number
    _fill(kept[prompts:rows], new)
    return kept


def _fill(rows: torch.Tensor, new: torch.Tensor) -> None:
    tokens = min(rows.shape[2], new.shape[2])
    rows[:, :, rows.shape[2] - tokens :] = new[:, :, new.shape[2] - tokens :]


def _with_texts(kept: torch.Tensor, texts: int, more: int, written: int, room: int) -> torch.Tensor:
    """`kept` (texts, heads, columns, width) with `more` rows, and at least `room` columns."""
    rows = texts + more
    if rows > len(kept) or room > kept.shape[2]:
        columns = max(_up(room, _COLUMNS), kept.shape[2])
        larger = kept.new_empty(_up(rows, _ROWS), kept.shape[1], columns, kept.shape[3])
        larger[:texts, :, :written] = kept[:texts, :, :written]
        kept = larger
    kept[texts:rows, :, :written] = 0  # as above
    return kept


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed values (n, heads, queries, width), and logs of sums of exponentials (n, heads, queries), float32.

    `query` is (n, heads, queries, width), `key` and `value` (n, heads, keys, width), `bias` (n, 1, 1, keys).
    """
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        # Fused: neither the scores nor their exponentials are written to memory.
        mixed, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
        return mixed, sums
    scores = torch.matmul(query * scale, key.transpose(-1, -2)).float()
    if bias is not None:
        scores += bias
    sums = scores.logsumexp(dim=-1)
    return torch.matmul(functional.softmax(scores, dim=-1).to(value.dtype), value), sums
