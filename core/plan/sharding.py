"""What several processes add to the memory of one, and what sharing out the model's layers takes from it.

Follows `train/ranks`: every process has the adapter, its gradients and the embeddings whole; the frozen
weights of the layers are whole too (ddp), or each process keeps a part of every layer and gathers the rest
for the time that the layer is computed (fsdp). The optimizer's averages are the first process' alone, which
is the one that is predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ollama_tune.core.plan.formula import NF4_BYTES
from ollama_tune.core.plan.layer_walk import DTYPE_BYTES
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.plan.shape import Shape

MIB = 1 << 20
FLAT_BUFFER = 32 * MIB
"""Weights and gradients travel in flat tensors of at most so many bytes: fast, and small beside a model."""
GATHERED = 3.5
"""Layers whose weights are whole at once: the one that is computed, the next, and what was just received of
both; 2.4 to 3.4 measured on two to four processes."""
LINKS = 300 * MIB
"""What NCCL keeps on a GPU for its channels to the others; a usual figure, not measured here."""


def can_share_out(training: TrainingSettings) -> bool:
    """Whether the model's layers can be shared out (fsdp) with these settings."""
    plain = training.method == "lora" and not training.dora and training.path != "fast"
    return plain and training.device == "cuda"


def layer_weights(shape: Shape) -> int:
    """The frozen weights that are shared out: all but the embedding and a head of its own."""
    return shape.parameters - shape.V * shape.H * (1 if shape.tied else 2)


def layer_bytes(shape: Shape, training: TrainingSettings) -> float:
    """The bytes of these weights, as they are held and as they travel."""
    linear = shape.linear_parameters() if training.quantization == "nf4" else 0
    linear = min(linear, layer_weights(shape))
    return linear * NF4_BYTES + (layer_weights(shape) - linear) * DTYPE_BYTES[training.compute_dtype]


def held_weights(shape: Shape, training: TrainingSettings, world: int) -> int:
    """Bytes of layers that one of so many processes holds at most: its part of all, and those gathered."""
    whole = layer_bytes(shape, training)
    gathered = min(GATHERED * whole / shape.L, whole)
    return round(min(whole / world + gathered, whole))


def of_many(found: Mapping[str, int], shape: Shape, training: TrainingSettings, world: int) -> dict[str, int]:
    """The parts of one process' peak, from those of a run alone with its share of the rows."""
    parts = Counter(found)
    if world == 1:
        return dict(parts)
    if training.sharding == "fsdp":
        parts["weights"] -= round(layer_bytes(shape, training)) - held_weights(shape, training, world)
    parts["gradients"] += min(parts["adapter"], FLAT_BUFFER)
    if training.device == "cuda":
        parts["workspaces"] += LINKS
    return dict(parts)
