"""Whole numbers to multiples."""

from __future__ import annotations


def round_up(value: int, step: int) -> int:
    """The value rounded up to a multiple of `step`."""
    return -(-value // step) * step
