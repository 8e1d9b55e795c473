"""What operators allocate besides their results on a GPU, as bytes alive while they run.

A trace sees an operator's results only. The sizes follow from the kernels' own code; `x^n` is x rounded
up to a multiple of n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ollama_tune.core.rounding import round_up

CUBLAS = 4096 * 1024 * 2 + 16 * 1024 * 8
"""cuBLAS' workspace of one thread and stream; a training step has two (forward, backward)."""
CUBLAS_HOPPER = 4096 * 1024 * 8


class _Counts(Protocol):
    def allocate(self, size: int, part: str | None = None) -> int: ...


def hold_workspaces(trace: _Counts, hopper: bool) -> None:
    """Count cuBLAS' workspaces of the forward and of the backward thread."""
    for _ in range(2):
        trace.allocate(CUBLAS_HOPPER if hopper else CUBLAS, "workspaces")


_MAY_ALLOCATE = (
    "attention",
    "conv",
    "cudnn",
    "fft",
    "grouped_mm",
    "linalg",
    "rnn",
    "scaled_mm",
    "sort",
    "topk",
    "unique",
)


def _flash_backward(args: tuple[Any, ...]) -> list[int]:
    """Gradient of the queries in fp32, softmax sums, and with grouped heads keys and values of all heads."""
    query, key = args[1], args[2]
    rows, heads, tokens, width = query.shape
    padded = round_up(tokens, 128)
    accumulated = rows * heads * padded * (256 if width > 128 else round_up(width, 32)) * 4
    found = [accumulated, rows * heads * padded * 4]
    if key.shape[1] != heads:
        found += [rows * key.shape[2] * heads * width * query.element_size()] * 2
    return found


def _efficient_backward(args: tuple[Any, ...]) -> list[int]:
    query, key = args[1], args[2]
    rows, heads, tokens, width = query.shape
    found = [rows * heads * tokens * 4, rows * heads * round_up(tokens, 128) * round_up(width, 64) * 4]
    if width > 128:
        found += [rows * heads * round_up(key.shape[2], 128) * round_up(width, 64) * 4] * 2
    return found


def _gemm_4bit(args: tuple[Any, ...]) -> list[int]:
    """The weight in 16 bit; with double quantization its scales twice in fp32. Small batches need none."""
    weights = int(args[2][0]) * int(args[2][1])
    return [weights * args[0].element_size(), weights // 64 * 4, weights // 64 * 4]


def _sorted_indices(position: int) -> Callable[[tuple[Any, ...]], list[int]]:
    """Adding rows by index sorts the indices first: the keys, their order, and both sorted (int64)."""

    def count(args: tuple[Any, ...]) -> list[int]:
        indices = args[position]
        tensors = indices if isinstance(indices, (list, tuple)) else [indices]
        most = max((tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor)), default=0)
        return [8 * most] * 4

    return count


_TABLE: dict[str, Callable[[tuple[Any, ...]], list[int]]] = {
    "aten._scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten._scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "bitsandbytes.gemm_4bit": _gemm_4bit,
    "aten._index_put_impl_": _sorted_indices(1),
    "aten.index_put_": _sorted_indices(1),
    "aten.index_put": _sorted_indices(1),
    "aten.embedding_dense_backward": _sorted_indices(1),
}
_WITHOUT = {
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten.linalg_vector_norm",
}
"""Kernels that write their results only."""
_NAMESPACES = ("aten.", "prim", "bitsandbytes.", "profiler.", "inductor.")


def workspaces(name: str, args: tuple[Any, ...]) -> list[int]:
    """Bytes of each temporary of the operator `name` (as in `aten.index_put_`) for these arguments."""
    rule = _TABLE.get(name)
    return rule(args) if rule else []


def is_suspicious(name: str) -> bool:
    """Whether an operator may need temporaries that are not known here."""
    if name in _TABLE or name in _WITHOUT:
        return False
    return not name.startswith(_NAMESPACES) or any(word in name for word in _MAY_ALLOCATE)
