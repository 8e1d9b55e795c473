"""Step 6: the run as it goes. It only watches; the worker does not know that somebody looks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from ollama_tune.core.errors import TuneError
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.runs.launch import WarmWorker
from ollama_tune.core.text import human_seconds, visible
from ollama_tune.tui.screens.run_screen import RunScreen
from ollama_tune.tui.screens.training_lines import Sparks, figures, finished, running
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.chart import LossChart
from ollama_tune.tui.widgets.log import LogTail, RunLog
from ollama_tune.tui.widgets.memory import MemoryPanel
from ollama_tune.tui.widgets.sample import SamplePanel
from ollama_tune.tui.widgets.spark import spark

CHART_SECONDS = 1.8
LAST_LINES = 5
SPARK_WIDTH = 76
SPARK = 10
"""A screen at least so wide has room for small curves of so many cells."""


class TrainingScreen(RunScreen):
    """Loss, speed, memory, answers and log of a run; detach, pause, stop and resume."""

    STEP = 6
    CSS_PATH = "training.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "detach", "Detach"),
        Binding("s", "stop", "Stop"),
        Binding("p", "pause", "Pause"),
        Binding("p", "go_on", "Go on"),
        Binding("r", "resume", "Resume"),
        Binding("l", "scale", "Scale"),
        Binding("e", "details", "Details"),
    ]

    @dataclass
    class Resumed(Message):
        """A worker holds the run again, or could not be started (then `error` says why)."""

        error: TuneError | None = None

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self._tail = LogTail(folder.log_path)
        self._drawn = 0.0
        self._sparks = Sparks()
        self._stopping = self._starting = self._pausing = False
        self._refused: TuneError | None = None

    def body(self) -> ComposeResult:
        """State, figures, chart, trouble, the newest answer, memory and log."""
        yield Static(id="state", markup=False)
        yield Static(id="figures", markup=False)
        yield LossChart(id="chart")
        yield Static(id="trouble", markup=False)
        sample, memory, log = SamplePanel(id="sample"), MemoryPanel(id="memory"), RunLog(id="log")
        sample.border_title, memory.border_title, log.border_title = "Answer by now", "Memory", "Log"
        yield from (sample, memory, log)

    # Show

    def show_run(self) -> None:
        """Bring every part up to date; the curves every two seconds and at the end."""
        view = self.view
        self._stopping = self._stopping and self.run.alive
        self._pausing = self._pausing and self.run.state is State.RUNNING
        if time.monotonic() - self._drawn >= CHART_SECONDS or not self.run.alive:
            self._drawn = time.monotonic()
            self._draw()
        self.tell("#state", self._state())
        going = self.run.state is State.RUNNING
        self.tell("#figures", figures(view, time.time(), going=going, sparks=self._sparks))
        self.set_class(not (self.run.alive or view.trained), "-ended")
        self._show_trouble()
        self.query_one(MemoryPanel).show(view.memory, view.predicted, view.probe)
        self.set_class(bool(view.newest), "-asked")
        self.query_one(SamplePanel).show(view.newest[0] if view.newest else None, view.newest_step)
        log = self.query_one(RunLog)
        log.show_output(self._tail.poll())
        log.show_events(view)

    def _draw(self) -> None:
        """The curves, every two seconds: no part costs more, and none says less in a second."""
        view = self.view
        marks = [(point.step, point.loss) for point in view.validation.values()]
        self.query_one(LossChart).show(view.losses, marks, view.total_steps)
        if self.query_one("#figures").size.width >= SPARK_WIDTH:
            curves = (spark(curve, SPARK, view.total_steps) for curve in (view.norms, view.rates))
            self._sparks = Sparks(*curves)

    def tick(self) -> None:
        """Before the first step the phase counts its seconds; silence does too."""
        self.tell("#state", self._state())
        log = self._tail.poll()
        if log:
            self.query_one(RunLog).show_output(log)

    def _state(self) -> Content:
        if self._starting:
            return Content("Starting the worker …")
        state, view = self.run.state, self.view
        if view.trained:
            return finished(view)
        if self._stopping:
            return Content("Stopping: the worker finishes its step and writes a checkpoint …")
        if self._pausing:
            return Content("Pausing: the worker finishes its step and writes a checkpoint …")
        if state is State.SILENT:
            ago = human_seconds(time.time() - view.updated)
            return Content.assemble(("! No sign of life ", "bold $text-warning"), f"for {ago}.")
        if state is State.RUNNING:
            return running(view, time.time())
        signs = {State.PAUSED: "‖ Paused", State.STOPPED: "■ Stopped", State.NEW: "· Not started"}
        word = signs.get(state, f"✗ {state.value.capitalize()}")
        return Content.assemble((word, "bold"), f" at step {view.step:,} of {view.total_steps:,}.")

    def _show_trouble(self) -> None:
        text = self._trouble()
        trouble = self.query_one("#trouble", Static)
        if trouble.content != text:
            trouble.update(text)
        trouble.display = bool(text)

    def _trouble(self) -> str:
        state = self.run.state
        if self._refused is not None:
            return f"✗ {visible(str(self._refused))}"
        if self.view.trained or self._starting:
            return ""
        if state is State.FAILED and self.view.error is not None:
            error = self.view.error
            return "\n  ".join(
                (f"✗ {visible(str(error['what']))}", visible(str(error["fix"])), self._way_on())
            )
        if state is State.CRASHED:
            return f"✗ The worker ended without a word. {self._way_on()}\n{self._last_lines()}"
        if state is State.STOPPED and self.view.stopped is not None:
            return f"Stopped by {visible(str(self.view.stopped['reason']))}. {self._way_on()}"
        if state is State.PAUSED and self.view.pause is not None:
            pause = self.view.pause
            return f"‖ {visible(str(pause['what']))} {visible(str(pause['fix']))}"
        if state is State.NEW:
            return self._way_on()
        if state is State.SILENT:
            return (
                "The worker holds the run but writes nothing. A very long step may do this; "
                "if it lasts, press s to stop it."
            )
        what, fix = next(reversed(self.view.warnings.items()), ("", ""))
        return f"! {what} {fix}" if what else ""

    def _way_on(self) -> str:
        point = self.view.checkpoints[-1].step if self.view.checkpoints else 0
        where = f"the checkpoint of step {point:,}" if point else "the beginning: there is no checkpoint yet"
        return f"Press r to go on from {where}."

    def _last_lines(self) -> str:
        lines = self.folder.log_tail(LAST_LINES).splitlines()
        return "\n".join(
            [*(f"  {visible(line)}" for line in lines), f"  All of it: {tilde(self.folder.log_path)}"]
        )

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Each key shows where it has something to do."""
        alive = self.run.alive
        if action == "pause":
            return self.run.state is State.RUNNING and not (self.view.trained or self._pausing)
        if action == "go_on":
            return self.run.state is State.PAUSED or self._pausing
        if action in ("detach", "stop"):
            return alive and not (action == "stop" and self.view.trained)
        if action == "resume":
            return not (alive or self.view.trained or self._starting)
        if action == "details":
            return self.run.state in (State.FAILED, State.CRASHED)
        return super().check_action(action, parameters)

    def obstacle(self) -> str:
        """The next step needs the finished adapter."""
        if self.view.trained:
            return ""
        if self.run.alive:
            return "Training is still going. Wait for its end, or press d to leave it to itself."
        return "This run is not finished. " + self._way_on()

    def action_detach(self) -> None:
        """Leave; the run goes on without the window."""
        self.tune.action_leave()

    def action_pause(self) -> None:
        """Ask the worker to wait after its step; nothing is lost by it, so nothing is asked."""
        from ollama_tune.core.runs.control import request_pause

        try:
            request_pause(self.folder)
            self._pausing = True
        except TuneError as error:
            self.say(error.what)
        self.show_now()

    def action_go_on(self) -> None:
        """Take the wish to pause back."""
        from ollama_tune.core.runs.control import continue_run

        continue_run(self.folder)
        self._pausing = False
        self.show_now()

    def action_scale(self) -> None:
        """Another scale for the losses: after a steep start the linear one is flat."""
        self.query_one(LossChart).rescale()

    def action_stop(self) -> None:
        """Ask once; Enter says no."""
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        kept = (
            f"The worker finishes its step, writes a checkpoint (step {self.view.step:,} so far) and ends. "
            "You can go on from there later with r."
            if self.view.step
            else "No step is done yet, so there is nothing to save: going on later starts from the beginning."
        )
        self.app.push_screen(ConfirmScreen(f"Stop {self.folder.name}?", kept), self._stop_answered)

    def _stop_answered(self, yes: bool | None) -> None:
        from ollama_tune.core.runs.control import request_stop, terminate

        if not yes:
            return
        try:
            request_stop(self.folder)
            self._stopping = True
            if self.run.state is State.SILENT:
                terminate(self.folder)
        except TuneError as error:
            self.say(error.what)
        self.show_run()

    def action_details(self) -> None:
        """The error with all the technical text there is; from there it can be written to a file."""
        from ollama_tune.tui.widgets.errors import ErrorScreen

        error, tail = self.view.error, self.folder.log_tail()
        what = str(error["what"]) if error else "The worker ended without a word."
        fix = str(error["fix"]) if error else self._way_on()
        details = f"{error.get('details', '') if error else ''}\n{tail}".strip()
        self.app.push_screen(ErrorScreen(TuneError(what, fix, details=details)))

    def action_resume(self) -> None:
        """Go on from the last checkpoint."""
        self._starting, self._refused = True, None
        self.say("")
        self.show_now()
        self._resume(self.tune.take_warm())

    @work(thread=True, exclusive=True, exit_on_error=False, group="resume")
    def _resume(self, warm: WarmWorker | None) -> None:
        from ollama_tune.core.runs.control import resume

        try:
            resume(self.folder, warm)
        except TuneError as error:
            self.post_message(self.Resumed(error))
        else:
            self.post_message(self.Resumed())

    @on(Resumed)
    def _resumed(self, message: Resumed) -> None:
        self._starting, self._refused = False, message.error
        self.run.poll()
        self.show_now()
