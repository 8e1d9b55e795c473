"""Counts bytes for the progress of a piece of work and asks between them whether to stop."""

from __future__ import annotations

from collections.abc import Callable

from ollama_tune.core.export.values import ExportStopped

Progress = Callable[[int, int], None]
Stopped = Callable[[], bool]


class Work:
    """So many bytes to write; `progress` gets bytes done and in all."""

    def __init__(self, total: int, progress: Progress | None, stopped: Stopped | None) -> None:
        self._total, self._progress, self._stopped = total, progress, stopped
        self._done = 0

    def step(self, count: int) -> None:
        """`count` more bytes are written; raises `ExportStopped` when the person asked to stop."""
        if self._stopped is not None and self._stopped():
            raise ExportStopped
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)
