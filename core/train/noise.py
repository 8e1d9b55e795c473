"""Noise on the embeddings of a row's tokens while training, against learning rows by heart (NEFTune)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Pieces = Sequence[tuple[int, int]]
"""Of tokens that lie one after the other: how many, and the tokens of the row they belong to (0: none)."""


def noisy(states: torch.Tensor, pieces: Pieces, alpha: float) -> torch.Tensor:
    """Embeddings (tokens x width) with uniform noise of [-1, 1] x alpha / sqrt(L x width) on each number.

    L is the length of the token's own row, wherever that lies: end to end, packed, or padded; padding gets
    none. The random numbers are torch's, which the loop seeds for each step. Jain et al. 2023 (arXiv
    2310.05914), algorithm 1.
    """
    width = states.shape[-1]
    scales = [alpha / math.sqrt(row * width) if row else 0.0 for _, row in pieces]
    counts = [count for count, _ in pieces]
    scales.append(0.0)
    counts.append(len(states) - sum(counts))
    spread = torch.repeat_interleave(torch.tensor(scales), torch.tensor(counts))[:, None].to(states)
    return torch.rand_like(states).mul_(2).sub_(1).mul_(spread).add_(states)
