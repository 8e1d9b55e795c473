"""PEFT's LoRA layers with less work: one function instead of seven operations with their copies."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.nn import functional


class _Lora(torch.autograd.Function):
    """x W' + x A' (scale B)', in the format of W; kept are x and x A'. W and its bias are frozen.

    PEFT casts x to float32 for A and scales what has the width of the output; nothing of that changes a
    number that autocast does not round again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        inputs = states.reshape(-1, states.shape[-1]).to(weight.dtype)
        ctx.trained = a.dtype
        a, b = a.to(weight.dtype), (b * scale).to(weight.dtype)
        low = inputs @ a.t()
        out = functional.linear(inputs, weight, bias).addmm_(low, b.t())
        ctx.save_for_backward(inputs, low, a, b, weight)
        ctx.scale, ctx.shape, ctx.dtype = scale, states.shape, states.dtype
        return out.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, low, a, b, weight = ctx.saved_tensors
        gradient = outer[0].reshape(-1, outer[0].shape[-1])
        for_low, for_states = gradient @ b, None
        if ctx.needs_input_grad[0]:
            for_states = (gradient @ weight).addmm_(for_low, a).to(ctx.dtype).view(ctx.shape)
        for_a = (for_low.t() @ inputs).to(ctx.trained)
        for_b = (gradient.t() @ low).to(ctx.trained).mul_(ctx.scale)
        return for_states, for_a, for_b, None, None, None


def lighten(model: Any) -> None:
    """Let the layers of a PEFT model that are plain LoRA on a plain linear layer be computed so.

    All others (4 bit, DoRA), and those whose inputs are watched or dropped, are computed by PEFT.
    """
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is torch.nn.Linear:
            module.forward = _Forward(module)


class _Forward:
    """The forward pass of one layer."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._plain = module.forward
        (self._name,) = module.active_adapters

    def __call__(self, states: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        module, base, name = self._module, self._module.base_layer, self._name
        dropped = module.training and not isinstance(module.lora_dropout[name], torch.nn.Identity)
        other = module.disable_adapters or module.merged or module.lora_variant
        if other or dropped or base._forward_pre_hooks:
            found: torch.Tensor = self._plain(states, *rest, **options)
            return found
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        made: torch.Tensor = _Lora.apply(  # type: ignore[no-untyped-call]
            states, a, b, base.weight, base.bias, module.scaling[name]
        )
        return made
