"""Norms, gated activations and linear layers with LoRA, forward and backward by hand.

Each forward returns what its backward needs and no more; nothing here builds an autograd graph. Arithmetic
follows autocast: products in the compute dtype, sums and norms in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from ollama_tune.core.models.blueprint import Activation
from ollama_tune.core.train.fast.adapter import Group, Pair
from ollama_tune.core.train.fast.products import add_product, contracted, product, wide
from ollama_tune.core.train.fast.weights import Weight

aten = torch.ops.aten

NEAR = 128
"""Tokens whose gate and up are activated at once on the CPU; all at once took a fifth longer."""


class Norm:
    """Root mean square norm: x / rms(x) times (weight + shift), over the last dimension."""

    def __init__(self, weight: torch.Tensor, shift: float, epsilon: float) -> None:
        self._weight = weight.to(wide(weight.dtype)) + shift
        self._narrow = weight if not shift else None
        self._epsilon = epsilon
        self._width = weight.numel()

    def scales(self, states: torch.Tensor) -> torch.Tensor:
        """1 / rms of each row of the states (rows x width), rows x 1 in the format of sums."""
        squares: torch.Tensor = torch.linalg.vector_norm(
            states, dim=-1, keepdim=True, dtype=wide(states.dtype)
        ).square_()
        return squares.div_(self._width).add_(self._epsilon).rsqrt_()

    def apply(self, states: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The normed states."""
        if states.dtype == self._weight.dtype:
            return (states * scales).mul_(self._weight)
        if self._narrow is not None and states.is_cpu:
            return _scaled_rows(states, scales).mul_(self._narrow)
        if self._narrow is not None:
            return functional.rms_norm(states, (self._width,), self._narrow, self._epsilon)
        return (states.to(self._weight.dtype).mul_(scales)).mul_(self._weight).to(states.dtype)

    def backward(self, gradient: torch.Tensor, states: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The gradient of the states from that of the normed states."""
        if states.is_cpu:
            return self._backward_cpu(gradient, states, scales)
        if self._narrow is not None:
            return self._backward_kernel(gradient, states)
        upper = gradient.to(self._weight.dtype) * self._weight
        normed = states.to(self._weight.dtype) * scales
        upper -= normed * (upper * normed).mean(-1, keepdim=True)
        return upper.mul_(scales).to(states.dtype)

    def _backward_kernel(self, gradient: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """By torch's own norm, which is one kernel each way on a GPU."""
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            out = functional.rms_norm(leaf, (self._width,), self._narrow, self._epsilon)
        return torch.autograd.grad(out, leaf, gradient)[0]

    def _backward_cpu(
        self, gradient: torch.Tensor, states: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """By the kernel of layer norm, told that the mean is zero, without the mean's own share."""
        zero = torch.zeros_like(scales)
        part: torch.Tensor = aten.native_layer_norm_backward(
            gradient, states, [self._width], zero, scales, self._weight, None, [True, False, False]
        )[0]
        mean = (gradient @ self._weight.to(gradient.dtype)).to(scales.dtype)[:, None] / self._width
        return part.add_((mean * scales).to(part.dtype))


def _scaled_rows(states: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rows of 16-bit numbers times float32 scales in one pass: batch norm's kernel, a channel a row."""
    flat = scales.flatten()
    variance, zero = flat.pow(-2), torch.zeros_like(flat)
    return torch.native_batch_norm(states[None], None, None, zero, variance, False, 0.0, 0.0)[0][0]


def activate(gate_up: torch.Tensor, kind: Activation) -> torch.Tensor:
    """The activation of gate times up (tokens x width); `gate_up` holds both side by side."""
    made = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    for here in _near(gate_up):
        gate, up = gate_up[here].chunk(2, 1)
        torch.mul(_bend(gate, kind), up, out=made[here])
    return made


def activate_backward(
    gradient: torch.Tensor, gate_up: torch.Tensor, kind: Activation
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `activate` made, made again, and the gradients of gate and up side by side."""
    made, both = torch.empty_like(gradient), torch.empty_like(gate_up)
    for here in _near(gate_up):
        gate, up = gate_up[here].chunk(2, 1)
        for_gate, for_up = both[here].chunk(2, 1)
        outer, bent = gradient[here], _bend(gate, kind)
        torch.mul(bent, up, out=made[here])
        torch.mul(bent, outer, out=for_up)
        if kind == "silu":
            aten.silu_backward.grad_input(outer * up, gate, grad_input=for_gate)
        else:
            aten.gelu_backward.grad_input(outer * up, gate, approximate="tanh", grad_input=for_gate)
    return made, both


def _bend(gate: torch.Tensor, kind: Activation) -> torch.Tensor:
    return functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")


def _near(states: torch.Tensor) -> Iterator[slice]:
    """Tokens taken together: on the CPU so few that what is made of them stays in its cache."""
    step = NEAR if states.is_cpu else max(len(states), 1)
    return (slice(start, start + step) for start in range(0, len(states), step))


LEVELS = 1 << 16
"""Values of the random numbers that decide on the CPU what is dropped."""
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their bytes."""


@dataclass(frozen=True)
class Dropped:
    """Dropout of the inputs of A: the share that is zeroed, and the seed that draws the same mask again.

    The projections that are computed together share a mask: four a layer, where PEFT draws seven. What is
    expected of each projection is the same.
    """

    share: float
    seed: int

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """A copy with some numbers zeroed and the others enlarged, the same ones each time."""
        generator = torch.Generator(states.device).manual_seed(self.seed)
        if states.is_cpu:
            return self._of_cpu(states, generator)
        mask = torch.empty_like(states).bernoulli_(1.0 - self.share, generator=generator)
        return mask.mul_(states).div_(1.0 - self.share)

    def _of_cpu(self, states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Four decisions by each random number, and whole numbers to zero by: a fifth of the time.

        The share is rounded to a 65,536th.
        """
        dropped = min(round(self.share * LEVELS), LEVELS - 1)
        drawn = torch.empty(-(-states.numel() // 4), dtype=torch.int64)
        decisions = drawn.random_(-(2**63), None, generator=generator).view(torch.int16)
        kept = decisions[: states.numel()].view(states.shape).ge_(dropped - LEVELS // 2).neg_()
        whole = _WHOLE[states.element_size()]
        made = kept.to(whole).bitwise_and_(states.contiguous().view(whole)).view(states.dtype)
        return made.mul_(LEVELS / (LEVELS - dropped))


class Projection:
    """One frozen product, and LoRA for those of its parts that are trained.

    `refresh` makes the matrices in the compute dtype from the float32 weights; B (output x ranks) holds the
    scale of the adapter.
    """

    def __init__(self, weight: Weight, bias: torch.Tensor | None, group: Group | None, scale: float) -> None:
        self._weight = weight
        self._bias = bias
        self._group = group
        self._scale = scale
        self._a = self._b = torch.empty(0)
        self.weights = [w for pair in group.pairs for w in (pair.a, pair.b)] if group else []

    def _frozen(self) -> torch.Tensor:
        return self._weight if isinstance(self._weight, torch.Tensor) else self._weight.dequantized()

    def refresh(self, dtype: torch.dtype) -> None:
        """Make the matrices of the group anew: all A one below the other, all B on the diagonal.

        A weight does not tell that it was changed: torch's fused optimizers leave its version as it was.
        """
        if self._group is None:
            return
        self._a = torch.cat([pair.a.detach() for pair in self._group.pairs]).to(dtype)
        self._b = self._a.new_zeros(self._weight.shape[0], len(self._a))
        for pair, rows, ranks in self._parts():
            self._b[rows, ranks] = pair.b.detach() * self._scale

    def _parts(self) -> Iterator[tuple[Pair, slice, slice]]:
        """Each trained part with its rows of the output and its columns of x A."""
        assert self._group is not None
        start = 0
        for pair in self._group.pairs:
            yield pair, slice(pair.start, pair.stop), slice(start, start + len(pair.a))
            start += len(pair.a)

    def forward(
        self, states: torch.Tensor, *, adapted: bool, dropped: Dropped | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The product (tokens x output) and, adapted, x A (tokens x ranks), which backward needs."""
        out = product(states, self._frozen().t(), self._bias)
        if not adapted or self._group is None:
            return out, None
        low = product(states if dropped is None else dropped.of(states), self._a.t())
        add_product(out, low, self._b.t())
        return out, low

    def backward(
        self, gradient: torch.Tensor, *, adapted: bool, dropped: Dropped | None = None, inputs: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The gradient of the states where `inputs` asks for it and, adapted, that of x A."""
        made = product(gradient, self._frozen()) if inputs else None
        if not adapted or self._group is None:
            return made, None
        for_low = product(gradient, self._b)
        if made is not None and dropped is None:
            add_product(made, for_low, self._a)
        elif made is not None and dropped is not None:
            made.add_(dropped.of(product(for_low, self._a)))
        return made, for_low

    def gradients(
        self,
        gradient: torch.Tensor,
        for_low: torch.Tensor | None,
        states: torch.Tensor,
        low: torch.Tensor | None,
        dropped: Dropped | None = None,
    ) -> list[torch.Tensor]:
        """The gradients of `weights`, from those of the product and of x A, and from the states and x A."""
        if for_low is None or low is None:
            return []
        for_a = contracted(for_low, states if dropped is None else dropped.of(states))
        found: list[torch.Tensor] = []
        for _, rows, ranks in self._parts():
            found += [for_a[ranks], contracted(gradient[:, rows], low[:, ranks]).mul_(self._scale)]
        return found
