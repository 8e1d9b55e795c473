"""Sums of the losses of runs of tokens, and a gradient scaled by what comes back for each sum."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch


def summed(losses: torch.Tensor, lengths: Sequence[int] | None) -> torch.Tensor:
    """The sum of each run of so many losses (runs); without lengths that of all, as a single number."""
    if lengths is None:
        return losses.sum()
    return torch.stack([part.sum() for part in torch.split(losses, list(lengths))])


def scaled(gradient: torch.Tensor, outer: torch.Tensor, lengths: Sequence[int] | None) -> torch.Tensor:
    """The gradient (tokens x width) times the number of its token's run, in its own number format.

    A factor alone is not rounded to 16 bit, which one for every token would be. What stands behind the last
    run stays as it is.
    """
    if lengths is None:
        return (gradient * outer).to(gradient.dtype)
    made = gradient.clone()
    ends = accumulate(lengths)
    for end, length, factor in zip(ends, lengths, outer.unbind(), strict=True):
        made[end - length : end] *= factor
    return made
