"""Adapters that change what a model says, without the time that a training takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.train.checkpoint import publish
from ollama_tune.core.train.fast.path import make_fast


def loud(path: Any, spread: float = 0.3, seed: int = 3) -> Any:
    """The path, with random numbers of that spread for the half of its adapter that begins as zeros."""
    torch.manual_seed(seed)
    for name, weight in path.weights.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=spread)
    return path


def publish_loud_adapter(folder: RunFolder, model: Path, seed: int = 3) -> RunFolder:
    """Give a run such an adapter on its model."""
    publish(folder, loud(make_fast(model, folder.settings().training, str(model)), seed=seed))
    return folder
