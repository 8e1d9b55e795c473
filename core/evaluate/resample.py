"""How far figures of a few rows can be trusted: bootstrap intervals and paired tests, all with one seed.

A figure is a function of sums over rows (a share: hits and rows; BLEU: counts of n-grams), so that drawing
rows anew is a product of a matrix of weights with the rows' statistics, for every metric alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]
    Value = Callable[[Array], Array]

SEED = 7
DRAWS = 2000
AT_ONCE = 200
"""Draws whose weights exist at once."""
TAIL = 2.5
"""Per cent of the draws that lie outside of an interval on each side: 95 % lie inside."""
LEVEL = 0.05
"""A difference is clear where chance alone would show one as large in fewer cases than this share."""


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """The second model's figure less the first's, over the same rows.

    `p` is how often two equal models would differ at least that much, by the test named.
    """

    p: float
    test: str

    @property
    def clear(self) -> bool:
        """Whether chance does not explain it: neither the interval nor the test has room for none."""
        return self.p < LEVEL and (self.low > 0 or self.high < 0)


def bootstrap(rows: Array, value: Value) -> Interval:
    """The figure of rows (rows x statistics) with the percentile interval of 2,000 draws (Efron 1979)."""
    import numpy as np

    drawn = np.concatenate([value(weights @ rows) for weights in _draws(len(rows))])
    return Interval(float(value(rows.sum(0)[None])[0]), *_percentiles(drawn))


def paired(first: Array, second: Array, value: Value) -> Difference:
    """The difference of two models on the same rows, with its interval and a test.

    The interval takes the rows of both models together (paired bootstrap); the test exchanges the models in
    each row with chance one half (Noreen 1989), where nothing changes if they are equal.
    """
    import numpy as np

    found = float((value(second.sum(0)[None]) - value(first.sum(0)[None]))[0])
    drawn = np.concatenate([value(w @ second) - value(w @ first) for w in _draws(len(first))])
    swapped = np.concatenate([value(two) - value(one) for one, two in _exchanged(first, second)])
    beyond = int((np.abs(swapped) >= abs(found) * (1 - 1e-9)).sum())
    return Difference(found, *_percentiles(drawn), (1 + beyond) / (1 + len(swapped)), "randomisation")


def mcnemar(first: Array, second: Array) -> float:
    """McNemar's exact test of two lists of hits (0 or 1): p of the rows that only one model has right."""
    only_first = int(((first > 0) & (second <= 0)).sum())
    only_second = int(((second > 0) & (first <= 0)).sum())
    rows = only_first + only_second
    tail = sum(math.comb(rows, count) for count in range(min(only_first, only_second) + 1))
    return min(float(2 * tail / 2**rows), 1.0)


def _percentiles(drawn: Array) -> tuple[float, float]:
    import numpy as np

    low, high = np.nanpercentile(drawn, [TAIL, 100 - TAIL])
    return float(low), float(high)


def _draws(rows: int) -> Iterator[Array]:
    """How often each row is drawn (draws x rows), some draws at a time."""
    import numpy as np

    chance = np.random.default_rng(SEED)
    for _ in range(DRAWS // AT_ONCE):
        yield chance.multinomial(rows, np.full(rows, 1 / rows), size=AT_ONCE).astype(np.float64)


def _exchanged(first: Array, second: Array) -> Iterator[tuple[Array, Array]]:
    """The sums of both models (draws x statistics each) where some rows have changed sides."""
    import numpy as np

    chance = np.random.default_rng(SEED)
    total = first.sum(0) + second.sum(0)
    for _ in range(DRAWS // AT_ONCE):
        swap = chance.integers(0, 2, size=(AT_ONCE, len(first))).astype(np.float64)
        sums = second.sum(0) + swap @ (first - second)
        yield total - sums, sums
