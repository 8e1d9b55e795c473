"""The predicted peak of memory, by part, from the model's shape; pure arithmetic, so instant.

The figure is for what the worker runs: transformers + peft, fp32 adapters under autocast, rows padded to
the longest of the batch, attention through SDPA, and a loss that only ever holds the logits of a chunk of
supervised tokens. What a step allocates comes from `formula`; here stands what comes on top.
"""

from __future__ import annotations

from ollama_tune.core.machine.values import Gpu, Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.formula import Formula
from ollama_tune.core.plan.predict import CUDA_CONTEXT
from ollama_tune.core.plan.request import as_request
from ollama_tune.core.plan.settings import Settings, TrainingSettings
from ollama_tune.core.plan.shape import Shape
from ollama_tune.core.plan.values import MemoryEstimate, MemoryPart

GIB = 1 << 30
PYTHON_BASE = GIB // 2
"""A worker with torch, transformers and peft imported and one step done; measured."""
HEAP_COPIES = 48
HEAP_LIMIT = int(0.75 * GIB)
"""The C library keeps about that many freed buffers of a layer, of 32 MiB at most; measured."""
ALLOCATOR = 0.08
"""Share by which PyTorch's reserved memory exceeds what is allocated besides the weights."""
_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "loss")


def adapter_parameters(spec: ModelSpec, rank: int, targets: str | list[str] = "all-linear") -> int:
    """Trained parameters: rank x (inputs + outputs) of every target, in every layer."""
    shape = Shape.of(spec)
    return shape.L * rank * sum(inside + outside for inside, outside in shape.targets(targets).values())


def linear_parameters(spec: ModelSpec) -> int:
    """Weights of the layers' linear modules (what NF4 shrinks), without embeddings and head."""
    return min(Shape.of(spec).linear_parameters(), spec.parameters)


def weight_bytes(spec: ModelSpec, training: TrainingSettings) -> int:
    """The frozen base weights as the worker holds them."""
    return int(_formula(training, spec, training.sequence_length).weights())


def _formula(training: TrainingSettings, spec: ModelSpec, longest: int) -> Formula:
    return Formula(Shape.of(spec), as_request(training, longest))


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
    formula = _formula(training, spec, longest)
    found = formula.parts()
    parts = {name: found[name] for name in _PARTS}
    moving = sum(size for name, size in parts.items() if name != "weights")
    parts["other"] = int(ALLOCATOR * moving)
    if training.device == "cuda":
        parts |= {"workspaces": found["workspaces"], "context": CUDA_CONTEXT}
    else:
        parts["other"] += PYTHON_BASE + _heap(formula)
    return tuple(MemoryPart(name, count) for name, count in parts.items())


def _heap(formula: Formula) -> int:
    """Memory of a CPU worker that is free but not given back to the system."""
    walk = formula.walk
    buffer = walk.tokens * (formula.shape.H + formula.shape.I) * walk.size
    return min(HEAP_COPIES * buffer, HEAP_LIMIT)


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
