"""Which way a run computes its model, and why, in words for the screen. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ollama_tune.core.plan.paths import choose_path as choose_path
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.train.path import PathName, TrainPath


def make_path(
    chosen: tuple[PathName, str],
    folder: Path,
    training: TrainingSettings,
    base: str,
    progress: Callable[[int, int], None],
) -> TrainPath:
    """Load the model and put a fresh adapter on it; `base` is what the adapter says its base is.

    `progress` gets the bytes loaded and all bytes, where the path can tell.
    """
    name, reason = chosen
    if name == "general":
        from ollama_tune.core.train.general import make_general

        return make_general(folder, training, base, reason)
    from ollama_tune.core.train.fast.path import make_fast

    return make_fast(folder, training, base, progress, reason)
