"""Deals the rows of a step to the ranks of a run."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_tune.core.train.batches import lay

Rows = Sequence[Sequence[int]]


def deal(window: Rows, lengths: Sequence[int], ranks: int, capacity: int = 0) -> list[list[list[int]]]:
    """Each rank's micro-batches of a window: all rows once, about as many tokens and rows for each rank.

    The longest rows go first, each to the rank with the fewest tokens so far that has room: none gets more
    rows than its share, rounded up. A rank keeps the window's order, and computes at most as many rows (with
    a capacity, sequences) at once as the window did. Rank 0 always has some.
    """
    rows = [row for batch in window for row in batch]
    loads, held = [0] * ranks, [[] for _ in range(ranks)]  # type: tuple[list[int], list[list[int]]]
    for place in sorted(range(len(rows)), key=lambda place: -lengths[rows[place]]):
        free = [rank for rank in range(ranks) if len(held[rank]) < -(-len(rows) // ranks)]
        rank = min(free, key=loads.__getitem__)
        held[rank].append(place)
        loads[rank] += lengths[rows[place]]
    most = max(map(len, window))
    laid = max(len(lay([lengths[row] for row in batch], capacity)) for batch in window) if capacity else 0
    return [_batches([rows[place] for place in sorted(part)], lengths, most, capacity, laid) for part in held]


def _batches(
    rows: Sequence[int], lengths: Sequence[int], most: int, capacity: int, laid: int
) -> list[list[int]]:
    found: list[list[int]] = []
    for row in rows:
        wider = [*found[-1], row] if found else []
        fits = 0 < len(wider) <= most
        if fits and capacity:
            fits = len(lay([lengths[each] for each in wider], capacity)) <= laid
        if fits:
            found[-1] = wider
        else:
            found.append([row])
    return found
