"""Counts the parts of a long piece of work, tells the progress, and ends the work when asked."""

from __future__ import annotations

from ollama_tune.core.export.values import ExportStopped, Progress, Stopped


class Meter:
    """`total` bytes or questions are expected; raises `ExportStopped` at the next after a wish to stop."""

    def __init__(self, total: int, progress: Progress | None = None, stopped: Stopped | None = None) -> None:
        self._done, self._total = 0, total
        self._progress, self._stopped = progress, stopped

    def step(self, count: int = 1) -> None:
        """`count` more are done, or the next is about to be."""
        if self._stopped is not None and self._stopped():
            raise ExportStopped
        self._done += count
        self._tell(min(self._done, self._total))

    def finish(self) -> None:
        """All is done, even where fewer were met than expected."""
        self._tell(self._total)

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)
