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
STATE_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 8 / 256}
"""Bytes on the device of an optimizer's states for each weight."""


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
    return {"rank": initial_rank(training.rank)} if training.method == "adalora" else {}


def trained_parameters(training: TrainingSettings, spec: ModelSpec) -> int:
    """Parameters that learn."""
    if training.method == "full":
        return spec.parameters - Shape.of(spec).frozen_weights(training.freeze_layers)
    if training.method in SOFT_PROMPTS:
        return prompt_parameters(training, spec)
    return layer_parameters(training, spec)


def layer_parameters(training: TrainingSettings, spec: ModelSpec) -> int:
    """Parameters of an adapter, which every token goes through; other methods have none.

    AdaLoRA has a singular value a rank besides. It leaves experts as they are, as PEFT does with frozen
    layers.
    """
    if training.method in (*SOFT_PROMPTS, "full"):
        return 0
    shape, adalora = Shape.of(spec), training.method == "adalora"
    rank = initial_rank(training.rank) if adalora else training.rank
    adapted = shape.targets(training.targets).values()
    linear = rank * sum(inside + outside + adalora for inside, outside in adapted)
    spared = adalora or training.freeze_layers or not isinstance(training.targets, str)
    experts = 0 if spared else shape.expert_adapter(rank)
    return (shape.L - training.freeze_layers) * (linear + experts)


def prompt_parameters(training: TrainingSettings, spec: ModelSpec) -> int:
    """Parameters of a soft prompt: its vectors, with p-tuning also three layers as wide as the model."""
    width = spec.hidden_size
    network = 3 * (width * width + width) if training.method == "ptuning" else 0
    return training.virtual_tokens * width + network


def extra_parts(training: TrainingSettings, spec: ModelSpec) -> Counter[str]:
    """Bytes by part that are not in the memory of the LoRA that `as_lora` makes of a method.

    Of AdaLoRA its singular values are left out, which are a thousandth of it.
    """
    if training.method == "adalora":
        return Counter(optimizer=4 * AVERAGES * trained_parameters(training, spec))
    if training.method not in SOFT_PROMPTS:
        return Counter()
    count = prompt_parameters(training, spec)
    states = round(STATE_BYTES[training.optimizer] * count)
    return Counter(adapter=4 * count, gradients=4 * count, optimizer=states)
