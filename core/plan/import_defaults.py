"""What LLaMA-Factory, Axolotl and TRL do where a config says nothing, as settings of a run.yaml.

The values are those of the tools' public documentation and argument classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ollama_tune.core.plan.import_preferences import trl_rate
from ollama_tune.core.plan.import_tables import QUANTIZATION, RECOMPUTE, WHAT

Default = Any | Callable[[Mapping[str, Any]], Any]
"""A value, or how it follows from the values before it; None where there is none."""


def whole_or_adapter(values: Mapping[str, Any]) -> str:
    """All weights are trained where a config names no adapter, and nothing of one."""
    adapted = values.get(QUANTIZATION) == "nf4" or "training.rank" in values
    return "lora" if adapted else "full"


def _of_adapter(default: Default) -> Default:
    """A default that says nothing where all weights are trained."""

    def value(values: Mapping[str, Any]) -> Any:
        if values.get(WHAT) == "full":
            return None
        return default(values) if callable(default) else default

    return value


_ALWAYS: Mapping[str, Default] = {
    "data.validation_split": 0.0,
    "training.early_stopping": 0,
    "training.seed": 42,
    "data.seed": 42,
}
_TRAINER_DEFAULTS: Mapping[str, Default] = {
    **_ALWAYS,
    "training.learning_rate": 5e-5,
    "training.epochs": 3.0,
    "training.batch_size": 8,
    "training.gradient_accumulation_steps": 1,
    "training.schedule": "linear",
    "training.warmup": 0.0,
}
DEFAULTS: Mapping[str, Mapping[str, Default]] = {
    "llamafactory": {
        **_TRAINER_DEFAULTS,
        "training.rank": _of_adapter(8),
        "training.alpha": _of_adapter(lambda values: 2 * values["training.rank"]),
        "training.sequence_length": 2048,
        RECOMPUTE: "layers",
    },
    "axolotl": {
        **_ALWAYS,
        WHAT: whole_or_adapter,
        "training.epochs": 1.0,
        "training.gradient_accumulation_steps": 1,
        "training.warmup": 0.03,
        "training.sequence_length": 512,
    },
    "trl": {
        **_TRAINER_DEFAULTS,
        WHAT: whole_or_adapter,
        "training.learning_rate": trl_rate,
        "training.dropout": _of_adapter(0.05),
        "training.sequence_length": 1024,
        RECOMPUTE: "layers",
    },
}
"""What a tool does where its config says nothing, if it is not what is done here."""
