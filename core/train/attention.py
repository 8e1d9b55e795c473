"""Attention of rows that lie end to end, row by row: no mask over a whole sequence, nothing between rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ollama_tune.core.models.families import ARCHITECTURES
from ollama_tune.core.rounding import round_up
from ollama_tune.core.train.batches import Batch

NAME = "rows_apart"
FAR = 0.05
"""Rounding makes the states of a row differ by less than this share of their length; another row by more."""
LONG = 512
"""Tokens up to which the backward pass on the CPU holds all products of a row's queries and keys at once."""
EVEN = 32
"""Rows are laid out for it in multiples of so many tokens: each new length would be compiled anew."""


def attend_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed_rows: tuple[tuple[int, ...], ...] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Torch's SDPA; where `packed_rows` tells the lengths of each sequence's rows, once for each row.

    Query, key and value are sequences x heads x tokens x width (turning may have made float32 of the first
    two); the result is sequences x tokens x heads x width. A row longer than the layer's `sliding_window`
    gets a mask of its own. Padding attends to nothing.
    """
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    window = options.get("sliding_window") or query.shape[2]
    sequences = []
    for sequence, lengths in enumerate(packed_rows):
        states = [part[sequence, None].to(value.dtype) for part in (query, key, value)]
        if query.is_cpu and query.requires_grad and max(lengths) <= LONG and not options.get("dropout"):
            scale = options.get("scaling") or query.shape[-1] ** -0.5
            sequences.append(_RowsApart.apply(*states, lengths, scale, window))  # type: ignore[no-untyped-call]
            continue
        sizes = [*lengths, query.shape[2] - sum(lengths)]
        rows = zip(*(torch.split(part, sizes, 2) for part in states), strict=True)
        done = [
            sdpa_attention_forward(module, q, k, v, _window_mask(length, window, q.device), **options)[0]
            for (q, k, v), length in zip(rows, lengths, strict=False)
        ]
        padding = done[0].new_zeros(1, sizes[-1], *done[0].shape[2:])
        sequences.append(torch.cat([*done, padding], 1))
    return torch.cat(sequences) if len(sequences) > 1 else sequences[0], None


class _RowsApart(torch.autograd.Function):
    """The same on the CPU, with a backward pass by plain products instead of the flash kernel's.

    That takes 13 to 24 microseconds a token where this takes 4 to 11 (8 heads of 64 in bfloat16, rows of 64
    to 512 tokens, one core with AMX). Kept are query, key and value as they are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: tuple[int, ...],
        scale: float,
        window: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.lengths, ctx.scale, ctx.window = lengths, scale, window
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
        for here in _slices(lengths):
            q, k, v = (part[:, :, here] for part in (query, key, value))
            mask = _window_mask(here.stop - here.start, window, query.device)
            out[:, here] = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
            ).transpose(1, 2)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states = [tensor[0] for tensor in ctx.saved_tensors]
        found = [torch.zeros_like(part) for part in states]
        heads, (_, _, width) = len(states[1]), states[0].shape
        for here in _slices(ctx.lengths):
            parts = [*(part[:, here] for part in states), outer[0][0, here].transpose(0, 1)]
            query, key, value, gradient = (_laid(part) for part in parts)
            length = key.shape[1]
            times, own = len(states[0]) // heads, here.stop - here.start
            window = ctx.window if ctx.window < own else length
            query, gradient = (part.view(heads, times * length, -1) for part in (query, gradient))
            mask = _causal(length, times, window, query.dtype).expand(heads, -1, -1)
            shares = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=ctx.scale).softmax(-1)
            for_value = shares.transpose(1, 2) @ gradient
            inner = gradient @ value.transpose(1, 2)
            inner = torch._softmax_backward_data(inner, shares, -1, shares.dtype).mul_(ctx.scale)
            made = ((inner @ key).view(-1, length, width), inner.transpose(1, 2) @ query, for_value)
            for whole, part in zip(found, made, strict=True):
                whole[:, here] = part[:, :own]
        return (*(part[None] for part in found), None, None, None)


def _slices(lengths: Sequence[int]) -> Iterator[slice]:
    return (slice(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True))


def _laid(part: torch.Tensor) -> torch.Tensor:
    """Heads x tokens x width in memory of its own, with zeros up to an even length."""
    length = part.shape[1]
    made = part.new_empty(len(part), round_up(length, EVEN), part.shape[2])
    made[:, :length], made[:, length:] = part, 0.0
    return made


@lru_cache(maxsize=256)
def _causal(length: int, times: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to a row's products: minus infinity where a token does not see another.

    The queries of `times` heads lie one below the other.
    """
    places = torch.arange(length)
    back = places[:, None] - places
    seen = (back >= 0) & (back < window)
    return torch.zeros(length, length, dtype=dtype).masked_fill_(~seen, float("-inf")).repeat(times, 1)


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor | None:
    """Which earlier tokens each token of a long row sees; None where it sees all of them."""
    if length <= window:
        return None
    places = torch.arange(length, device=device)
    back = places[:, None] - places
    return ((back >= 0) & (back < window))[None, None]


def use_rows_apart(causal: Any) -> bool:
    """Let a model attend row by row where that is known to be right: by SDPA, in the families we know."""
    known = type(causal).__name__ in ARCHITECTURES
    if not known or causal.config._attn_implementation not in ("sdpa", NAME):
        return False
    AttentionInterface.register(NAME, attend_rows)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    causal.set_attn_implementation(NAME)
    return True


def packed_inputs(batch: Batch) -> dict[str, Any]:
    """What such a model is called with besides: the rows, and a mask that is taken as finished."""
    return {"packed_rows": batch.rows, "attention_mask": torch.empty(1, 1, 1, 1, device=batch.ids.device)}
