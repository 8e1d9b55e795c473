"""Whether what a run trains can become a model in Ollama, told from the settings before the first step."""

from __future__ import annotations

from ollama_tune.core.plan.impossible import SOFT_PROMPTS
from ollama_tune.core.plan.settings import Settings


def export_obstacle(settings: Settings) -> str:
    """Why the result of a run cannot be exported to Ollama, in a sentence; empty where it can.

    This is about the settings alone; whether the model's family can be exported, `ModelSpec.export_reason`
    tells.
    """
    if settings.training.method in SOFT_PROMPTS:
        return (
            "Ollama's files have no place for a soft prompt, so there is no export; `ollama-tune ask`, "
            "`chat` and `evaluate` answer with it."
        )
    return ""
