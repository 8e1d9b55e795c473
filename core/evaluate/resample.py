"""How far figures of a few rows can be trusted: intervals and paired tests over rows.

A figure is a function of sums over rows (a share: hits and rows; BLEU: counts of n-grams), so that leaving
rows out, or exchanging two models in them, is arithmetic with the rows' statistics, for every metric alike.
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
    Bounds = tuple[float, float]

SEED = 7
DRAWS = 2000
AT_ONCE = 200
"""Draws that exist at once."""
OUTSIDE = 0.05
"""The share of intervals that may miss the true figure: 95 % hold it."""
LEAST = 5
"""Fewer rows than this tell nothing of how much rows differ: there is no interval."""
LARGEST = 700.0
"""The largest number whose exponential is one, about."""
EQUAL = 1e-9
"""Differences below this share of a figure are rounding."""
LEVEL = 0.05
"""A difference is clear where chance alone would show one as large in fewer cases than this share."""


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; that is not a number where the rows tell none."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Difference(Interval):
    """The second model's figure less the first's, over the same rows.

    `p` is how often two equal models would differ at least that much, by the test named. `sure` says whether
    it is clear where it has no interval of its own.
    """

    p: float
    test: str
    sure: bool = False

    @property
    def clear(self) -> bool:
        """Whether chance does not explain it: neither the interval nor the test has room for none."""
        return self.sure or (self.p < LEVEL and (self.low > 0 or self.high < 0))


def interval(rows: Array, value: Value, bounds: Bounds) -> Interval:
    """The figure of rows (rows x statistics), which lies within `bounds`, with its 95 % interval."""
    return _interval(float(value(rows.sum(0)[None])[0]), _without_each(rows, value), bounds)


def paired(first: Array, second: Array, value: Value, bounds: Bounds) -> Difference:
    """The difference of two models on the same rows, with its interval and a test.

    The interval leaves out a row of both models together; the test exchanges the models in each row with
    chance one half (Noreen 1989), where nothing changes if they are equal.
    """
    import numpy as np

    with np.errstate(invalid="ignore"):  # two models may both be infinitely bad
        found = float((value(second.sum(0)[None]) - value(first.sum(0)[None]))[0])
        without = _without_each(second, value) - _without_each(first, value)
        swapped = np.concatenate([value(two) - value(one) for one, two in _exchanged(first, second)])
    widest = bounds[1] - bounds[0]
    one = _interval(found, without, (-widest, widest))
    beyond = int((~(np.abs(swapped) < abs(found) * (1 - EQUAL))).sum())
    return Difference(found, one.low, one.high, (1 + beyond) / (1 + len(swapped)), "randomisation")


def exponential(found: Interval) -> Interval:
    """The exponential of a figure with its interval, infinite where it is too large."""
    return Interval(*(_exp(one) for one in (found.value, found.low, found.high)))


def exponential_change(found: Difference, first: float) -> Difference:
    """How far exponentials are apart whose logarithms differ by `found`, the first being `first`.

    It is as clear as the difference of the logarithms, and has no interval: one would hang on how large the
    first is, more than on how the two compare.
    """
    change = first * (_exp(found.value) - 1)
    return Difference(change, math.nan, math.nan, found.p, found.test, sure=found.clear)


def _exp(value: float) -> float:
    return math.exp(value) if not value > LARGEST else math.inf


def mcnemar(first: Array, second: Array) -> float:
    """McNemar's exact test of two lists of hits (0 or 1): p of the rows that only one model has right."""
    only_first = int(((first > 0) & (second <= 0)).sum())
    only_second = int(((second > 0) & (first <= 0)).sum())
    rows = only_first + only_second
    tail = sum(math.comb(rows, count) for count in range(min(only_first, only_second) + 1))
    return min(float(2 * tail / 2**rows), 1.0)


def _without_each(rows: Array, value: Value) -> Array:
    """The figure without the first row, without the second, and so on."""
    import numpy as np

    with np.errstate(invalid="ignore"):  # without its only row there is no mean
        return value(rows.sum(0) - rows)


def _interval(value: float, without: Array, bounds: Bounds) -> Interval:
    """The interval of a figure, from the figures `without` each row (jackknife, Tukey 1958).

    It is Student's t times the standard error to each side, on a scale without ends. Where all rows say the
    same, what was not seen may still be there, as Clopper and Pearson (1934) reckon with none of n; without
    bounds nothing is known of it then.
    """
    rows, (low, high) = len(without), bounds
    if rows < LEAST or not all(map(math.isfinite, without)):
        return Interval(value, math.nan, math.nan)
    error = math.sqrt((rows - 1) / rows * float(((without - without.mean()) ** 2).sum()))
    width = high - low
    least = EQUAL * (abs(value) if math.isinf(width) else width)
    if error > least and min(value - low, high - value) > least:
        step = student(rows - 1) * error
        return Interval(value, _moved(value, -step, bounds), _moved(value, step, bounds))
    if math.isinf(width):
        return Interval(value, math.nan, math.nan)
    unseen = 1 - (OUTSIDE / 2) ** (1 / rows)
    return Interval(value, value - (value - low) * unseen, value + (high - value) * unseen)


def _moved(value: float, step: float, bounds: Bounds) -> float:
    """A figure moved by a step on a scale on which it cannot leave its bounds: of log-odds between two, of
    logarithms above one."""
    low, high = bounds
    above, below = value - low, high - value
    if math.isinf(above):
        return value + step
    if math.isinf(below):
        return low + above * math.exp(min(step / above, LARGEST))
    odds = math.log(above / below) + step * (1 / above + 1 / below)
    return low + (high - low) * (1 + math.tanh(odds / 2)) / 2


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5), to 0.3 % for 5 rows."""
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def _exchanged(first: Array, second: Array) -> Iterator[tuple[Array, Array]]:
    """The sums of both models (draws x statistics each) where some rows have changed sides."""
    import numpy as np

    chance = np.random.default_rng(SEED)
    total = first.sum(0) + second.sum(0)
    for _ in range(DRAWS // AT_ONCE):
        swap = chance.integers(0, 2, size=(AT_ONCE, len(first))).astype(np.float64)
        sums = second.sum(0) + swap @ (first - second)
        yield total - sums, sums
