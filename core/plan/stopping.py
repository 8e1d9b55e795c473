"""The metrics that can decide which state of a run is best: their names for people, and what they need."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError, UsageError

if TYPE_CHECKING:
    from ollama_tune.core.data.values import RowKind
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


LABELS_ONLY = (
    "training.early_stopping_metric is {metric}, which is measured on rows with a label; these have none.",
    "Choose exact_match or loss, or read the data as a classification (data.form).",
)
ASKED_ONLY = (
    "training.early_stopping_metric is {metric}, which compares answers; nobody asks for these plain texts.",
    "Choose loss.",
)


def metric_obstacle(metric: StoppingMetric, kind: RowKind) -> tuple[str, str] | None:
    """Why a metric cannot be had of such rows, and what to do; None where it can, or nobody looked at them.

    The better answers of pairs are answers like others.
    """
    if metric == "loss" or not kind:
        return None
    found = ASKED_ONLY if kind == "text" and metric not in OF_LABELS else LABELS_ONLY
    possible = kind == "classification" or (kind == "chat" and metric not in OF_LABELS)
    return None if possible else (found[0].format(metric=metric), found[1])


def require_measurable(metric: StoppingMetric, kind: RowKind) -> None:
    """Raise `UsageError` where a metric cannot be had of such rows."""
    if found := metric_obstacle(metric, kind):
        raise UsageError(*found)


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
