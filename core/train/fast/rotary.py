"""The rotary position encoding as tables of cosines and sines, and turning heads by them in place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ollama_tune.core.models.rope import Rope


class Rotary:
    """Turns heads (the last `width` numbers) of tokens by their positions; numbers behind `dimensions` stay.

    A head x becomes x cos + (x R) sin, where R exchanges its halves and negates the second: one product and
    two passes, whatever the number format. Tables grow with the longest row seen.
    """

    def __init__(self, rope: Rope, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self._rope = rope
        self._width = width
        self._device, self._dtype = device, dtype
        self._exchange = _exchange(rope.dimensions, width).to(device, dtype)
        self._tables: dict[tuple[bool, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def tables(self, begin: int, length: int, heads: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (tokens x heads * width) from a position on.

        `longest` is the length of the longest row of the stream: longrope turns by other factors where one
        row exceeds the length that the model was made for, as transformers does for a batch.
        """
        long = bool(self._rope.long) and longest > self._rope.original
        known = self._tables.get((long, heads))
        if known is None or len(known[0]) < begin + length:
            rows = max(256, 2 ** math.ceil(math.log2(begin + length)))
            known = self._tables[long, heads] = self._build(rows, heads, long)
        return known[0][begin : begin + length], known[1][begin : begin + length]

    def _build(self, rows: int, heads: int, long: bool) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.float64 if self._dtype == torch.float64 else torch.float32
        angles = torch.arange(rows).to(wide)[:, None] * frequencies(self._rope, long).to(wide)
        still = self._width - self._rope.dimensions
        cos = torch.nn.functional.pad(angles.cos().repeat(1, 2) * self._rope.magnitude, (0, still), value=1.0)
        sin = torch.nn.functional.pad(angles.sin().repeat(1, 2) * self._rope.magnitude, (0, still))
        return self._finished(cos, heads), self._finished(sin, heads)

    def _finished(self, table: torch.Tensor, heads: int) -> torch.Tensor:
        return table.to(self._device, self._dtype).repeat(1, heads)

    def turn(self, states: torch.Tensor, tables: Sequence[torch.Tensor], *, back: bool = False) -> None:
        """Turn contiguous states (... x tokens x heads * width) in place, or the other way round.

        Turning back is what a gradient needs.
        """
        exchanged = (states.view(-1, self._width) @ self._exchange).view(states.shape)
        states.mul_(tables[0]).addcmul_(exchanged, tables[1], value=-1.0 if back else 1.0)


def _exchange(dimensions: int, width: int) -> torch.Tensor:
    """The matrix that takes the turned numbers (a, b) of a head to (-b, a) and the others to 0."""
    half = dimensions // 2
    matrix = torch.zeros(width, width)
    places = torch.arange(half)
    matrix[half + places, places] = -1.0
    matrix[places, half + places] = 1.0
    return matrix


def frequencies(rope: Rope, long: bool = False) -> torch.Tensor:
    """Radians a position for each pair of numbers, float32 as transformers computes them."""
    powers = torch.arange(0, rope.dimensions, 2, dtype=torch.float32) / rope.dimensions
    plain = 1.0 / (rope.theta**powers)
    if rope.kind == "linear":
        return plain / rope.numbers["factor"]
    if rope.kind == "llama3":
        return plain / torch.tensor(rope.tensors()["rope_freqs.weight"])
    if rope.kind == "longrope":
        return 1.0 / (torch.tensor(rope.long if long else rope.short) * rope.theta**powers)
    return _yarn(rope, plain) if rope.kind == "yarn" else plain


def _yarn(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    """Slow pairs are stretched by the factor, fast ones stay, others are blended (arXiv 2309.00071)."""
    low, high = math.floor(_pair_with(rope, 32)), math.ceil(_pair_with(rope, 1))
    low, high = max(low, 0), min(high, rope.dimensions - 1)
    ramp = (torch.arange(rope.dimensions // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)
    return plain / rope.numbers["factor"] * stretched + plain * (1 - stretched)


def _pair_with(rope: Rope, turns: int) -> float:
    """Which pair makes so many turns within the original context."""
    waves = math.log(rope.original / (turns * 2 * math.pi))
    return rope.dimensions * waves / (2 * math.log(rope.theta))
