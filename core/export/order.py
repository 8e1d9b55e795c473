"""What is to be exported, and how the work tells its progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.export.values import Progress
from ollama_tune.core.models.architectures import read_config
from ollama_tune.core.plan.gguf_types import OLLAMA_CONTEXT
from ollama_tune.core.plan.settings import ExportSettings, Settings
from ollama_tune.core.runs.folder import RunFolder

Emit = Callable[..., Any]

INTERVAL = 0.5


@dataclass(frozen=True)
class Order:
    """What is to be exported, checked before any work; `base` is the folder of the model it is made of."""

    folder: RunFolder
    settings: Settings
    wanted: ExportSettings
    name: str
    stem: str
    base: Path
    chat: ChatFormat

    @property
    def adapter(self) -> Path | None:
        """The adapter on the base; None where the base is the tuned model itself."""
        return None if self.settings.training.method == "full" else self.folder.adapter

    @property
    def context(self) -> int:
        """The context length Ollama is told: never below the trained length, never above the model's own.

        Where a larger context would change answers to short texts it is no larger than the training needs.
        """
        config, trained = read_config(self.base), self.settings.training.sequence_length
        return min(max(trained, min(OLLAMA_CONTEXT, config.even_context)), config.context)


def progress(emit: Emit, name: str, unit: str) -> Progress:
    """A callback that writes at most two events a second, and the last one always."""
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= INTERVAL:
            last = now
            emit("progress", name=name, done=done, total=total, unit=unit)

    return report
