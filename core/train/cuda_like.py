"""Lets a step on fake CPU tensors allocate what it would allocate on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers import AttentionInterface, masking_utils

from ollama_tune.core.plan.layer_walk import FLASH_WIDTH
from ollama_tune.core.train import loss

FLASH = "fused_without_mask"
"""The name under which transformers knows our FlashAttention; a name with "flash" is for its packages."""

_autocast_enabled = torch.is_autocast_enabled


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` (rows, heads, tokens, width) by the kernel a GPU would pick.

    Without a mask that is flash attention in 16 bit; else the memory-efficient kernel, which takes the
    mask in the numbers' own format but no grouped heads. Those are then left to plain products.
    """
    if _autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    short = query.dtype != torch.float32
    if attn_mask is None and short and query.shape[-1] <= FLASH_WIDTH:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        found = flash(query, key, value, dropout_p, is_causal, False, scale=scale)
        return cast(torch.Tensor, found[0])
    if enable_gqa:
        math = torch.ops.aten._scaled_dot_product_attention_math
        found = math(query, key, value, None, dropout_p, is_causal, scale=scale, enable_gqa=True)
        return cast(torch.Tensor, found[0])
    bias = None
    if attn_mask is not None:
        bias = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
        bias = bias.expand(query.shape[0], query.shape[1], -1, -1)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    found = efficient(query, key, value, bias, True, dropout_p, is_causal, scale=scale)
    return cast(torch.Tensor, found[0])


def _flash(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_options: Any,
) -> tuple[torch.Tensor, None]:
    """FlashAttention as transformers calls it: the result is rows, tokens, heads, width."""
    grouped = query.shape[1] != key.shape[1]
    out = attention(query, key, value, None, dropout, True, scaling, grouped)
    return out.transpose(1, 2).contiguous(), None


def _no_mask(*_args: Any, **_options: Any) -> None:
    return None


AttentionInterface.register(FLASH, _flash)
masking_utils.AttentionMaskInterface.register(FLASH, _no_mask)


def dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """`functional.dropout` with the footprint it has on a GPU: the result and one byte of mask an element."""
    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


def _positions(hidden: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`loss.supervised_positions` when every token is trained; fake marks cannot be counted."""
    count = batch.ids.shape[0] * (batch.ids.shape[1] - 1)
    rows, columns = (torch.zeros(count, dtype=torch.long, device=hidden.device) for _ in range(2))
    return hidden[rows, columns], batch.ids[rows, columns + 1]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def cuda_like(*, padded: bool) -> Iterator[None]:
    """Inside, torch and transformers take the ways they take on a GPU with real tensors.

    Without padding transformers must not build a mask; with it, it must, without reading the marks. Peft
    asks whether the GPU's autocast is on.
    """
    functional = torch.nn.functional
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (functional, "scaled_dot_product_attention", attention),
            (functional, "dropout", dropout),
            (masking_utils, "find_packed_sequence_indices", lambda *_: None),
            (masking_utils, "is_tracing", lambda *_: padded),
            (torch, "is_autocast_enabled", lambda _device="cpu": _autocast_enabled("cpu")),
            (loss, "supervised_positions", _positions),
        ):
            stack.enter_context(_replaced(owner, name, value))
        yield
