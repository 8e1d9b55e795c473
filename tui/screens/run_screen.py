"""What the screens of a run share: they follow its event log and know its state; they never own it."""

from __future__ import annotations

import time

from textual.content import Content
from textual.widgets import Static
from textual.worker import Worker

from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_bytes, human_count, human_seconds, one_line, visible
from ollama_tune.tui.run_follower import RunFollower
from ollama_tune.tui.run_values import Progress
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.text import put_text
from ollama_tune.tui.widgets.bar import level

POLL = 0.5
SHOW = 0.9
BAR = 24
PIECE, BREATH = 1 << 20, 0.001
"""Bytes of a log that are read at once, in some 20 ms."""


class RunScreen(StepScreen):
    """A step that belongs to a run. `show_run` is called after the start and whenever something changed."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.run = RunFollower(folder)
        self._phase: tuple[object, ...] = ()
        self._fresh = True
        self._shown = 0.0
        self._texts: dict[str, Static] = {}

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return self.run.folder

    @property
    def view(self) -> RunView:
        """What is known of the run."""
        return self.run.view

    def about(self) -> str:
        """The run's name."""
        return one_line(self.run.folder.name, 60)

    def on_mount(self) -> None:
        """Read the log once the first frame is there, then twice a second."""
        super().on_mount()
        self.call_after_refresh(self._first_poll)

    def _first_poll(self) -> None:
        """Between two pieces of a long log keys are answered."""
        if self.run.poll(PIECE) and self.run.behind:
            self.set_timer(BREATH, self._first_poll)
            return
        self._show()
        self.set_interval(POLL, self._poll)

    def _poll(self) -> None:
        self._fresh = self.run.poll() or self._fresh
        if time.monotonic() - self._shown >= SHOW or self._keys() != self._phase:
            self._show()

    def _show(self) -> None:
        """Show what is new; once a second is enough for figures, and drawing is what watching costs."""
        self._shown = time.monotonic()
        if self._fresh:
            self._fresh = False
            self.show_run()
        self.tick()
        if self._keys() != self._phase:
            self._phase = self._keys()
            self.refresh_bindings()
            self.tell_again()

    def show_now(self) -> None:
        """Show everything at once, after something the person did."""
        self.show_run()
        self.tick()
        self.refresh_bindings()

    def _keys(self) -> tuple[object, ...]:
        """What decides which keys work."""
        return self.run.state, self.view.stage, tuple(self.view.done)

    def show_run(self) -> None:
        """Show the view and the state; called when something changed."""

    def tick(self) -> None:
        """Show what changes without events, such as the time that a phase takes."""

    def tell(self, selector: str, content: Content | str, *, layout: bool = False) -> None:
        """Change a text only where it is another one: every repaint costs bytes over ssh."""
        static = self._texts.get(selector)
        if static is None:
            static = self._texts[selector] = self.query_one(selector, Static)
        put_text(static, content, layout=layout)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """An error of our own in slow work is reported by the application."""
        self.tune.on_worker_state_changed(event)


def working(view: RunView, now: float) -> Content:
    """What is done now and for how long, with a bar where its size is known."""
    text = view.phase.rstrip(".… ") or "Starting"
    since = view.phase_since or now
    progress = progress_content(view.progress)
    if progress:
        return Content.assemble(progress, (f"  {text}", "bold"))
    return Content.assemble((text, "bold"), f" … {human_seconds(max(now - since, 0))}")


def progress_content(progress: Progress | None) -> Content | None:
    """A bar with the amounts of a piece of work; None where nothing is counted."""
    if progress is None or progress.total <= 0:
        return None
    amount = human_bytes if progress.unit == "B" else human_count
    unit = "" if progress.unit == "B" else f" {visible(progress.unit)}"
    words = f" {amount(progress.done)} of {amount(progress.total)}{unit}"
    return Content.assemble(level(progress.done / progress.total, BAR // 2), words)
