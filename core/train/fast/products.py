"""Matrix products whose shapes repeat.

For 16-bit numbers on the CPU torch compiles a kernel for every new shape, which takes three to ten times as
long as the product itself (3 to 6 ms of CPU time against 0.5 to 2; small ones 0.5 against 0.05). The tokens
of a stream are therefore a multiple of `EVEN`, and products go over `ROWS` of them at a time: a whole run
then knows a handful of shapes. Everywhere else these are plain products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn import functional

from ollama_tune.core.train.fast.stream import Stream

ROWS = 512
EVEN = 128


def wide(dtype: torch.dtype) -> torch.dtype:
    """The format of sums: float32, or float64 in a run that computes in it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compiled(tensor: torch.Tensor) -> bool:
    """Whether products of such tensors are compiled for their shape."""
    return tensor.is_cpu and tensor.dtype in (torch.bfloat16, torch.float16)


def even(stream: Stream, like: torch.Tensor) -> Stream:
    """The stream with tokens behind its rows, and picked places among them, that nothing depends on."""
    if not compiled(like):
        return stream
    tokens, picked = len(stream.ids), len(stream.picked)
    more, places = EVEN - tokens % EVEN, -picked % EVEN
    return replace(
        stream,
        ids=functional.pad(stream.ids, (0, more)),
        positions=functional.pad(stream.positions, (0, more)),
        picked=functional.pad(stream.picked, (0, places), value=tokens),
    )


def _blocks(states: torch.Tensor) -> Iterator[slice]:
    step = ROWS if compiled(states) else max(len(states), 1)
    return (slice(start, start + step) for start in range(0, max(len(states), 1), step))


def product(states: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """states (tokens x input) times matrix (input x output), plus a bias."""
    out = states.new_empty(len(states), matrix.shape[1])
    for here in _blocks(states):
        if bias is None:
            torch.mm(states[here], matrix, out=out[here])
        else:
            torch.addmm(bias, states[here], matrix, out=out[here])
    return out


def add_product(out: torch.Tensor, states: torch.Tensor, matrix: torch.Tensor) -> None:
    """Add states times matrix to `out`."""
    for here in _blocks(states):
        out[here].addmm_(states[here], matrix)


def contracted(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The sum over tokens of the outer products of two states, in the format of sums."""
    total = None
    for here in _blocks(one):
        part = (one[here].t() @ other[here]).to(wide(one.dtype))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
