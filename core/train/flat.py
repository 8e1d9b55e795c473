"""Weights and gradients of all ranks by torch's collectives, many tensors in one buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    Move = Callable[[torch.Tensor], object]

BUFFER = 32 << 20
"""Bytes of a buffer: large enough to be fast, small beside a model."""


def buckets(weights: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The weights in their order, in parts of one dtype that fill a buffer."""
    part: list[torch.Tensor] = []
    for weight in weights:
        full = part and sum(each.nbytes for each in part) + weight.nbytes > BUFFER
        if full or (part and part[0].dtype != weight.dtype):
            yield part
            part = []
        part.append(weight)
    if part:
        yield part


@torch.no_grad()
def broadcast(weights: Sequence[torch.Tensor]) -> None:
    """Give every rank the weights of rank 0."""
    for part in buckets(weights):
        flat = torch.cat([weight.detach().reshape(-1) for weight in part])
        dist.broadcast(flat, src=0)
        for weight, piece in zip(part, torch.split(flat, [weight.numel() for weight in part]), strict=True):
            weight.copy_(piece.view_as(weight))
    _settle(weights)


@torch.no_grad()
def reduce(weights: Sequence[torch.Tensor], factor: float, *, leads: bool) -> None:
    """Sum up all ranks' gradients at rank 0, times `factor`; the others lose theirs.

    A weight that has no gradient on any rank has none afterwards, as with one process.
    """
    present = torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device)
    dist.reduce(present, dst=0)
    anywhere = dict(zip(map(id, weights), present.tolist(), strict=True))
    for part in buckets(weights):
        flat = torch.cat([_gradient(weight).reshape(-1) for weight in part])
        dist.reduce(flat, dst=0)
        if leads and factor != 1.0:
            flat *= factor
        for weight, piece in zip(part, torch.split(flat, [weight.numel() for weight in part]), strict=True):
            weight.grad = piece.view_as(weight) if leads and anywhere[id(weight)] else None
    _settle(weights)


def _gradient(weight: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _settle(weights: Sequence[torch.Tensor]) -> None:
    """NCCL only starts what it is told to; a rank that hangs there shall be noticed there."""
    if weights[0].is_cuda:
        torch.cuda.synchronize()
