"""How many questions are answered at once: the engines go by it, and so does the estimate of a run's time."""

from __future__ import annotations

from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.paths import way_of
from ollama_tune.core.plan.settings import TrainingSettings

GENERAL_ROWS = 16
MOST_ROWS, FEWEST_ROWS = 64, 16
LARGE, LONG = 1 << 30, 1024
"""Bytes that the cache of all rows may take when each has so many tokens; fewer rows are answered at once."""


def fast_rows(layers: int, key_width: int, itemsize: int) -> int:
    """The rows of the fast path, whose keys and values have so many numbers a layer, of so many bytes."""
    return min(max(LARGE // (LONG * 2 * layers * key_width * itemsize), FEWEST_ROWS), MOST_ROWS)


def answer_rows(spec: ModelSpec, training: TrainingSettings) -> int:
    """The rows of the path that a run with these settings takes."""
    if way_of(spec, training).path == "general":
        return GENERAL_ROWS
    itemsize = 4 if training.compute_dtype == "float32" else 2
    return fast_rows(spec.layers, spec.key_value_heads * spec.head_dim, itemsize)
