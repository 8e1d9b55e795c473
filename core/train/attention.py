"""Attention of packed sequences, row by row: no mask over a whole sequence, nothing computed between rows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ollama_tune.core.models.families import ARCHITECTURES
from ollama_tune.core.train.batches import Batch

NAME = "rows_apart"
FAR = 0.05
"""Rounding makes the states of a row differ by less than this share of their length; another row by more."""


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

    Query, key and value are sequences x heads x tokens x width; the result is sequences x tokens x heads x
    width. A row longer than the layer's `sliding_window` gets a mask of its own. Padding attends to nothing.
    """
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    window = options.get("sliding_window") or query.shape[2]
    sequences = []
    for sequence, lengths in enumerate(packed_rows):
        sizes = [*lengths, query.shape[2] - sum(lengths)]
        parts = (torch.split(states[sequence, None], sizes, 2) for states in (query, key, value))
        rows = zip(*parts, strict=True)
        done = [
            sdpa_attention_forward(module, q, k, v, _window_mask(length, window, q.device), **options)[0]
            for (q, k, v), length in zip(rows, lengths, strict=False)
        ]
        padding = done[0].new_zeros(1, sizes[-1], *done[0].shape[2:])
        sequences.append(torch.cat([*done, padding], 1))
    return torch.cat(sequences), None


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
