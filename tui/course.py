"""What a curve came to, in levels with standard errors: the figures that the coach judges by.

Losses are compared as logarithms, because their noise is a share of their height. Nothing here looks at a
single step: at most 32 blocks of neighbouring steps are made of a curve's buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from ollama_tune.tui.widgets.curves import LossCurve

BLOCKS = 32
FIGURES = attrgetter("count", "sum", "high")
GAUSSIAN = 1.4826
"""Turns a median absolute deviation into a standard deviation."""
LEAST = 1e-6
"""Losses below are taken for this one: their logarithm means nothing."""
AROUND = 4
"""Blocks to either side that say which gradient norm is usual."""
FALLS = math.log(1.01)
"""A held-out loss that is lower by a smaller share than this has not fallen."""
LEAST_NOISE = 0.005
"""A noise below this share is not believed: it was measured on a few points."""


class Block(NamedTuple):
    """Neighbouring steps: the one in their middle, the logarithm of their mean loss, the highest value."""

    at: float
    value: float
    high: float


@dataclass(frozen=True)
class Level:
    """The logarithm of a loss with its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, blocks: Sequence[Block], noise: float) -> Level:
        """The level of some blocks that scatter by `noise`: their median, so that one of them alone, with a
        step far out, moves nothing. It scatters 1.25 times as much as a mean."""
        return cls(median([block.value for block in blocks]), 1.25 * noise / math.sqrt(len(blocks)))

    @property
    def loss(self) -> float:
        """The level as a loss."""
        return math.exp(self.value)

    def above(self, other: Level, times: float) -> bool:
        """True where this is higher by more than that many standard errors."""
        return self.value - other.value > times * math.hypot(self.error, other.error)


def blocks_of(curve: LossCurve, most: int = BLOCKS) -> list[Block]:
    """The curve as at most `most` blocks of equally many steps; gaps are left out."""
    known = list(map(FIGURES, curve.buckets))
    width, found = -(-len(known) // most) or 1, []
    for start in range(0, len(known), width):
        counts, sums, highs = zip(*known[start : start + width], strict=True)
        count = sum(counts)
        if count:
            at = (start + len(counts) / 2) * curve.width + 0.5
            found.append(Block(at, math.log(max(sum(sums) / count, LEAST)), max(highs)))
    return found


def median(values: Sequence[float]) -> float:
    """The middle of the values; 0 where there are none."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if not ordered:
        return 0.0
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def noise_of(values: Sequence[float]) -> float:
    """The standard deviation around a smooth course, by second differences, which a slope does not touch.

    Of independent noise their variance is six times as large; the median leaves jumps out.
    """
    seconds = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return max(GAUSSIAN * median(seconds) / math.sqrt(6), LEAST_NOISE)


@dataclass(frozen=True)
class Course:
    """Where the training loss was at the start, is now, was before that, and was lowest (around `low_at`).

    `middle` is the level half way between the start and now.
    """

    start: Level
    middle: Level
    before: Level
    now: Level
    low: Level
    low_at: float

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Course:
        """The course of at least eight blocks."""
        span = max(len(blocks) // 5, 2)
        values = [block.value for block in blocks]
        noise, late = noise_of(values), noise_of(values[-max(3 * span, 8) :])
        sums = [sum(values[i : i + span]) for i in range(len(values) - span + 1)]
        at = sums.index(min(sums))
        centre = (len(blocks) - span) // 2
        return cls(
            start=Level.of(blocks[: max(len(blocks) // 16, 1)], noise),
            middle=Level.of(blocks[centre : centre + span], noise),
            before=Level.of(blocks[-2 * span : -span], late),
            now=Level.of(blocks[-span:], late),
            low=Level.of(blocks[at : at + span], noise),
            low_at=blocks[at + span // 2].at,
        )

    @property
    def fall(self) -> float:
        """How far the loss fell from its start, as a share of it; below zero where it rose."""
        return 1 - math.exp(self.now.value - self.start.value)


@dataclass(frozen=True)
class Held:
    """The losses on the held-out rows: the best one and where, the newest, how many measurements there are
    and came `after` the best, and the logarithm half way (`middle`).

    `rise` is how far the last two stand above the best, as a logarithm; `noise` is their scatter. `falling`
    says that the newest is clearly lower than the one before, `climbs` that each of three or more since the
    best is higher than the one before.
    """

    best: float
    best_step: int
    last: float
    points: int
    middle: float
    after: int
    rise: float
    noise: float
    falling: bool
    climbs: bool

    @classmethod
    def of(cls, points: Sequence[tuple[int, float]]) -> Held:
        """Of the measurements (step, loss) in their order; at least one."""
        values = [math.log(max(loss, LEAST)) for _, loss in points]
        best = values.index(min(values))
        late = values[-2:] if len(values) - best > 2 else []
        rise = min(late) - values[best] if late else 0.0
        return cls(
            best=points[best][1],
            best_step=points[best][0],
            last=points[-1][1],
            points=len(points),
            middle=_between(points, values, points[-1][0] / 2),
            after=len(values) - best - 1,
            rise=rise,
            noise=noise_of(values[max(best - 1, 0) :]),
            falling=len(values) > 1 and best == len(values) - 1 and values[-2] - values[-1] > FALLS,
            climbs=len(values) - best > 3 and values[best:] == sorted(values[best:]),
        )


def _between(points: Sequence[tuple[int, float]], values: Sequence[float], step: float) -> float:
    """The value at a step, on the straight line between the points around it."""
    right = next(i for i, (at, _) in enumerate(points) if at >= step)
    left = max(right - 1, 0)
    width = points[right][0] - points[left][0]
    share = (step - points[left][0]) / width if width else 0.0
    return values[left] + share * (values[right] - values[left])


@dataclass(frozen=True)
class Jumps:
    """Where the largest gradient norm of some steps is many times that of the steps around them: how often,
    and the worst one with what was usual before it at the least: norms that jump seldom come back."""

    count: int
    largest: float
    usual: float

    @classmethod
    def of(cls, blocks: Sequence[Block], times: float) -> Jumps:
        """Of the blocks after the warm-up; `times` the usual norm is a jump."""
        usual = [
            math.exp(median([block.value for block in blocks[max(at - AROUND, 0) : at + AROUND + 1]]))
            for at in range(len(blocks))
        ]
        before = list(accumulate(usual, min))
        found = [
            (block.high / least, block.high, least)
            for block, now, least in zip(blocks, usual, before, strict=True)
            if block.high > times * now
        ]
        _, largest, low = max(found, default=(0.0, 0.0, 0.0))
        return cls(len(found), largest, low)

    @property
    def times(self) -> float:
        """The worst one as a multiple of the usual norm."""
        return self.largest / self.usual if self.usual > 0 else 0.0
