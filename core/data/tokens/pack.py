"""Lays rows into sequences of one capacity with hardly any space left over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Row numbers in groups of at most `capacity` tokens; every row stands in exactly one group.

    Best fit decreasing over all rows: the longest row first, each into the fullest sequence that still holds
    it. The free spaces that occur are the bits of one integer, so the best is its lowest bit that suffices.
    The same lengths give the same groups. Raises `ValueError` for a row that no sequence can hold.
    """
    rows: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        rows[length].append(row)
    if rows and not 0 <= min(rows) <= max(rows) <= capacity:
        raise ValueError(f"rows of {min(rows)} to {max(rows)} tokens do not fit in {capacity}")
    groups: list[list[int]] = []
    open_groups: dict[int, list[list[int]]] = defaultdict(list)
    spaces = 0
    for length in sorted(rows, reverse=True):
        for row in rows[length]:
            fitting = spaces >> length
            if fitting:
                space = length + (fitting & -fitting).bit_length() - 1
                found = open_groups[space]
                group = found.pop()
                if not found:
                    spaces ^= 1 << space
            else:
                space, group = capacity, []
                groups.append(group)
            group.append(row)
            open_groups[space - length].append(group)
            spaces |= 1 << space - length
    return groups


def filled(lengths: Sequence[int], groups: Sequence[Sequence[int]], capacity: int) -> float:
    """The share of the groups' space that rows take; 1 without any group."""
    return sum(lengths) / (len(groups) * capacity) if groups else 1.0
