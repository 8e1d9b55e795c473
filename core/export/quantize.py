"""The number formats of a GGUF: float32 rows to bytes, bit for bit as ggml does it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gguf
import numpy as np
from numpy.typing import NDArray

from ollama_tune.core.export.ggml import quantizer

if TYPE_CHECKING:
    import torch

Encode = Callable[["torch.Tensor"], "torch.Tensor"]
Q8_BLOCK = 32
K_BLOCK = 256


@dataclass(frozen=True)
class TensorType:
    """One format: `block` numbers become `bytes` bytes. `encode` takes float32 (rows, columns).

    `error` is the relative RMS error that rounding to this format costs on Gaussian weights (measured), and
    `largest` the largest number it can hold. Where `encode` is None, ggml's quantizer does it.
    """

    name: str
    ggml: gguf.GGMLQuantizationType
    block: int
    bytes: int
    error: float
    largest: float
    encode: Encode | None = None

    def size(self, rows: int, columns: int) -> int:
        """Bytes of so many rows."""
        return rows * columns // self.block * self.bytes


def _bytes(values: torch.Tensor) -> torch.Tensor:
    import torch

    return values.contiguous().view(torch.uint8)


def encode_q8_0(rows: torch.Tensor) -> torch.Tensor:
    """Blocks of 32: scale d = max|x| / 127 as float16, then x / d rounded half away from zero as int8."""
    import torch

    blocks = rows.reshape(-1, Q8_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = blocks * torch.where(scale == 0, 0.0, 1.0 / scale)
    whole = scaled.trunc()
    rounded = scaled.sub_(whole).mul_(2).trunc_().add_(whole)
    out = torch.empty(len(blocks), 2 + Q8_BLOCK, dtype=torch.uint8)
    out[:, :2] = _bytes(scale.half())
    out[:, 2:] = _bytes(rounded.to(torch.int8))
    return out


_Q = gguf.GGMLQuantizationType
F16_LARGEST = 65504.0
TYPES: Mapping[str, TensorType] = {
    kind.name: kind
    for kind in (
        TensorType("f32", _Q.F32, 1, 4, 1e-7, 3.4e38, _bytes),
        TensorType("f16", _Q.F16, 1, 2, 0.00021, F16_LARGEST, lambda rows: _bytes(rows.half())),
        TensorType("bf16", _Q.BF16, 1, 2, 0.0017, 3.38e38, lambda rows: _bytes(rows.bfloat16())),
        TensorType("q8_0", _Q.Q8_0, Q8_BLOCK, 34, 0.0053, 127 * F16_LARGEST, encode_q8_0),
        TensorType("q4_0", _Q.Q4_0, 32, 18, 0.086, F16_LARGEST),
        TensorType("q4_1", _Q.Q4_1, 32, 20, 0.0785, F16_LARGEST),
        TensorType("q5_0", _Q.Q5_0, 32, 22, 0.043, F16_LARGEST),
        TensorType("q5_1", _Q.Q5_1, 32, 24, 0.038, F16_LARGEST),
        TensorType("q4_k", _Q.Q4_K, K_BLOCK, 144, 0.071, F16_LARGEST),
        TensorType("q5_k", _Q.Q5_K, K_BLOCK, 176, 0.036, F16_LARGEST),
        TensorType("q6_k", _Q.Q6_K, K_BLOCK, 210, 0.018, F16_LARGEST),
    )
}
"""Formats of single tensors; which of them a file mixes is `ollama_tune.core.export.mix`."""


def encode(
    rows: torch.Tensor, kind: TensorType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """The bytes of float32 rows in a format; `ValueError` where a number does not fit it.

    `importance` (columns) weighs the rounding errors of the formats that ggml makes; the others round each
    number to the nearest anyway. Raises `TuneError` where ggml's quantizer is needed and not there.
    """
    lowest, highest = rows.aminmax()
    if not (float(highest) <= kind.largest and float(lowest) >= -kind.largest):
        raise ValueError(f"a number that is infinite or not a number in {kind.name}")
    if kind.encode is not None:
        return kind.encode(rows).numpy().reshape(-1)
    out = np.empty(kind.size(*rows.shape), dtype=np.uint8)
    quantizer()(int(kind.ggml), rows.contiguous().numpy(), out, importance)
    return out


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Torch on one thread a call, for callers that run calls side by side; its setting comes back after."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
