"""Which code computes a model while it is trained, told from its config.json: nothing else is imported."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.models.blueprint import obstacle
from ollama_tune.core.models.families import ARCHITECTURES
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.settings import Method, TrainingSettings
from ollama_tune.core.plan.shape import config_of

PathName = Literal["fast", "general"]
FAST = "This kind of model is known, so short rows are not filled up."
ASKED = "The settings ask for transformers and PEFT."
ADAPTERS_ONLY: Mapping[str, str] = {
    "adalora": "The fast path trains adapters of one rank, not AdaLoRA.",
    "prompt": "The fast path trains adapters, not a soft prompt.",
    "ptuning": "The fast path trains adapters, not a soft prompt.",
    "full": "The fast path trains adapters, not all weights.",
}
"""Why the fast path does not train by other methods than LoRA."""
SHARED = "The fast path does not share out a model among GPUs."
PADDED_FAMILIES = ("gemma2",)
"""Families whose attention transformers computes with all scores in memory, so that rows are padded."""


class Way(NamedTuple):
    """How a run is computed: the path, why, and whether rows computed at once are padded to one length."""

    path: PathName
    reason: str
    padded: bool


def choose_path(spec: ModelSpec, training: TrainingSettings) -> tuple[PathName, str]:
    """The path of a run and the reason; `TuneError` where the settings ask for one that cannot be."""
    way = way_of(spec, training)
    if training.path == "fast" and way.path != "fast":
        why_not = fast_obstacle(spec, training.dora, training.method)
        raise TuneError(why_not, "Set training.path to auto or general.")
    return way.path, way.reason


def way_of(spec: ModelSpec, training: TrainingSettings) -> Way:
    """As `choose_path`, for a plan: what cannot be counts as general.

    Raises `UsageError` where more layers shall stay frozen than the model can spare.
    """
    if training.freeze_layers >= max(spec.layers, 1):
        raise UsageError(
            f"training.freeze_layers is {training.freeze_layers}, but the model has {spec.layers} layers, of "
            "which one at least has to learn.",
            f"Set it to {spec.layers - 1} or less.",
        )
    why_not = ASKED if training.path == "general" else fast_obstacle(spec, training.dora, training.method)
    why_not = why_not or (SHARED if training.sharding == "fsdp" else "")
    if not why_not:
        return Way("fast", FAST, False)
    reason = ASKED if training.path == "general" else f"{why_not} Transformers and PEFT do."
    return Way("general", reason, general_pads(spec.architecture, spec.model_type))


def general_pads(architecture: str, model_type: str) -> bool:
    """Whether the general path pads rows: it does where it does not know how attention keeps them apart."""
    return architecture not in ARCHITECTURES or model_type in PADDED_FAMILIES


@lru_cache(64)
def fast_obstacle(spec: ModelSpec, dora: bool, method: Method = "lora") -> str:
    """Why the fast path cannot train this model so, in a sentence; empty where it can."""
    if method in ADAPTERS_ONLY:
        return ADAPTERS_ONLY[method]
    if dora:
        return "The fast path does not compute DoRA."
    return obstacle(read_json(spec.folder / "config.json") or config_of(spec))


def named(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration that names its class; where it does not, the one that its model_type usually has."""
    kind = config.get("model_type")
    usual = [name for name, family in ARCHITECTURES.items() if family.model_type == kind][:1]
    return config if config.get("architectures") else {**config, "architectures": usual}
