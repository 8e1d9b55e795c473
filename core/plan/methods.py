"""What the ways of training besides plain LoRA add to its arithmetic: ranks, parameters, tokens, memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.impossible import SOFT_PROMPTS
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.plan.shape import Shape

AVERAGES = 3
"""Numbers that AdaLoRA holds for each of its weights: the last importance and two averages of it."""


def initial_rank(rank: int) -> int:
    """The rank that AdaLoRA begins with: half as much again as it keeps on average, as in its paper."""
    return rank + (rank + 1) // 2


def virtual_tokens(training: TrainingSettings) -> int:
    """Tokens that stand before every row."""
    return training.virtual_tokens if training.method in SOFT_PROMPTS else 0


def as_lora(training: TrainingSettings) -> dict[str, Any]:
    """What is otherwise where a method is counted as LoRA: its rank, or no adapted layer at all."""
    if training.method in SOFT_PROMPTS:
        return {"targets": []}
    if training.method == "adalora":
        return {"rank": initial_rank(training.rank), "experts": False}
    return {}


def trained_parameters(training: TrainingSettings, spec: ModelSpec) -> int:
    """Parameters that learn."""
    if training.method == "full":
        return Shape.of(spec).thawed_weights(training.freeze_layers)
    if training.method in SOFT_PROMPTS:
        return prompt_parameters(training, spec)
    return adapter_parameters(training, spec)


def adapter_parameters(training: TrainingSettings, spec: ModelSpec) -> int:
    """Parameters of an adapter, which every token goes through; other methods have none.

    AdaLoRA has a singular value a rank besides, and leaves experts as they are.
    """
    if training.method in (*SOFT_PROMPTS, "full"):
        return 0
    shape, adalora = Shape.of(spec), training.method == "adalora"
    rank = initial_rank(training.rank) if adalora else training.rank
    experts = shape.adapts_experts(training.targets, training.freeze_layers) and not adalora
    layer = shape.adapter(rank, training.targets, dora=training.dora, experts=experts)
    values = rank * len(shape.targets(training.targets)) if adalora else 0
    return (shape.L - training.freeze_layers) * (layer + values)


def prompt_parameters(training: TrainingSettings, spec: ModelSpec) -> int:
    """Parameters of a soft prompt: its vectors, with p-tuning also three layers as wide as the model."""
    width = spec.hidden_size
    network = 3 * (width * width + width) if training.method == "ptuning" else 0
    return training.virtual_tokens * width + network


def state_bytes(optimizer: str, size: int = 4) -> float:
    """Bytes on the device of an optimizer's states for each trained weight of `size` bytes.

    Those in 8 bit have a scale for every 256 numbers; paged ones are elsewhere, but for their scales.
    """
    paged = optimizer.startswith("paged")
    if optimizer.endswith("8bit"):
        return (0 if paged else 2) + 2 * 4 / 256
    return 0 if paged else 2 * size


def extra_parts(training: TrainingSettings, spec: ModelSpec) -> Counter[str]:
    """Bytes by part that are not in the memory of the LoRA that `as_lora` makes of a method.

    Of AdaLoRA its singular values are left out, which are a thousandth of it.
    """
    if training.method == "adalora":
        return Counter(optimizer=4 * AVERAGES * trained_parameters(training, spec))
    if training.method not in SOFT_PROMPTS:
        return Counter()
    count = prompt_parameters(training, spec)
    states = round(state_bytes(training.optimizer) * count)
    return Counter(adapter=4 * count, gradients=4 * count, optimizer=states)
