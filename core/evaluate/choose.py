"""Chooses the next token of each row from its logits: the most likely one, or one that is drawn."""

from __future__ import annotations

import torch

from ollama_tune.core.evaluate.asking import Sampling
from ollama_tune.core.train.path import Choose


def chooser(sampling: Sampling) -> Choose | None:
    """A chooser that begins at the seed; None where the most likely token is taken."""
    return None if sampling.greedy else _Draw(sampling)


class _Draw:
    """Draws tokens with random numbers of its own, made where the logits are."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random: torch.Generator | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        wanted = self._sampling
        if self._random is None:
            self._random = torch.Generator(logits.device).manual_seed(wanted.seed)
        shares = (logits.float() / wanted.temperature).softmax(-1)
        if not wanted.top_k and wanted.top_p >= 1:
            return torch.multinomial(shares, 1, generator=self._random)[:, 0]
        shares, tokens = shares.topk(min(wanted.top_k or shares.shape[-1], shares.shape[-1]))
        drawn = torch.multinomial(_likely(shares, wanted.top_p), 1, generator=self._random)
        return tokens.gather(-1, drawn)[:, 0]


def _likely(shares: torch.Tensor, top_p: float) -> torch.Tensor:
    """Shares in falling order (rows x tokens) with those at 0 before which the others sum to `top_p`."""
    before = shares.cumsum(-1) - shares
    return shares.where(before < top_p * shares.sum(-1, keepdim=True), 0.0)
