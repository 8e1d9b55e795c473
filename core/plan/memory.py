"""The predicted peak of memory, by part, from the model's shape; pure arithmetic, so instant.

The formula is for what the worker runs: transformers + peft, fp32 adapters under autocast, rows
padded to the longest of the batch, attention through SDPA, and a loss that only ever holds the
logits of a chunk of supervised tokens. Bytes a token and layer follow the tensors that backward
needs, for Llama-type layers: two norms, q k v o, and a gated MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

from ollama_tune.core.machine.values import Gpu, Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from ollama_tune.core.plan.values import MemoryEstimate, MemoryPart

GIB = 1 << 30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 0.5 + 1 / 64 + 4 / 16384
"""Bytes a weight in NF4 with double quantization: half a byte, and scales of 64 and 16,384 weights."""
LOSS_CHUNK = 512
LOSS_COPIES = 3
"""Logits, their softmax and the gradient, each chunk x vocabulary in fp32."""
PYTHON_BASE = GIB // 2
"""A worker with torch, transformers and peft imported and one step done; measured."""
HEAP_COPIES = 48
HEAP_LIMIT = int(0.75 * GIB)
"""The C library keeps about that many freed buffers of a layer, of 32 MiB at most; measured."""
CUDA_CONTEXT = int(0.8 * GIB)
ALLOCATOR = 0.08
"""Share by which PyTorch's reserved memory exceeds the allocated with padded batches."""


@dataclass(frozen=True)
class _Shape:
    """Sizes that the formula needs, with the field's usual letters: Q and K are all heads' width."""

    H: int
    I: int  # noqa: E741
    Q: int
    K: int
    V: int
    L: int

    @classmethod
    def of(cls, spec: ModelSpec) -> _Shape:
        return cls(
            spec.hidden_size,
            spec.intermediate_size,
            spec.heads * spec.head_dim,
            spec.key_value_heads * spec.head_dim,
            spec.vocabulary_size,
            spec.layers,
        )

    def linear(self) -> dict[str, tuple[int, int]]:
        """Input and output width of a layer's linear modules by name."""
        return {
            "q_proj": (self.H, self.Q),
            "k_proj": (self.H, self.K),
            "v_proj": (self.H, self.K),
            "o_proj": (self.Q, self.H),
            "gate_proj": (self.H, self.I),
            "up_proj": (self.H, self.I),
            "down_proj": (self.I, self.H),
        }


def _targets(spec: ModelSpec, targets: str | list[str]) -> dict[str, tuple[int, int]]:
    known = _Shape.of(spec).linear()
    if isinstance(targets, str):
        return known
    other = (spec.hidden_size, spec.hidden_size)
    return {name: known.get(name.rsplit(".", 1)[-1], other) for name in targets}


def adapter_parameters(spec: ModelSpec, rank: int, targets: str | list[str] = "all-linear") -> int:
    """Trained parameters: rank x (inputs + outputs) of every target, in every layer."""
    return spec.layers * rank * sum(a + b for a, b in _targets(spec, targets).values())


def linear_parameters(spec: ModelSpec) -> int:
    """Weights of the layers' linear modules (what NF4 shrinks), without embeddings and head."""
    wanted = spec.layers * sum(a * b for a, b in _Shape.of(spec).linear().values())
    return min(wanted, spec.parameters)


def weight_bytes(spec: ModelSpec, training: TrainingSettings) -> int:
    """The frozen base weights as the worker holds them."""
    size = DTYPE_BYTES[training.compute_dtype]
    if training.quantization == "none":
        return spec.parameters * size
    linear = linear_parameters(spec)
    return int(linear * NF4_BYTES) + (spec.parameters - linear) * size


@dataclass(frozen=True)
class _Batch:
    """The worst micro-batch: its longest rows, padded; all figures in bytes."""

    spec: ModelSpec
    training: TrainingSettings
    row: int

    @property
    def tokens(self) -> int:
        return self.training.batch_size * self.row

    @property
    def size(self) -> int:
        return DTYPE_BYTES[self.training.compute_dtype]

    @property
    def shape(self) -> _Shape:
        return _Shape.of(self.spec)

    def kept(self) -> int:
        """What the forward pass leaves for backward: every layer's tensors, or only its input."""
        if self.training.gradient_checkpointing:
            return self.tokens * self.size * self.shape.H * self.shape.L
        return self.shape.L * self._saved()

    def layer(self) -> int:
        """What backward needs besides, inside one layer: its recomputed tensors and their gradients."""
        again = self._saved() if self.training.gradient_checkpointing else 0
        gradients = self.tokens * self.size * 2 * (self.shape.I + self.shape.H)
        return again + gradients + self._dequantized()

    def states(self) -> int:
        """The last hidden states of the supervised tokens, and their gradient."""
        return 2 * self.tokens * self.shape.H * self.size

    def logits(self) -> int:
        """A chunk of logits with its copies; in 16 bit there is one copy more."""
        bytes_a_logit = 4 * LOSS_COPIES + (2 if self.size == 2 else 0)
        return min(self.tokens, LOSS_CHUNK) * self.shape.V * bytes_a_logit

    def heap(self) -> int:
        """Memory of a CPU worker that is free but not given back to the system."""
        buffer = self.tokens * (self.shape.H + self.shape.I) * self.size
        return min(HEAP_COPIES * buffer, HEAP_LIMIT)

    def _saved(self) -> int:
        """One layer's tensors that backward needs.

        Autocast gives every adapter its own 16-bit copy of its input; in float32 adapters share
        theirs. With more than one row SDPA gets keys and values repeated for all heads, and a mask.
        """
        shape, size, training = self.shape, self.size, self.training
        keys = shape.K if training.batch_size == 1 else shape.Q
        targets = _targets(self.spec, training.targets)
        inputs = sum(inside for inside, _ in targets.values())
        read = inputs if size == 2 else 2 * shape.H + shape.I
        values = 5 * shape.H + 2 * shape.Q + 2 * keys + 3 * shape.I + read
        dropped = (size + 1) * inputs if training.dropout else 0
        mask = self.row * size if training.batch_size > 1 else 0
        return self.tokens * (values * size + dropped + 4 * training.rank * len(targets) + mask)

    def _dequantized(self) -> int:
        """NF4 only: the largest weight in full, and its scales."""
        if self.training.quantization == "none":
            return 0
        return int(self.size * max(self.shape.I, self.shape.Q) * self.shape.H * (1 + 1 / 16))


def _moving(batch: _Batch) -> dict[str, int]:
    """Activations and loss at the worse of two moments: in the loss, or in a layer's backward pass."""
    in_loss = {"activations": batch.kept(), "loss": batch.states() + batch.logits()}
    in_layer = {"activations": batch.kept() + batch.layer(), "loss": batch.states()}
    return max(in_loss, in_layer, key=lambda moment: sum(moment.values()))


def predict(settings: Settings, spec: ModelSpec, machine: Machine, longest: int) -> MemoryEstimate:
    """The peak of training by part against what is free; `longest` is the longest row in tokens.

    On the CPU `free` is the RAM available; on a GPU the driver's free memory less a spare for the
    desktop and for what changes during the run.
    """
    free, total = _free(settings.training.device, machine)
    parts = predict_parts(settings.training, spec, longest)
    return MemoryEstimate(settings.training.device, parts, free, total, "formula from the model's shape")


def predict_parts(training: TrainingSettings, spec: ModelSpec, longest: int) -> tuple[MemoryPart, ...]:
    """The parts of the peak; `longest` is the longest row in tokens."""
    batch = _Batch(spec, training, max(min(longest, training.sequence_length), 1))
    adapter = 4 * adapter_parameters(spec, training.rank, training.targets)
    parts = {
        "weights": weight_bytes(spec, training),
        "adapter": adapter,
        "gradients": adapter,
        "optimizer": 2 * adapter,
        **_moving(batch),
    }
    parts["other"] = int(ALLOCATOR * (sum(parts.values()) - parts["weights"]))
    if training.device == "cuda":
        parts["context"] = CUDA_CONTEXT
    else:
        parts["other"] += PYTHON_BASE + batch.heap()
    return tuple(MemoryPart(name, count) for name, count in parts.items())


def _free(device: str, machine: Machine) -> tuple[int, int]:
    if device == "cpu":
        return machine.host.ram_available, machine.host.ram_total
    if not machine.gpu.gpus:
        return 0, 0
    gpu = machine.gpu.gpus[0]
    return max(gpu.free - _spare(gpu), 0), gpu.total


def _spare(gpu: Gpu) -> int:
    desktop = GIB // 2 if gpu.display else 0
    return max(GIB // 4, gpu.total // 50) + desktop
