"""The closed formula: the peak of a training step on a GPU by part. Pure arithmetic, so instant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from ollama_tune.core.plan.layer_walk import LayerWalk
from ollama_tune.core.plan.methods import state_bytes
from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.plan.shape import Shape

NF4_BYTES = 0.5 + 1 / 64 + 4 / 16384
"""Bytes a weight in NF4 with double quantization: half a byte, and scales of 64 and 16,384 weights."""
LOSS_CHUNK, LOSS_STEP = 512, 128
"""Tokens whose logits exist at once, and what their number is a multiple of in 16 bit."""
CUBLAS = 2 * (4096 * 1024 * 2 + 16 * 1024 * 8)
"""cuBLAS' workspaces of the forward and the backward thread."""
CUBLAS_HOPPER = 2 * 4096 * 1024 * 8

TOKEN_STEPS = ((0, 256, 32), (256, 512, 64), (512, 1 << 30, 128))
"""From, to and step of the numbers of tokens that a micro-batch is filled up to in 16 bit on the CPU."""

KEEPING = ("none", "mlp")
"""Ways of recomputing in which layers keep more than their input."""

Parts = Counter[str]


@dataclass(frozen=True)
class Formula:
    """The peak of training a model of this shape as the request says; all sizes in bytes."""

    shape: Shape
    request: MemoryRequest

    @cached_property
    def walk(self) -> LayerWalk:
        """One layer in detail."""
        return LayerWalk(self.shape, self.request)

    def products(self) -> int:
        """Matrix products of different shapes that a run may compute, forward and backward.

        Tokens come in steps of 32 up to 256, of 64 up to 512, then of 128 (`train/general.even`); those of a
        chunk of the head by 128.
        """
        tokens, sizes = self.walk.tokens, len(set(self.shape.linear().values()))
        rows = sum(max(-(-(min(tokens, to) - low) // step), 0) for low, to, step in TOKEN_STEPS)
        if self.walk.full:
            return 3 * (sizes * rows + min(-(-tokens // LOSS_STEP), LOSS_CHUNK // LOSS_STEP))
        adapter = {size for i, o in self.walk.targets.values() for size in ((i, 0), (0, o))}
        return rows * (2 * sizes + 3 * len(adapter) + 2)

    def weights(self) -> float:
        """The base weights as they are held."""
        shape = self.shape
        if self.walk.full:
            return shape.parameters * self.walk.trained_size
        linear = min(shape.linear_parameters(), shape.parameters) if self.walk.nf4 else 0
        rest = 4 if self.request.kbit_preparation else self.walk.size
        return linear * NF4_BYTES + (shape.parameters - linear) * rest

    def states(self) -> float:
        """The optimizer's states on the GPU."""
        return self.walk.trained_weights * state_bytes(self.request.optimizer, self.walk.trained_size)

    def static(self) -> Parts:
        """What lives through the whole training."""
        trained = self.walk.trained_weights * self.walk.trained_size
        workspace = CUBLAS_HOPPER if self.request.hopper else CUBLAS
        return Counter(
            weights=round(self.weights()),
            adapter=0 if self.walk.full else trained,
            optimizer=round(self.states()),
            workspaces=workspace,
        )

    def parts(self) -> Parts:
        """The peak by part: the highest of the moments of a step."""
        highest = max(self._moments(), key=lambda moment: sum(moment.values()))
        return self.static() + highest

    def _moments(self) -> list[Parts]:
        """In the loss, in its backward pass, in the last norm, in the last and first layer, in the update."""
        request, walk = self.request, self.walk
        gradients = walk.trained_weights * walk.trained_size
        before = gradients if request.gradient_accumulation_steps > 1 else 0
        hidden = walk.tokens * walk.between * self.shape.H
        norm = walk.tokens * 4 * self.shape.H
        alive = self._kept() + self._masks()
        thawed = walk.full and walk.layers == self.shape.L
        embedding = self.shape.V * self.shape.H * walk.trained_size if thawed else 0
        loss, loss_backward = self._loss()
        moments = [
            self._moment(before, alive + norm + self._copies(), loss),
            self._moment(before, alive + norm, loss_backward),
            self._moment(before, alive + 6 * norm, hidden),
            self._moment(gradients, 2 * hidden + (embedding if self.shape.tied else 0), 0),
            self._moment(gradients, 0, 0),
        ]
        if request.optimizer == "adamw_foreach":
            moments[-1]["optimizer"] = gradients
        for masked in self._layers:
            layer = walk.backward(masked)
            rest = alive - (self._saved(masked) if request.gradient_checkpointing in KEEPING else 0)
            first = hidden + self._masks() + layer
            moments.append(self._moment(before, rest + layer, 0))
            moments.append(self._moment(max(gradients - embedding, before), first, 0))
        return moments

    @staticmethod
    def _moment(gradients: float, activations: float, loss: float) -> Parts:
        return Counter(gradients=round(gradients), activations=round(activations), loss=round(loss))

    @cached_property
    def _windows(self) -> Counter[int]:
        """How many layers have which sliding window."""
        return Counter(self.shape.windows) or Counter({0: self.shape.L})

    @cached_property
    def _layers(self) -> Counter[bool]:
        """How many of the layers that learn get a mask, and how many none."""
        windows = self.shape.windows or (0,) * self.shape.L
        return Counter(self.walk.masked(window) for window in windows[self.request.freeze_layers :])

    def _kept(self) -> float:
        """What the forward pass leaves on the device: each layer's tensors, or its input, or nothing."""
        if self.request.gradient_checkpointing == "offload":
            return 0.0
        if self.request.gradient_checkpointing == "layers":
            return self.walk.tokens * self.walk.between * self.shape.H * self.walk.layers
        return sum(count * self._saved(masked) for masked, count in self._layers.items())

    def _saved(self, masked: bool) -> float:
        """What a layer that keeps its tensors leaves."""
        less = self.walk.recomputed() if self.request.gradient_checkpointing == "mlp" else 0
        return self.walk.saved(masked) - less

    def _masks(self) -> float:
        """The masks themselves, one for each kind of layer that has one: of truths, or to be added."""
        kinds = sum(self.walk.masked(window) for window in self._windows)
        size = self.walk.size if self.walk.eager else 1
        return kinds * size * self.walk.tokens * self.request.sequence_length

    def _copies(self) -> float:
        """Autocast's 16-bit copies of the trained weights, which live until the forward pass ends.

        Without checkpointing the layers' saved tensors contain them.
        """
        if not self.walk.copied_weights or self.request.gradient_checkpointing in KEEPING:
            return 0
        return self.walk.trained_weights * self.walk.size

    def _loss(self) -> tuple[float, float]:
        """Bytes for the loss besides the hidden states' float32 copy: forward, and in its backward pass.

        12 bytes a logit are the softmax, the gradient of the loss and that of the logits, in float32. Our
        own loss makes the gradient in its forward pass, chunk by chunk.
        """
        tokens, size, V, H = self.walk.tokens, self.walk.size, self.shape.V, self.shape.H
        cap = size if self.shape.logits_cap else 0
        if self.request.loss == "full":
            return tokens * ((size + 8 + cap) * V + size * H), tokens * (12 + cap) * V
        if self.shape.logits_cap or self.shape.logits_scale:
            return tokens * (2 * size + 8 + cap) * V, tokens * (12 + cap) * V
        states = 3 * tokens * size * H
        a_logit = 12 if self.walk.full else 8 if size == 4 else 8 + size
        forward = states + min(tokens, LOSS_CHUNK) * (a_logit * V + size * H)
        if not self.walk.full:
            return forward, states
        if self.shape.tied and self.walk.layers < self.shape.L:  # frozen: autocast copies it, no gradient
            copy = V * H * size if self.walk.wide else 0
            return forward + copy, forward + copy
        return forward, forward + V * H * self.walk.trained_size
