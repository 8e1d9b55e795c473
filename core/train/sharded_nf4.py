"""4-bit layers of a model that is shared out: a rank holds its part of their numbers and of their scales.

bitsandbytes ties the scales of a weight to its parameter, of which torch's FSDP2 makes others, and needs the
whole of them beside. Here both are parameters of the layer, gathered with it and dropped after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit


class SharedLinear4bit(Linear4bit):  # type: ignore[misc]
    """A layer whose 4-bit numbers (`weight`) and 8-bit scales (`scales`) can be shared out, as parameters."""

    scales: torch.nn.Parameter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer computes that was not shared out, with what was gathered."""
        state: Any = self.quant_state
        state.absmax, self.weight.quant_state = self.scales, state
        found: torch.Tensor = super().forward(x)
        return found


def open_up(layers: torch.nn.Module, device: str) -> None:
    """Make all 4-bit layers below ready for `fully_shard`; their small tables go to the device."""
    for module in layers.modules():
        if type(module) is Linear4bit:
            packed: Any = module.weight
            state: Any = packed.quant_state
            state.to(device)
            module.__class__ = SharedLinear4bit
            module.quant_state = state
            module.weight = _frozen(packed.data)
            module.scales = _frozen(state.absmax)
            state.absmax = None


def _frozen(numbers: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(numbers.view(numbers.shape), requires_grad=False)


@contextlib.contextmanager
def rounded_on(device: str) -> Iterator[None]:
    """While it lasts, weights that are loaded into the computer's memory in 4 bit are rounded on this device.

    The CPU rounds five million numbers a second on two cores (measured), a GPU a thousand times as many.
    """
    plain: Callable[..., Any] = Params4bit._quantize

    def elsewhere(weight: Any, target: Any) -> Any:
        rounded = plain(weight, device)
        rounded.data = rounded.data.to(target)
        rounded.quant_state.to(target)
        return rounded

    Params4bit._quantize = elsewhere
    try:
        yield
    finally:
        Params4bit._quantize = plain
