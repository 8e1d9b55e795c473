"""Scales of a chart: limits that a spike does not move, round marks, and the smoothed mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ollama_tune.tui.widgets.curves import Bucket

DECADES = 4.0
"""A logarithmic axis never reaches further down than this below its top."""

Point = tuple[float, float, float, float]
"""Step, lowest, highest and mean loss."""


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def limits(points: Sequence[Point], others: Sequence[float]) -> tuple[float, float]:
    """Bottom and top of the y axis, so that a spike does not flatten the curve.

    The top is the 98th percentile of the highs but never below the highest mean, the bottom the 2nd
    of the lows but never above the lowest mean, or 0 where that is near; `others` are always inside.
    """
    means = [mean for *_, mean in points]
    tops = [*others, *means, percentile([high for _, _, high, _ in points], 0.98)] if points else [*others]
    lows = [*others, *means, percentile([low for _, low, _, _ in points], 0.02)] if points else [*others]
    top, bottom = max(tops), min(lows)
    if 0 <= bottom < 0.4 * top:
        bottom = 0.0
    return (bottom, top) if top - bottom > 1e-9 * abs(top) else (bottom - 0.5, bottom + 0.5)


def log_limits(points: Sequence[Point], others: Sequence[float]) -> tuple[float, float]:
    """The same for a logarithmic axis: both above zero, four powers of ten apart at most."""
    top = limits(points, others)[1]
    lows = [low for _, low, _, _ in points if low > 0]
    values = [value for value in (*others, *(mean for *_, mean in points)) if value > 0]
    values += [percentile(lows, 0.02)] if lows else []
    bottom = max(min(values, default=top), top / 10**DECADES)
    return (bottom, top) if 0 < bottom < 0.999 * top else (abs(top) / 2 or 0.5, 2 * abs(top) or 1.0)


def log_ticks(bottom: float, top: float, count: int) -> list[tuple[float, str]]:
    """Values such as 1, 2, 5, 10 or only powers of ten, at most about `count`; within one such step linear
    ones."""
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if bottom <= f * 10.0**p <= top]
        if 2 <= len(found) <= count:
            return [(value, f"{value:g}") for value in found]
    return ticks(bottom, top, count)


def ticks(bottom: float, top: float, count: int) -> list[tuple[float, str]]:
    """At most about `count` round values within the limits, with their labels."""
    rough = (top - bottom) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
    first, last = math.ceil(bottom / step - 1e-9), math.floor(top / step + 1e-9)
    return [(index * step, f"{index * step:.{decimals}f}") for index in range(first, last + 1)]


def smoothed(points: Sequence[tuple[float, Bucket]], reach: float) -> list[float]:
    """The mean loss around each point, at most `reach` steps to either side; at the left end as far as the
    points go to both sides, so that a steep start stays steep."""
    sums, counts = [0.0], [0]
    for _, bucket in points:
        sums.append(sums[-1] + bucket.sum)
        counts.append(counts[-1] + bucket.count)
    means, left, right = [], 0, 0
    for at, _ in points:
        near = min(reach, at - points[0][0])
        while points[left][0] < at - near:
            left += 1
        while right < len(points) and points[right][0] <= at + near:
            right += 1
        means.append((sums[right] - sums[left]) / (counts[right] - counts[left]))
    return means
