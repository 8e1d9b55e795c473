"""A curve in one line of cells: for figures whose course says more than their last value."""

from __future__ import annotations

import math
import os

from ollama_tune.tui.widgets.curves import LossCurve

LEVELS = "▁▂▃▄▅▆▇█"
FLAT = 1e-6
"""A smaller share of change is the rounding of equal values."""


def spark(curve: LossCurve, cells: int, total: int) -> str:
    """The curve over `total` planned steps in at most `cells` characters, from its lowest to its highest
    value; empty where the terminal's font has no such blocks."""
    if os.environ.get("TERM") == "linux":
        return ""
    sums, counts = [0.0] * cells, [0] * cells
    for at, bucket in curve.points():
        cell = min(int((at - 0.5) / max(total, 1) * cells), cells - 1)
        sums[cell] += bucket.sum
        counts[cell] += bucket.count
    means = [(cell, sums[cell] / counts[cell]) for cell in range(cells) if counts[cell]]
    if not means:
        return ""
    low = min(mean for _, mean in means)
    high = max(mean for _, mean in means)
    span = high - low if high - low > FLAT * max(abs(high), abs(low)) else math.inf
    drawn = [" "] * (means[-1][0] + 1)
    for cell, mean in means:
        drawn[cell] = LEVELS[round((mean - low) / span * (len(LEVELS) - 1))]
    return "".join(drawn)
