"""Puts back what OpenVINO loses of a Q4_1 file: where the zero of each block of 32 weights lies.

In GGUF's Q4_1 a weight is `scale * q + least`, which is `scale * (q - zero)` with `zero = -least / scale`, a
fraction. OpenVINO GenAI rounds it to a whole number. With the embedded model this moves a token's
log-probability by 0.3 on average and costs 0.2 nats a token: what it writes and what transformers scores
would be two models. With the fractions in the graph the two agree to 0.002, at the same speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penname.errors import ModelError

Zeros = NDArray[np.float32]  # (rows, blocks in a row) of one matrix

_BLOCK_BYTES = 20  # of Q4_1: scale and least as float16, then 32 weights of 4 bits
_AGREE = 0.99  # part of the rounded zeros that must be the same; only ties between two whole numbers differ


def restore(graph: Path, reader: Any, target: Path) -> None:
    """Write the OpenVINO graph `graph` to `target`, with the zeros of the GGUF file behind `reader`.

    Matrices of other types than Q4_1 stay as they are.

    Raises:
        ModelError: a Q4_1 matrix has no counterpart in the graph; other versions may build another one.
    """
    import openvino  # type: ignore[import-untyped]
    from openvino import opset13

    model = openvino.Core().read_model(graph)
    inputs = list(_zero_inputs(model))
    for tensor in reader.tensors:
        if tensor.tensor_type.name != "Q4_1":
            continue
        found = next(_matches(tensor, reader, inputs), None)
        if found is None:
            raise ModelError(f"OpenVINO's graph does not hold {tensor.name} of the GGUF file as expected")
        at, zeros = found
        subtracted, _ = inputs.pop(at)
        exact = opset13.constant(zeros.astype(np.float16)[:, :, None])
        subtracted.replace_source_output(exact.output(0))
    openvino.save_model(model, target, compress_to_fp16=False)


def _zero_inputs(model: Any) -> Iterator[tuple[Any, NDArray[np.uint8]]]:
    """Each input of the graph that subtracts 4-bit zeros, and these zeros, (rows, blocks)."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Subtract":
            continue
        source = node.input_value(1).get_node()
        constant = source.input_value(0).get_node() if source.get_type_name() == "Convert" else source
        if constant.get_type_name() == "Constant" and constant.get_element_type().get_type_name() == "u4":
            packed = np.frombuffer(constant.get_data().tobytes(), dtype=np.uint8)
            rows, blocks = list(constant.shape)[:2]
            yield node.input(1), np.stack([packed & 15, packed >> 4], axis=1).reshape(rows, blocks)


def _matches(
    tensor: Any, reader: Any, inputs: list[tuple[Any, NDArray[np.uint8]]]
) -> Iterator[tuple[int, Zeros]]:
    """Where in `inputs` the zeros of a matrix are, known by their rounded values; the names are lost."""
    for zeros in _row_orders(_zeros(tensor), tensor.name, reader):
        rounded = zeros.round().clip(0, 15).astype(np.uint8)
        for at, (_, held) in enumerate(inputs):
            if held.shape == rounded.shape and np.mean(held == rounded) > _AGREE:
                yield at, zeros


def _zeros(tensor: Any) -> Zeros:
    blocks = np.asarray(tensor.data).reshape(-1, _BLOCK_BYTES)
    scale, least = blocks[:, :4].copy().view(np.float16).astype(np.float32).T
    zeros: Zeros = -least / np.where(scale == 0, 1, scale)
    return zeros.reshape(int(tensor.shape[1]), -1)


def _row_orders(zeros: Zeros, name: str, reader: Any) -> Iterator[Zeros]:
    """The matrix as it lies in the file; for queries and keys also as OpenVINO lays it, a head in halves."""
    yield zeros
    kind = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(name.split(".")[-2])
    if kind is not None:
        architecture = reader.fields["general.architecture"].contents()
        heads = int(reader.fields[f"{architecture}.attention.{kind}"].contents())
        pairs = zeros.reshape(heads, len(zeros) // heads // 2, 2, -1)
        yield pairs.swapaxes(1, 2).reshape(zeros.shape)
