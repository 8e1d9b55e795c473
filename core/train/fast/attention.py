"""Causal attention within the rows of a stream: nothing is computed between rows, and no mask spans them.

A row behind a shared prefix attends to the prefix' keys and values and to its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional

from ollama_tune.core.rounding import round_up
from ollama_tune.core.train.fast.rotary import Rotary
from ollama_tune.core.train.fast.stream import Segment

BLOCK = 128
"""Queries whose products with the keys are made at once; keys behind the last of them are left out."""
KEEP = 256
"""Tokens up to which a row's probabilities are kept for backward; for longer rows they are made again."""
_EVEN = 32
"""Rows are padded to a multiple of this in their own buffers, which the kernels for 16-bit numbers like."""


@dataclass(frozen=True)
class Rule:
    """What attention computes: the scale of the products, their soft cap (0: none), the window (0: all)."""

    heads: int
    key_value_heads: int
    head_dim: int
    scale: float
    cap: float = 0.0
    window: int = 0

    @property
    def shared(self) -> int:
        """Query heads for each key head."""
        return self.heads // self.key_value_heads


Probabilities = list[tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class Row:
    """A segment's turned queries (key heads x tokens x query heads of each * width), its keys and values
    (key heads x tokens x width) with those of its prefix before them, and the kept probabilities."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    before: int
    kept: Probabilities | None


Kept = list[Row]


class RowsAttention:
    """Attention by explicit products, row by row and block of queries by block; right on every device.

    On the CPU this beats the flash kernel, whose backward takes 13 to 24 microseconds a token where this
    takes 3 to 6 (8 heads of 64, rows of 64 to 512 tokens, one core with AMX).
    """

    def __init__(self, rule: Rule, rotary: Rotary | None) -> None:
        self.rule = rule
        self.rotary = rotary

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: Sequence[Segment],
        *,
        keep: bool,
    ) -> tuple[torch.Tensor, Kept]:
        """The output (tokens x heads * width) of states that are tokens x heads * width, not yet turned."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        out[tokens_of(segments) :] = 0.0
        rows: Kept = []
        longest = longest_row(segments)
        for segment in segments:
            row = self._lay(query, key, value, segment, segments, rows, longest)
            rows.append(row)
            self._attend(row, out[segment.start : segment.start + segment.length], keep)
        return out, rows

    def _lay(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segment: Segment,
        segments: Sequence[Segment],
        rows: Sequence[Row],
        longest: int,
    ) -> Row:
        here = slice(segment.start, segment.start + segment.length)
        states = [_by_head(part[here], self.rule.key_value_heads) for part in (query, key, value)]
        before = 0 if segment.prefix is None else segments[segment.prefix].length
        if self.rotary is not None:
            for part, heads in ((states[0], self.rule.shared), (states[1], 1)):
                self.rotary.turn(part, self.rotary.tables(before, part.shape[1], heads, longest))
        if segment.prefix is not None:
            first = rows[segment.prefix]
            own = zip((first.key, first.value), states[1:], strict=True)
            states[1:] = [_behind(part[:, :before], added) for part, added in own]
        return Row(states[0], states[1], states[2], before, None)

    def _attend(self, row: Row, out: torch.Tensor, keep: bool) -> None:
        kept: Probabilities | None = [] if keep and len(out) <= KEEP else None
        for begin, end, first, last in self._blocks(row, len(out)):
            made = self._probabilities(row, begin, end, first, last)
            part = torch.bmm(made[0], row.value[:, first:last])
            places = out[begin:end].view(
                -1, self.rule.key_value_heads, out.shape[1] // self.rule.key_value_heads
            )
            places.copy_(part.view(len(part), end - begin, -1)[:, : len(places)].transpose(0, 1))
            if kept is not None:
                kept.append(made)
        row.kept = kept

    def _blocks(self, row: Row, length: int) -> list[tuple[int, int, int, int]]:
        """Blocks of queries, and the range of keys that each can see."""
        blocks, total = [], row.query.shape[1]
        for begin in range(0, total, BLOCK):
            end = min(begin + BLOCK, total)
            last = min(_even(row.before + end), row.key.shape[1])
            first = 0
            if self.rule.window:
                first = max(0, row.before + begin - self.rule.window + 1) // _EVEN * _EVEN
            blocks.append((begin, end, first, last))
        return blocks

    def _probabilities(
        self, row: Row, begin: int, end: int, first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Which share of each value goes to each query of a block; and the capped products over the cap."""
        rule, query = self.rule, self._query(row, begin, end)
        mask = _mask(
            row.before + begin - first,
            end - begin,
            last - first,
            rule.window,
            rule.shared,
            query.dtype,
            query.device,
        ).expand(len(query), -1, -1)
        keys = row.key[:, first:last].transpose(1, 2)
        if not rule.cap:
            return torch.softmax(torch.baddbmm(mask, query, keys, alpha=rule.scale), -1), None
        bent = torch.bmm(query, keys).mul_(rule.scale / rule.cap).tanh_()
        return torch.softmax(torch.add(mask, bent, alpha=rule.cap), -1), bent

    def _query(self, row: Row, begin: int, end: int) -> torch.Tensor:
        part = row.query[:, begin:end]
        return part.view(len(part), -1, self.rule.head_dim)

    def backward(
        self,
        gradient: torch.Tensor,
        into: Sequence[torch.Tensor],
        segments: Sequence[Segment],
        rows: Kept,
    ) -> None:
        """Write the gradients of query, key and value (`into`) for that of the output; `rows` is used up."""
        longest = longest_row(segments)
        waiting: dict[int, list[torch.Tensor]] = {}
        for number in reversed(range(len(segments))):
            segment, row = segments[number], rows.pop()
            here = slice(segment.start, segment.start + segment.length)
            found = self._row_backward(row, gradient[here])
            if segment.prefix is not None:
                shared = [part[:, : row.before] for part in found[1:]]
                known = waiting.get(segment.prefix)
                waiting[segment.prefix] = (
                    [a + b for a, b in zip(known, shared, strict=True)] if known else shared
                )
                found[1:] = [part[:, row.before :].contiguous() for part in found[1:]]
            for part, more in zip(found[1:], waiting.pop(number, ()), strict=False):
                part[:, : segment.length] += more
            if self.rotary is not None:
                for part, heads in ((found[0], self.rule.shared), (found[1], 1)):
                    tables = self.rotary.tables(row.before, part.shape[1], heads, longest)
                    self.rotary.turn(part, tables, back=True)
            for part, place in zip(found, into, strict=True):
                shape = (segment.length, self.rule.key_value_heads, part.shape[2])
                place[here].view(shape).copy_(part[:, : segment.length].transpose(0, 1))

    def _row_backward(self, row: Row, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of a row's turned queries, and of its keys and values with those of the prefix.

        Where a row has many blocks, their shares of the gradients add up in float32.
        """
        rule, length = self.rule, len(gradient)
        outer = _by_head(gradient, rule.key_value_heads)
        for_query = torch.empty_like(row.query)
        sums = torch.float32 if length > 8 * BLOCK and row.key.dtype != torch.float64 else row.key.dtype
        blocks = self._blocks(row, length)
        fresh = len(blocks) == 1 and blocks[0][2] == 0
        make = torch.empty_like if fresh else torch.zeros_like
        for_key, for_value = (make(part, dtype=sums) for part in (row.key, row.value))
        for number, (begin, end, first, last) in enumerate(blocks):
            block = row.kept[number] if row.kept else self._probabilities(row, begin, end, first, last)
            shares, bent = block
            part = outer[:, begin:end].view(len(outer), -1, rule.head_dim)
            inner = torch.bmm(part, row.value[:, first:last].transpose(1, 2))
            inner = torch._softmax_backward_data(inner, shares, -1, shares.dtype)
            if bent is not None:
                inner.addcmul_(inner * bent, bent, value=-1.0)
            made = for_query[:, begin:end].view(len(outer), -1, rule.head_dim)
            torch.baddbmm(made, inner, row.key[:, first:last], beta=0.0, alpha=rule.scale, out=made)
            seen = slice(first, last)
            _accumulate(for_value[:, seen], shares, part, 1.0, fresh)
            _accumulate(for_key[:, seen], inner, self._query(row, begin, end), rule.scale, fresh)
        return [for_query, for_key.to(row.key.dtype), for_value.to(row.key.dtype)]


def _accumulate(
    total: torch.Tensor, one: torch.Tensor, other: torch.Tensor, scale: float, fresh: bool
) -> None:
    """Add scale * one^T other to the total, or write it where that holds nothing yet."""
    if total.dtype == one.dtype:
        total.baddbmm_(one.transpose(1, 2), other, beta=0.0 if fresh else 1.0, alpha=scale)
    else:
        total.add_(torch.bmm(one.transpose(1, 2), other), alpha=scale)


def tokens_of(segments: Sequence[Segment]) -> int:
    """Tokens of a stream; behind them may be others that nothing depends on."""
    return segments[-1].start + segments[-1].length


def longest_row(segments: Sequence[Segment]) -> int:
    """Tokens of the longest row, its prefix included."""
    return max(
        segment.length + (0 if segment.prefix is None else segments[segment.prefix].length)
        for segment in segments
    )


def _even(length: int) -> int:
    return round_up(length, _EVEN)


def _behind(first: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Keys or values of a prefix and of the row behind it, padded with zeros."""
    length = first.shape[1] + own.shape[1]
    return functional.pad(torch.cat([first, own], 1), (0, 0, 0, _even(length) - length))


def _by_head(states: torch.Tensor, heads: int) -> torch.Tensor:
    """Tokens x (heads * width) as a contiguous heads x tokens x width, padded with zeros."""
    length, width = len(states), states.shape[1] // heads
    laid = states.new_empty(heads, _even(length), width)
    laid[:, :length] = states.view(length, heads, width).transpose(0, 1)
    laid[:, length:] = 0.0
    return laid


@lru_cache(maxsize=256)
def _mask(
    ahead: int, queries: int, keys: int, window: int, shared: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """0 where a query sees a key and minus infinity elsewhere (queries * shared x keys).

    Query i stands `ahead + i` places behind the first of the keys.
    """
    distance = ahead + torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)
    seen = (distance >= 0) & (distance < (window or keys + ahead + queries))
    mask = torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
    return mask.repeat_interleave(shared, 0)
