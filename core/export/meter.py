"""Counts the questions of a proof, tells the progress, and ends the work when asked."""

from __future__ import annotations

from collections.abc import Callable

from ollama_tune.core.export.values import ExportStopped


class Meter:
    """`total` questions are expected; raises `ExportStopped` at the next one after a wish to stop."""

    def __init__(
        self,
        total: int,
        progress: Callable[[int, int], None] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> None:
        self._done, self._total = 0, total
        self._progress, self._stopped = progress, stopped

    def tick(self) -> None:
        """One more question is about to be asked."""
        if self._stopped is not None and self._stopped():
            raise ExportStopped()
        self._done += 1
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)

    def finish(self) -> None:
        """All is done, even where fewer questions were asked than expected."""
        if self._progress is not None:
            self._progress(self._total, self._total)
