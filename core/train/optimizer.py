"""The optimizers of a training, quick to make, and their states as tensors of a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import TrainingSettings

if TYPE_CHECKING:
    from ollama_tune.core.plan.request import AnyOptimizer


SMALL_STATE = 4096
"""bitsandbytes keeps the states of tensors with fewer values in float32."""
SMALL_PAGE = 100_000
"""States with fewer values stay on the GPU with paged optimizers."""
STATE_BLOCK = 256


class AdamW(torch.optim.AdamW):
    """torch's AdamW without what its decorators import at first use.

    `add_param_group`, `zero_grad` and `step` are wrapped for torch.compile, whose import takes a second that
    the first optimizer step would wait for. The functions inside are used as they are.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Change the weights by their gradients."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)


def make_optimizer(
    training: TrainingSettings, weights: Mapping[str, torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The chosen optimizer of these weights, in one group, so that `param_groups[0]["lr"]` is the rate.

    Fused AdamW allocates nothing in an update. Those of bitsandbytes, imported when chosen, hold both
    averages in 8 bit with a scale every 256 values, of tensors with fewer than 4,096 values in float32.
    """
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adamw":
        return AdamW(weights.values(), lr=rate, weight_decay=decay, fused=True)
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind = AdamW8bit if training.optimizer == "adamw_8bit" else PagedAdamW8bit
    found: torch.optim.Optimizer = kind(weights.values(), lr=rate, weight_decay=decay)
    return found


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """The states on the CPU by `state:weight`, such as `exp_avg:…lora_A.weight`; none before the first step.

    The tables of 8-bit values are left out, for they are always the same.
    """
    return {
        f"{key}:{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for name, weight in weights.items()
        for key, value in optimizer.state.get(weight, {}).items()
        if not key.startswith("qmap")
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Put the states of a checkpoint into the optimizer, bit for bit; an empty one is from before the start.

    Raises `TuneError` where they are not the states of these weights.
    """
    states: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, weight_name = name.partition(":")
        states.setdefault(weight_name, {})[kind] = tensor
    if states and set(states) != set(weights):
        raise TuneError("The checkpoint's optimizer is of another adapter.", "Start a new run.")
    for place, (name, state) in enumerate(states.items()):
        weight = weights[name]
        if isinstance(optimizer, AdamW):
            optimizer.state[weight] = {kind: tensor.to(weight.device) for kind, tensor in state.items()}
        else:
            _fill(optimizer, weight, place, state)


def _fill(optimizer: Any, weight: torch.nn.Parameter, place: int, state: Mapping[str, torch.Tensor]) -> None:
    """Make bitsandbytes' states of a weight, which for a paged optimizer lie in memory of its own, and fill
    them."""
    optimizer.init_state(optimizer.param_groups[0], weight, 0, place)
    made = optimizer.state[weight]
    for kind, tensor in state.items():
        if kind == "step":
            made[kind] = int(tensor)
        else:
            made[kind].copy_(tensor)


def state_sizes(weight: torch.Tensor, kind: AnyOptimizer) -> list[int]:
    """Bytes on the GPU of the states of a weight; what a paged optimizer moves away is none of them."""
    count = weight.numel()
    paged = kind.startswith("paged") and count >= SMALL_PAGE
    if kind.endswith("8bit") and count >= SMALL_STATE:
        scales = 4 * -(-count // STATE_BLOCK)
        return [scales, scales] if paged else [count, count, scales, scales]
    if kind == "paged_adamw" or kind.endswith("8bit"):
        return [] if paged else [4 * count, 4 * count]
    return [count * weight.element_size()] * 2


def updates(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> int:
    """How often a weight was updated."""
    return int(optimizer.state.get(weight, {}).get("step", 0))


def forget_half_made(optimizer: torch.optim.Optimizer) -> None:
    """Drop states that were being made when memory ran out; the next step makes them anew."""
    last = {"exp_avg_sq", "absmax2"}
    for weight, state in list(optimizer.state.items()):
        small = "state2" in state and state["state2"].dtype == torch.float32
        if not small and last.isdisjoint(state):
            del optimizer.state[weight]
