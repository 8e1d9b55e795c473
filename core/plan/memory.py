"""The predicted peak of memory, by part, from the model's shape; pure arithmetic, so instant.

The formula is for what the worker runs: transformers + peft, fp32 adapters, rows padded to the
longest of the batch, attention through SDPA, and a loss that only ever holds the logits of a chunk
of supervised tokens. Bytes a token and layer follow the tensors that backward needs, for Llama-type
layers: two norms, q k v o, and a gated MLP.
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
PYTHON_BASE = int(0.6 * GIB)
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


def activation_bytes(spec: ModelSpec, training: TrainingSettings, longest: int) -> int:
    """What backward keeps, plus the gradients inside the layer it is in; the worst padded batch."""
    shape, size = _Shape.of(spec), DTYPE_BYTES[training.compute_dtype]
    row = max(min(longest, training.sequence_length), 1)
    tokens = training.batch_size * row
    saved = tokens * _saved_per_token(shape, spec, training, size) + _mask_bytes(training, row, size)
    work = tokens * size * 2 * (shape.I + shape.H) + _dequantized(shape, training, size)
    if training.gradient_checkpointing:
        return tokens * size * shape.H * shape.L + saved + work
    return shape.L * saved + work


def _saved_per_token(shape: _Shape, spec: ModelSpec, training: TrainingSettings, size: int) -> int:
    """Values a token and layer that backward needs, in bytes (planning reference, section 4)."""
    keys = shape.K if training.batch_size == 1 else shape.Q
    values = 7 * shape.H + 2 * shape.Q + 2 * keys + 4 * shape.I
    targets = _targets(spec, training.targets)
    values += shape.I if any(name.endswith("down_proj") for name in targets) else 0
    inputs = sum(inside for inside, _ in targets.values())
    copies = 4 * inputs if size == 2 else 0
    dropped = (5 if size == 2 else 4) * inputs if training.dropout else 0
    ranks = 4 * training.rank * len(targets)
    return values * size + copies + dropped + ranks


def _mask_bytes(training: TrainingSettings, row: int, size: int) -> int:
    """A layer's attention mask: rows of different length need one of length x length each."""
    return training.batch_size * row * row * size if training.batch_size > 1 else 0


def _dequantized(shape: _Shape, training: TrainingSettings, size: int) -> int:
    """NF4 only: the largest weight in full, and its scales."""
    if training.quantization == "none":
        return 0
    return int(size * max(shape.I * shape.H, shape.Q * shape.H) * (1 + 1 / 16))


def loss_bytes(spec: ModelSpec, training: TrainingSettings, longest: int) -> int:
    """A chunk of logits in fp32 with its copies, and the gathered hidden states with their gradient."""
    tokens = training.batch_size * max(min(longest, training.sequence_length), 1)
    logits = min(tokens, LOSS_CHUNK) * spec.vocabulary_size * 4 * LOSS_COPIES
    return logits + 2 * tokens * spec.hidden_size * DTYPE_BYTES[training.compute_dtype]


def predict(settings: Settings, spec: ModelSpec, machine: Machine, longest: int) -> MemoryEstimate:
    """The peak of training by part against what is free; `longest` is the longest row in tokens.

    On the CPU `free` is the RAM available; on a GPU the driver's free memory less a spare for the
    desktop and for what changes during the run.
    """
    training = settings.training
    adapter = 4 * adapter_parameters(spec, training.rank, training.targets)
    parts = {
        "weights": weight_bytes(spec, training),
        "adapter": adapter,
        "gradients": adapter,
        "optimizer": 2 * adapter,
        "activations": activation_bytes(spec, training, longest),
        "loss": loss_bytes(spec, training, longest),
    }
    moving = sum(parts.values()) - parts["weights"]
    if training.device == "cuda":
        parts |= {"context": CUDA_CONTEXT, "other": int(ALLOCATOR * moving)}
    else:
        parts["other"] = PYTHON_BASE + int(ALLOCATOR * moving)
    free, total = _free(training.device, machine)
    found = tuple(MemoryPart(name, count) for name, count in parts.items())
    return MemoryEstimate(training.device, found, free, total, "formula from the model's shape")


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
