"""One decoder layer in the closed formula: what its forward pass saves, and its backward pass walked.

For layers of the Llama type (norm, q k v, attention, o, norm, gated MLP) with what the families in `shape`
add. Modules come in the order of autograd, each with what it makes and frees. Sizes are bytes; T is the
tokens of a micro-batch. Everything follows from the lists of tensors; nothing is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ollama_tune.core.plan import dora_walk
from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.plan.shape import Shape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FEED_FORWARD = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
FLASH_WIDTH = 256
"""Widest head of the flash kernel."""


class _Ledger:
    """Bytes alive and their highest value."""

    def __init__(self, alive: float) -> None:
        self.alive = self.peak = alive

    def add(self, *sizes: float) -> None:
        """Count tensors that are made."""
        self.alive += sum(sizes)
        self.peak = max(self.peak, self.alive)

    def drop(self, *sizes: float) -> None:
        """Count tensors that are freed."""
        self.alive -= sum(sizes)

    def pass_by(self, *sizes: float) -> None:
        """Count tensors that are made and freed again."""
        self.add(*sizes)
        self.drop(*sizes)


@dataclass(frozen=True)
class LayerWalk:
    """The layers of a model of this shape, trained as the request says."""

    shape: Shape
    request: MemoryRequest

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.request.micro_batch

    @cached_property
    def size(self) -> int:
        """Bytes of a number in the arithmetic."""
        return DTYPE_BYTES[self.request.compute_dtype]

    @cached_property
    def trained_size(self) -> int:
        """Bytes of a trained weight."""
        return DTYPE_BYTES[self.request.trained_dtype]

    @cached_property
    def nf4(self) -> bool:
        """Whether the base weights are quantized."""
        return self.request.quantization == "nf4"

    @cached_property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return self.request.method == "full"

    @cached_property
    def targets(self) -> dict[str, tuple[int, int]]:
        """The modules with an adapter."""
        return {} if self.full else self.shape.targets(self.request.targets)

    @cached_property
    def adapts_experts(self) -> bool:
        """Whether the experts get an adapter: peft then makes their weights anew, with it, in each pass."""
        chosen = self.shape.adapts_experts(self.request.targets, self.request.freeze_layers)
        return chosen and not self.full and self.request.experts

    @cached_property
    def adapter_weights(self) -> int:
        """Weights of the adapter in one layer."""
        asked, experts = self.request, self.adapts_experts
        return self.shape.adapter(asked.rank, asked.targets, dora=asked.dora, experts=experts)

    @cached_property
    def layers(self) -> int:
        """Layers that learn; nothing is kept of those before them, for the backward pass ends there."""
        return self.shape.L - self.request.freeze_layers

    @cached_property
    def trained_weights(self) -> int:
        """Weights that are trained, in all layers."""
        if self.full:
            return self.shape.thawed_weights(self.request.freeze_layers)
        return self.layers * self.adapter_weights

    @cached_property
    def casts(self) -> bool:
        """Whether peft gives every adapter a copy of its input in float32."""
        mixed_4bit = self.nf4 and self.request.mixed
        return self.trained_size > self.size and not mixed_4bit and not self.full

    @cached_property
    def copied_weights(self) -> bool:
        """Whether autocast keeps 16-bit copies of the trained weights."""
        return self.request.mixed and self.trained_size == 4

    @cached_property
    def wide(self) -> bool:
        """Whether the states between the layers are float32 around 16-bit products, as the embedding is."""
        return self.full and self.copied_weights

    @cached_property
    def between(self) -> int:
        """Bytes of a number of the states between the layers."""
        return 4 if self.wide else self.size

    @cached_property
    def eager(self) -> bool:
        """Whether all attention scores are held."""
        chosen = self.request.attention
        if chosen == "flash":
            return False
        plain = self.size == 4 and self.shape.K < self.shape.Q and not self.request.padded
        return chosen == "eager" or plain or self.shape.eager_only

    def masked(self, window: int) -> bool:
        """Whether a layer with this sliding window gets a mask."""
        if self.request.attention == "flash":
            return False
        return self.eager or self.request.padded or 0 < window <= self.request.sequence_length

    def _own_input(self, inside: int) -> float:
        """What an adapter keeps of its input for itself alone, a token; 0 where modules share theirs."""
        mask = inside if self.request.dropout else 0
        if self.casts:
            return inside * (self.size if self.request.mixed else 4) + mask
        return inside * self.size + mask if self.request.dropout else 0

    def _inputs(self) -> float:
        """Inputs of the linear modules that backward needs, a token."""
        shape, found = self.shape, 0.0
        groups = (["q_proj", "k_proj", "v_proj", "qkv_proj"], ["gate_proj", "up_proj", "gate_up_proj"])
        for names in groups:
            own = [self._own_input(self.targets[name][0]) for name in names if name in self.targets]
            shared = self.full or (own and not own[0])
            copies = sum(name in shape.linear() for name in names) if self.wide else 1
            found += copies * shape.H * self.size if shared else sum(own)
        if "o_proj" in self.targets or self.full:
            found += self._own_output()
        if "down_proj" in self.targets:
            found += self._own_input(shape.I) or shape.I * self.size
        return found + (shape.I * self.size if self.full else 0)

    def _own_output(self) -> float:
        """What the adapter on o keeps of its input, a token.

        Attention keeps the same tensor anyway, but flash attention's after fused queries is copied.
        """
        own = self._own_input(self.shape.Q) if "o_proj" in self.targets else 0
        copied = self.eager or self.request.apart or (self.shape.fused and not self.request.padded)
        return own or (self.size * self.shape.Q if copied else 0)

    def _scores(self) -> int:
        """Number of attention scores of a layer."""
        return self.shape.heads * self.tokens * self.request.sequence_length

    def _mask(self) -> int:
        """Number of elements of a mask."""
        return self.tokens * self.request.sequence_length

    def _attention_saved(self, masked: bool) -> float:
        """Queries, keys, values and the result; with a mask keys and values are those of all heads."""
        shape, size = self.shape, self.size
        spread = masked and shape.K < shape.Q
        values = shape.Q + 2 * shape.K if shape.fused else shape.K
        keys_and_values = 2 * shape.Q if spread else shape.K + values
        if self.eager:
            inputs = self.tokens * size * (shape.Q + keys_and_values)
            cap = size if shape.attention_cap else 0
            return inputs + self._scores() * (4 + self._narrow() + cap)
        saved = self.tokens * (size * (2 * shape.Q + keys_and_values) + 4 * shape.heads)
        return saved + (size * self._mask() if masked else 0)

    def _narrow(self) -> int:
        """Bytes a score of the 16-bit copy that eager attention makes of its probabilities."""
        return 0 if self.size == 4 else self.size

    def saved(self, masked: bool) -> float:
        """What the forward pass of a layer leaves for its backward pass."""
        shape, size, tokens = self.shape, self.size, self.tokens
        norms = 4 * shape.norms * shape.H + (4 * (shape.Q + shape.K) if shape.qk_norm else 0)
        if self.full:
            norms += self.between * shape.norms * shape.H
        between = (4 if self.casts and not self.request.mixed else size) * self.request.rank
        values = norms + 3 * size * shape.I + self._inputs() + between * len(self.targets)
        copies = 0
        if self.copied_weights:
            copies = size * (shape.linear_parameters() // shape.L if self.full else self.adapter_weights)
        values = tokens * values + self._attention_saved(masked)
        return values + copies + self._routed() + dora_walk.kept(self)

    def recomputed(self) -> float:
        """How much less a layer keeps when its feed-forward part is computed again from that part's input."""
        shape, size, tokens = self.shape, self.size, self.tokens
        if self.full:
            return tokens * 4 * size * shape.I
        names = [name for name in FEED_FORWARD if name in self.targets]
        own = sum(self._own_input(self.targets[name][0]) for name in names)
        shared = any(name != "down_proj" for name in names) and not self._own_input(shape.H)
        last = size * shape.I if "down_proj" in names and not self._own_input(shape.I) else 0
        between = (4 if self.casts and not self.request.mixed else size) * self.request.rank * len(names)
        again = size * shape.H if shared else 0
        return tokens * (3 * size * shape.I + own + last + between + again) + dora_walk.kept(self, names)

    def _routed(self) -> float:
        """What a mixture of experts keeps besides: each token's rows in the order of the experts and, where
        these have an adapter, their results and the weights made with it. Found by comparing with traces."""
        shape, size = self.shape, self.size
        if not shape.experts:
            return 0
        rows = self.tokens * (shape.I // shape.expert_width)
        if not self.adapts_experts:
            return size * rows * shape.H
        return size * (rows * (2 * shape.H + shape.expert_width) + shape.expert_weights)

    def _last_forward(self) -> float:
        """What the down projection's forward pass needs besides what it saves, when all else is saved.

        Its result, the residual, and the norms' results where the adapters saved copies of their own.
        """
        shape, size = self.shape, self.size
        hidden = self.tokens * size * shape.H
        copied = any(self._own_input(inside) for inside, _ in self.targets.values())
        result = hidden * (4 if copied else 2) + max(dora_walk.forward(self, n) for n in self.shape.linear())
        weight = int(shape.I * shape.H * (size + 8 / 64)) if self.nf4 else 0
        if "down_proj" not in self.targets:
            return result + weight
        product = self.tokens * size * shape.I if self._own_input(shape.I) else 0
        wide = self.tokens * shape.I * (4 if self.casts else 0) * (2 if self.request.dropout else 1)
        base = weight - self.tokens * self._own_input(shape.I)
        return result + product + max(base, wide)

    def _linear(self, ledger: _Ledger, name: str, freed: float) -> None:
        """Backward through a linear module: the gradient of its result is alive, that of its input is made.

        The adapter goes first, then the base weight. `freed` is what the adapter's input held.
        """
        inside, outside = self.shape.linear()[name]
        tokens, size = self.tokens, self.size
        gradient = tokens * size * inside
        adapted = name in self.targets
        if adapted:
            moment, done = dora_walk.backward(self, name)
            ledger.pass_by(moment)
            ledger.drop(done)
            ledger.pass_by(tokens * size * outside)
            ledger.add(gradient)
            wide = tokens * 4 * inside if self.casts else gradient
            ledger.pass_by(wide if self.casts else 0)
            if self.request.dropout:
                ledger.pass_by(2 * wide - gradient)
            ledger.drop(freed)
        weight = inside * outside * size
        ledger.add(gradient, weight if self.nf4 else 0)
        if self.nf4:
            ledger.pass_by(inside * outside // 64 * 4)
        ledger.drop(weight if self.nf4 else 0, gradient if adapted else 0, tokens * size * outside)
        if self.full:
            ledger.drop(freed)
            ledger.add(inside * outside * self.trained_size)

    def _norm(self, ledger: _Ledger, width: int) -> None:
        """Backward through a norm: five float32 tensors at once; its saved input goes."""
        wide = self.tokens * 4 * width
        ledger.pass_by(5 * wide - self.tokens * self.size * width)
        ledger.drop(wide)

    def _mlp_backward(self, ledger: _Ledger) -> None:
        size, tokens, shape = self.size, self.tokens, self.shape
        inner = tokens * size * shape.I
        has_down = "down_proj" in self.targets
        own = tokens * self._own_input(shape.I)
        self._linear(ledger, "down_proj", (own or inner) if has_down or self.full else 0)
        ledger.add(2 * inner)
        ledger.drop(3 * inner)
        ledger.pass_by(inner)
        ledger.drop(inner)
        shared = tokens * size * shape.H
        names = ["gate_up_proj"] if shape.fused else ["up_proj", "gate_proj"]
        if shape.fused:
            ledger.pass_by(2 * inner)
        self._consumers(ledger, names, shared)

    def _consumers(self, ledger: _Ledger, names: list[str], shared: float) -> None:
        """Backward through modules that read the same input: their gradients are added up."""
        own = [self.tokens * self._own_input(self.targets[n][0]) if n in self.targets else 0 for n in names]
        if self.wide:
            own = [shared] * len(names)
        for name, held in zip(names, own, strict=True):
            self._linear(ledger, name, held)
        ledger.drop(shared * (len(names) - 1))
        if (self.full and not self.wide) or (any(name in self.targets for name in names) and not any(own)):
            ledger.drop(shared)

    def _attention_backward(self, ledger: _Ledger, masked: bool) -> None:
        """The gradient of the result is alive; those of queries, keys and values are made."""
        shape, size, tokens = self.shape, self.size, self.tokens
        saved = self._attention_saved(masked)
        queries, keys = tokens * size * shape.Q, tokens * size * shape.K
        if self.eager:
            ledger.pass_by(-queries, self._scores() * (8 - self._narrow()))
            made = 3 * queries
        else:
            flash = not masked and size == 2 and shape.width <= FLASH_WIDTH
            made = queries + 2 * (keys if flash else queries)
            ledger.pass_by(made, self._attention_workspace(flash))
        ledger.add(made)
        ledger.drop(saved, queries)
        ledger.pass_by(3 * queries)
        ledger.drop(made - queries - 2 * keys)

    def _attention_workspace(self, flash: bool) -> float:
        shape, rows = self.shape, 1 if self.request.laid else self.request.rows
        padded = -(-self.request.sequence_length // 128) * 128 * rows * shape.heads
        step = 32 if flash else 64
        width = -(-shape.width // step) * step
        if not flash:
            wide = 2 * padded * width * 4 if shape.width > 128 else 0
            return padded * (4 + width * 4) + wide
        spread = 2 * self.tokens * self.size * shape.Q if shape.K < shape.Q else 0
        return padded * (4 * (256 if shape.width > 128 else width) + 4) + spread

    def backward(self, masked: bool) -> float:
        """The highest number of bytes alive for a layer while its backward pass runs."""
        shape, size, tokens = self.shape, self.size, self.tokens
        hidden = tokens * self.between * shape.H
        ledger = _Ledger(self.saved(masked) + hidden)
        ledger.add(size * shape.expert_weights / 3 if self.adapts_experts else 0)
        ledger.pass_by(self._last_forward())
        ledger.add(hidden)
        if shape.norms == 4:
            self._norm(ledger, shape.H)
        self._mlp_backward(ledger)
        self._norm(ledger, shape.H)
        if shape.norms == 4:
            self._norm(ledger, shape.H)
        self._linear(ledger, "o_proj", tokens * self._own_output())
        self._attention_backward(ledger, masked)
        if shape.qk_norm:
            self._norm(ledger, shape.Q)
        names = ["qkv_proj"] if shape.fused else ["v_proj", "k_proj", "q_proj"]
        self._consumers(ledger, names, tokens * size * shape.H)
        return ledger.peak
