"""Attention of a stream by torch's own kernels, and the choice between them and explicit products.

On a GPU one call of the flash kernel with the rows' boundaries attends in all of them; where that kernel is
not there, torch's SDPA goes row by row. Whatever is chosen first gave what `RowsAttention` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn import functional

from ollama_tune.core.train.fast.attention import Row, RowsAttention, Rule, longest_row
from ollama_tune.core.train.fast.rotary import Rotary
from ollama_tune.core.train.fast.stream import Segment

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "Bounds", Rule], torch.Tensor]
"""Attends queries (tokens x heads x width) to keys and values (tokens x key heads x width)."""

CLOSE = 0.02
"""By which share of their length the results of two kernels in 16 bits may differ."""


@dataclass(frozen=True)
class Bounds:
    """Where the rows of a stream begin among its queries and among the keys they see.

    `queries` and `keys` have one number more than there are rows. `sources` are the places of those keys in
    the stream: a prefix stands before each row that has it; None where no row has one. `positions` are those
    of the tokens in their rows.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    sources: torch.Tensor | None
    positions: torch.Tensor
    starts: tuple[torch.Tensor, torch.Tensor]


@lru_cache(maxsize=4)
def bounds_of(segments: tuple[Segment, ...], device: torch.device) -> Bounds:
    """The bounds of a stream's segments; known for all layers once made."""
    before = [[] if s.prefix is None else _places(segments[s.prefix]) for s in segments]
    sources = [place for places, s in zip(before, segments, strict=True) for place in (*places, *_places(s))]
    positions = [len(places) + i for places, s in zip(before, segments, strict=True) for i in range(s.length)]
    queries = tuple(accumulate((s.length for s in segments), initial=0))
    lengths = (len(places) + s.length for places, s in zip(before, segments, strict=True))
    keys = tuple(accumulate(lengths, initial=0))
    return Bounds(
        queries,
        keys,
        torch.tensor(sources, device=device) if any(before) else None,
        torch.tensor(positions, device=device),
        (_int32(queries, device), _int32(keys, device)),
    )


def _places(segment: Segment) -> range:
    return range(segment.start, segment.start + segment.length)


def _int32(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


class Kept(list[Row]):
    """A kernel's output and inputs with autograd's graph between them, or the rows' keys and values."""

    graph: tuple[torch.Tensor, ...] = ()


@dataclass
class KernelAttention:
    """Attention by one kernel; the same calls as `RowsAttention`."""

    rule: Rule
    rotary: Rotary | None
    kernel: Kernel

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: tuple[Segment, ...],
        *,
        keep: bool,
    ) -> tuple[torch.Tensor, Kept]:
        """The output (tokens x heads * width) of states that are tokens x heads * width, not yet turned."""
        rule, bounds = self.rule, bounds_of(segments, query.device)
        whole = torch.contiguous_format
        parts = (part.reshape(len(part), -1, rule.head_dim) for part in (query, key, value))
        states = [part.clone(memory_format=whole) for part in parts]
        if self.rotary is not None:
            for part in states[:2]:
                self.rotary.turn(part, self._turns(bounds, segments))
        leaves = [part.detach().requires_grad_(keep) for part in states]
        with torch.set_grad_enabled(keep):
            places = bounds.sources
            keys, values = (p if places is None else p.index_select(0, places) for p in leaves[1:])
            out = self.kernel(leaves[0], keys, values, bounds, rule)
        kept = Kept()
        if keep:
            kept.graph = (out, *leaves)
        else:
            kept += _rows(leaves[0], keys, values, bounds)
        return out.detach().reshape(query.shape), kept

    def _turns(self, bounds: Bounds, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Cosines and sines of all tokens (tokens x 1 x width)."""
        assert self.rotary is not None
        longest = longest_row(segments)
        tables = self.rotary.tables(0, longest, 1, longest)
        return [table.index_select(0, bounds.positions)[:, None] for table in tables]

    def backward(
        self,
        gradient: torch.Tensor,
        into: Sequence[torch.Tensor],
        segments: tuple[Segment, ...],
        rows: list[Row],
    ) -> None:
        """Write the gradients of query, key and value (`into`) for that of the output; `rows` is used up."""
        assert isinstance(rows, Kept)
        out, *leaves = rows.graph
        rows.graph = ()
        found = [part.contiguous() for part in torch.autograd.grad(out, leaves, gradient.view(out.shape))]
        if self.rotary is not None:
            bounds = bounds_of(segments, gradient.device)
            for part in found[:2]:
                self.rotary.turn(part, self._turns(bounds, segments), back=True)
        for part, place in zip(found, into, strict=True):
            place.copy_(part.view(place.shape))


def _rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Bounds) -> list[Row]:
    """Views of each row's keys and values, heads x tokens x width, as a cache takes them."""
    made = []
    for number, (begin, end) in enumerate(pairwise(bounds.keys)):
        here = slice(bounds.queries[number], bounds.queries[number + 1])
        before = (end - begin) - (here.stop - here.start)
        query_, key_, value_ = (
            part.transpose(0, 1) for part in (query[here], key[begin:end], value[begin:end])
        )
        made.append(Row(query_, key_, value_, before, None))
    return made


def by_flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Bounds, rule: Rule
) -> torch.Tensor:
    """All rows in one call of torch's varlen kernel; the last query of a row sees its last key."""
    from torch.nn.attention.varlen import varlen_attn

    out: Any = varlen_attn(
        query,
        key,
        value,
        *bounds.starts,
        _longest(bounds.queries),
        _longest(bounds.keys),
        scale=rule.scale,
        window_size=(rule.window - 1 if rule.window else -1, 0),
        enable_gqa=rule.shared > 1,
    )
    assert isinstance(out, torch.Tensor)
    return out


def _longest(bounds: Sequence[int]) -> int:
    return max(end - begin for begin, end in pairwise(bounds))


def by_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Bounds, rule: Rule
) -> torch.Tensor:
    """Row by row with the kernel that torch finds for the device; a mask only where a row needs one."""
    made = []
    for number in range(len(bounds.queries) - 1):
        parts = [query[bounds.queries[number] : bounds.queries[number + 1]]]
        parts += [part[bounds.keys[number] : bounds.keys[number + 1]] for part in (key, value)]
        lengths = len(parts[0]), len(parts[1])
        mask = None
        if lengths[0] != lengths[1] or 0 < rule.window < lengths[1]:
            mask = _seen(*lengths, rule.window, query.device)
        own, keys, values = (part.transpose(0, 1)[None] for part in parts)
        out = functional.scaled_dot_product_attention(
            own, keys, values, mask, is_causal=mask is None, scale=rule.scale, enable_gqa=rule.shared > 1
        )
        made.append(out[0].transpose(0, 1))
    return torch.cat(made)


def _seen(queries: int, keys: int, window: int, device: torch.device) -> torch.Tensor:
    """Which keys each query sees; the last query stands at the last key."""
    places = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (places >= 0) & (places < (window or keys))


Attention = RowsAttention | KernelAttention


def choose_attention(
    rule: Rule, rotary: Rotary | None, device: torch.device, dtype: torch.dtype
) -> Attention:
    """What attends on this device: the first kernel that gives what explicit products give, else these.

    The CPU is faster with explicit products, and no kernel knows a soft cap.
    """
    explicit = RowsAttention(rule, rotary)
    if device.type == "cpu" or rule.cap:
        return explicit
    short = replace(rule, window=min(rule.window, 16))
    for kernel in (by_flash, by_sdpa):
        one, other = KernelAttention(short, rotary, kernel), RowsAttention(short, rotary)
        if agree(one, other, device, dtype):
            return KernelAttention(rule, rotary, kernel)
    return explicit


def agree(one: Attention, other: Attention, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether two kinds of attention give the same output and gradients for rows, one behind a prefix."""
    rule = one.rule
    segments = (Segment(0, 40), Segment(40, 24, 0), Segment(64, 33, 0), Segment(97, 60))
    widths = [heads * rule.head_dim for heads in (rule.heads, rule.key_value_heads, rule.key_value_heads)]
    chance = torch.Generator().manual_seed(0)
    states = [torch.randn(157, n, generator=chance).to(device, dtype) for n in [*widths, widths[0]]]
    try:
        found = [_results(attention, states, segments) for attention in (one, other)]
    except (RuntimeError, ImportError, NotImplementedError, ValueError):
        return False
    return all(
        bool((a.float() - b.float()).norm() <= CLOSE * b.float().norm()) for a, b in zip(*found, strict=True)
    )


def _results(
    attention: Attention, states: Sequence[torch.Tensor], segments: tuple[Segment, ...]
) -> list[torch.Tensor]:
    with torch.no_grad():
        query, key, value, gradient = states
        out, kept = attention.forward(query, key, value, segments, keep=True)
        into = [torch.empty_like(part) for part in states[:3]]
        attention.backward(gradient, into, segments, kept)
    return [out, *into]
