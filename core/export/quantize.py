"""The number formats of a GGUF: float32 rows to bytes, bit for bit as ggml does it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gguf
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Encode = Callable[["torch.Tensor"], "torch.Tensor"]
Q8_BLOCK = 32


@dataclass(frozen=True)
class TensorType:
    """One format: `block` numbers become `bytes` bytes. `encode` takes float32 (rows, columns).

    `error` is the relative RMS error that rounding to this format costs on Gaussian weights
    (measured); `file_type` is what `general.file_type` says.
    """

    name: str
    ggml: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType
    block: int
    bytes: int
    error: float
    encode: Encode

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
_F = gguf.LlamaFileType
TYPES: Mapping[str, TensorType] = {
    kind.name: kind
    for kind in (
        TensorType("f32", _Q.F32, _F.ALL_F32, 1, 4, 1e-7, _bytes),
        TensorType("f16", _Q.F16, _F.MOSTLY_F16, 1, 2, 0.00021, lambda rows: _bytes(rows.half())),
        TensorType("bf16", _Q.BF16, _F.MOSTLY_BF16, 1, 2, 0.0017, lambda rows: _bytes(rows.bfloat16())),
        TensorType("q8_0", _Q.Q8_0, _F.MOSTLY_Q8_0, Q8_BLOCK, 34, 0.0053, encode_q8_0),
    )
}


def type_of(shape: tuple[int, ...], kind: TensorType) -> TensorType:
    """The format of one tensor: vectors stay float32, rows that do not fill blocks become float16."""
    if len(shape) == 1:
        return TYPES["f32"]
    return kind if shape[-1] % kind.block == 0 else TYPES["f16"]


def encode(rows: torch.Tensor, kind: TensorType) -> NDArray[np.uint8]:
    """The bytes of float32 rows in a format; `ValueError` where a number does not fit it."""
    import torch

    encoded = kind.encode(rows)
    values = encoded.view(torch.float16) if kind.name == "f16" else rows
    if not bool(torch.isfinite(values.sum(dtype=torch.float32))):
        raise ValueError(f"a number that is infinite or not a number in {kind.name}")
    return encoded.numpy().reshape(-1)


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
