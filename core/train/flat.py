"""Weights and gradients of all ranks by torch's collectives, many tensors in one buffer.

NCCL takes tensors of a GPU only, so everything that travels here is on the device of the weights; what ranks
tell each other in words goes through the key-value store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from ollama_tune.core.plan.sharding import FLAT_BUFFER

_kept: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
"""The buffers, which stay: a rank whose memory ran out in the middle would leave the others waiting."""


def buckets(weights: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The weights in their order, in parts of one dtype that fill a buffer."""
    part: list[torch.Tensor] = []
    for weight in weights:
        full = part and sum(each.nbytes for each in part) + weight.nbytes > FLAT_BUFFER
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
        _sent([weight.detach() for weight in part], lambda flat: dist.broadcast(flat, src=0))
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
        _sent([_gradient(weight) for weight in part], lambda flat: dist.reduce(flat, dst=0))
    for weight in weights:
        if not (leads and anywhere[id(weight)]):
            weight.grad = None
        elif factor != 1.0 and weight.grad is not None:
            weight.grad *= factor
    _settle(weights)


def anywhere(flag: bool, device: str) -> bool:
    """Whether any rank says so."""
    told = torch.full((1,), float(flag), device=device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told.item())


def _sent(tensors: Sequence[torch.Tensor], send: Callable[[torch.Tensor], object]) -> None:
    """Let a collective change tensors of one dtype: a large one as it is, others in a buffer."""
    if len(tensors) == 1 and tensors[0].is_contiguous():
        send(tensors[0].view(-1))
        return
    flat = _buffer(tensors)
    torch.cat([tensor.reshape(-1) for tensor in tensors], out=flat)
    send(flat)
    for tensor, piece in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))


def _buffer(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    count, first = sum(tensor.numel() for tensor in tensors), tensors[0]
    known = _kept.get((first.device, first.dtype))
    if known is None or known.numel() < count:
        known = _kept[first.device, first.dtype] = first.new_empty(count)
    return known[:count]


def _gradient(weight: torch.Tensor) -> torch.Tensor:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def _settle(weights: Sequence[torch.Tensor]) -> None:
    """NCCL only starts what it is told to; a rank that hangs there shall be noticed there."""
    if weights[0].is_cuda:
        torch.cuda.synchronize()
