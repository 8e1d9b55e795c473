"""What nobody foresaw: an error of our own ends the window or its slow work, with a report, no traceback."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text
from textual.app import App
from textual.worker import Worker, WorkerState

from ollama_tune.core.errors import TuneError


class FailingApp(App[int]):
    """Textual prints every local value of a crash, data rows too; this writes a report without them."""

    _reported = False

    def _handle_exception(self, error: Exception) -> None:
        """Textual lets an error that can draw itself do so, message and all; none may."""
        self._return_code = 1
        if self._exception is None:
            self._exception = error
            self._exception_event.set()
        self._fatal_error()

    def _fatal_error(self) -> None:
        """Leave with the report of the first error; those that follow come from it."""
        if self._exception is not None:
            self._leave_with(self._exception)

    def panic(self, *_renderables: RenderableType) -> None:
        """Leave because Textual itself cannot go on, such as when the keys cannot be read any more."""
        self._return_code = 1
        self._leave_with(RuntimeError())

    def _leave_with(self, error: BaseException) -> None:
        if not self._reported:
            from ollama_tune.tui.crash import report_crash

            self._reported = True
            super().panic(Text(report_crash(error)))

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Slow work met an error of its own: say so, with a report, and go on."""
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            from ollama_tune.tui.crash import report_crash
            from ollama_tune.tui.widgets.errors import ErrorScreen

            self.work_failed(event.worker.group)
            self.push_screen(ErrorScreen(TuneError("That did not work.", report_crash(event.worker.error))))

    def work_failed(self, group: str) -> None:
        """Told the group of the work that ended so; nothing to do by default."""
