"""A weight in NF4 with double quantization as bitsandbytes holds it, of tensors without content."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from bitsandbytes.functional import QuantState

BLOCK = 64
SCALES_BLOCK = 256


def empty_nf4(
    shape: Sequence[int], dtype: torch.dtype
) -> tuple[torch.Tensor, QuantState, list[torch.Tensor]]:
    """The packed weight, what tells how to unpack it to `dtype`, and all tensors in that."""
    count = torch.Size(shape).numel()
    blocks = count // BLOCK

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="cpu")

    outer = QuantState(
        absmax=empty(-(-blocks // SCALES_BLOCK)), blocksize=SCALES_BLOCK, code=empty(256), dtype=torch.float32
    )
    state = QuantState(
        absmax=empty(blocks, dtype=torch.uint8),
        shape=torch.Size(shape),
        code=empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=empty(),
        state2=outer,
    )
    held = [state.absmax, state.code, state.offset, outer.absmax, outer.code]
    return empty(count // 2, 1, dtype=torch.uint8), state, held
