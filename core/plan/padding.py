"""How much of what is computed would be padding: in random batches, in those of like length, packed."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate, pairwise

from ollama_tune.core.data.tokens.pack import filled, pack
from ollama_tune.core.data.values import LENGTH_STEP, Lengths
from ollama_tune.core.plan.settings import TrainingSettings

ROWS = 4096
"""Rows that stand for all, evenly spread over their lengths."""
GROUP = 64
"""Batches among which the worker puts rows of like length together."""


def _quantiles(lengths: Lengths, shares: list[float]) -> list[int]:
    """The lengths below which those shares of the rows are, from the histogram or else from percentiles."""
    if lengths.histogram:
        edges = [min(LENGTH_STEP * step, lengths.longest) for step in range(len(lengths.histogram) + 1)]
        known = [0.0, *(count / lengths.rows for count in accumulate(lengths.histogram))]
    else:
        known = [0.0, 0.5, 0.95, 0.99, 1.0]
        edges = [1, lengths.median, lengths.percentile_95, lengths.percentile_99, lengths.longest]
    found = []
    for share in shares:
        right = min(max(bisect_left(known, share), 1), len(known) - 1)
        low, high = edges[right - 1], edges[right]
        part = (share - known[right - 1]) / max(known[right] - known[right - 1], 1e-12)
        found.append(max(round(low + min(part, 1.0) * (high - low)), 1))
    return found


@lru_cache(64)
def typical_rows(lengths: Lengths, longest: int, count: int = ROWS) -> tuple[int, ...]:
    """Token lengths of `count` rows like those of the data, ascending, cut to `longest` tokens.

    Within a step of the histogram lengths are taken as evenly spread.
    """
    if not lengths.rows:
        return ()
    shares = [(number + 0.5) / count for number in range(count)]
    return tuple(min(size, longest) for size in _quantiles(lengths, shares))


@lru_cache(64)
def random_padding(lengths: Lengths, longest: int, batch_size: int) -> float:
    """The share of padding in random batches: one less the mean over the expected longest of a batch.

    The longest of B rows is the i-th of n rows with a chance of (i^B - (i-1)^B) / n^B.
    """
    rows = typical_rows(lengths, longest)
    if not rows:
        return 0.0
    chances = [(number / len(rows)) ** batch_size for number in range(len(rows) + 1)]
    highest = sum(
        size * (after - before) for size, (before, after) in zip(rows, pairwise(chances), strict=True)
    )
    return 1 - sum(rows) / len(rows) / highest


@lru_cache(64)
def grouped_padding(lengths: Lengths, longest: int, batch_size: int) -> float:
    """The share of padding where rows of like length share a batch, as the worker makes them."""
    count = min(GROUP * batch_size, lengths.rows)
    rows = typical_rows(lengths, longest, count)
    widest = sum(max(part) * len(part) for part in _parts(rows, batch_size))
    return 1 - sum(rows) / widest if rows else 0.0


@lru_cache(256)
def _longest_tokens(lengths: Lengths, longest: int, count: int) -> int:
    """Tokens of the `count` longest rows, each taken as long as the step of the histogram allows."""
    if not lengths.histogram:
        shares = [1 - number / max(lengths.rows, 1) for number in range(min(count, lengths.rows))]
        return sum(min(size, longest) for size in _quantiles(lengths, shares))
    found, left = 0, min(count, lengths.rows)
    for step in range(len(lengths.histogram), 0, -1):
        here = min(lengths.histogram[step - 1], left)
        found += here * min(LENGTH_STEP * step, lengths.longest, longest)
        left -= here
    return found


def largest_batch(lengths: Lengths, training: TrainingSettings) -> int:
    """Tokens of the micro-batch of the longest rows, without padding; packed sequences are full."""
    if training.packing:
        return training.batch_size * training.sequence_length
    lengths = lengths.learned(training.objective)
    return _longest_tokens(lengths, lengths.most(training.sequence_length), training.batch_size)


def longest_row(lengths: Lengths, training: TrainingSettings) -> int:
    """Tokens of the longest row that is learned from; of pairs, of the longer of their two rows."""
    return lengths.learned(training.objective).of_rows.longest


def _parts(rows: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@lru_cache(64)
def packed_rows(lengths: Lengths, capacity: int) -> tuple[float, float]:
    """Rows in a packed sequence of so many tokens, on average, and the share of it that they fill."""
    rows = typical_rows(lengths, capacity)
    if not rows:
        return 1.0, 1.0
    groups = pack(rows, capacity)
    return len(rows) / len(groups), filled(rows, groups, capacity)


def sequences(lengths: Lengths, training: TrainingSettings, rows: int) -> int:
    """What micro-batches of an epoch are made of: packed sequences, or else rows."""
    if not training.packing:
        return rows
    return math.ceil(rows / packed_rows(lengths, training.sequence_length)[0])
