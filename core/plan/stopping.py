"""The metrics that can decide which state of a run is best: their names for people, and what they need."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import StoppingMetric

SCORED_ROWS = 64
"""Held-out questions that are answered at a measurement at most, so that the time stays bounded."""
OF_LABELS: tuple[StoppingMetric, ...] = ("accuracy", "macro_f1")
NEEDS_SACREBLEU: tuple[StoppingMetric, ...] = ("bleu", "chrf")
TITLES: Mapping[str, str] = {
    "loss": "held-out loss",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
}
"""As they stand in a sentence."""


def require_metric(metric: StoppingMetric) -> None:
    """Raise `TuneError` where the package that computes it is not installed."""
    if metric in NEEDS_SACREBLEU and importlib.util.find_spec("sacrebleu") is None:
        raise TuneError(
            f"training.early_stopping_metric is {metric}, which sacrebleu computes; it is not installed.",
            "Install it with `pip install 'ollama-tune[evaluate]'`, or choose another metric.",
        )


def score_words(metric: str, score: float) -> str:
    """`52.3 %`, or `41.7` for BLEU and chrF, which count to 100."""
    return f"{score:.1f}" if metric in NEEDS_SACREBLEU else f"{100 * score:.1f} %"
