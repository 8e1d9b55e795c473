"""Step 6: the run as it goes. It only watches; the worker does not know that somebody looks."""

from __future__ import annotations

import textwrap
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
from ollama_tune.core.machine.live import BoxWatch, workers
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.runs.identity import boot_id
from ollama_tune.core.runs.launch import WarmWorker
from ollama_tune.tui.screens.run_screen import RunScreen
from ollama_tune.tui.screens.training_lines import Sparks, coach, figures
from ollama_tune.tui.screens.training_words import (
    GONE,
    Wishes,
    state_words,
    trouble_words,
    way_on,
    what_stop_keeps,
)
from ollama_tune.tui.widgets.block import LineBlock
from ollama_tune.tui.widgets.chart import LossChart
from ollama_tune.tui.widgets.live import LivePanel
from ollama_tune.tui.widgets.log import LogTail, RunLog
from ollama_tune.tui.widgets.memory import MemoryPanel
from ollama_tune.tui.widgets.sample import SamplePanel, answers
from ollama_tune.tui.widgets.spark import spark

CHART_SECONDS, STILL_SECONDS = 1.8, 5.8
SPARK_WIDTH = 76
SPARK = 10
"""A screen at least so wide has room for small curves of so many cells."""
ROOMY = 48
HINTS = "+/- zoom  y scale", "+/- zoom  ←/→ move  0 all"


def watch_box(folder: RunFolder, device: str) -> BoxWatch | None:
    """Look at the box while its run goes; None where the worker is on another machine."""
    worker = folder.worker()
    if worker.get("boot_id") != boot_id():
        return None
    return BoxWatch(folder.path, *workers(worker), gpus=device.startswith("cuda"))


class TrainingScreen(RunScreen):
    """Loss, speed, memory, machine, answers and log of a run; detach, pause, stop and resume."""

    STEP = 6
    CSS_PATH = "training.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "detach", "Detach"),
        Binding("s", "stop", "Stop"),
        Binding("p", "pause", "Pause"),
        Binding("p", "go_on", "Go on"),
        Binding("r", "resume", "Resume"),
        Binding("e", "details", "Details"),
        Binding("a", "answers", "Answers"),
        Binding("l", "log", "Log"),
        Binding("m", "memory", "Memory", show=False),
        Binding("y", "scale", "Scale", show=False),
        Binding("plus,equals_sign", "look(1, 0)", "Zoom in", show=False),
        Binding("minus", "look(-1, 0)", "Zoom out", show=False),
        Binding("left", "look(0, -1)", "Earlier steps", show=False),
        Binding("right", "look(0, 1)", "Later steps", show=False),
        Binding("0", "look(0, 0)", "All steps", show=False),
        Binding("n", "turn(1, 0)", "Other question", show=False),
        Binding("comma", "turn(0, 1)", "Earlier answer", show=False),
        Binding("full_stop", "turn(0, -1)", "Later answer", show=False),
    ]

    @dataclass
    class Resumed(Message):
        """A worker holds the run again, or could not be started (then `error` says why)."""

        error: TuneError | None = None

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self._tail = LogTail(folder.log_path)
        self._drawn = 0.0, 0, 0
        self._sparks = Sparks()
        self._wishes = Wishes()
        self._watch: BoxWatch | None = None
        self._figures = LineBlock(id="figures")
        self._chart = LossChart(hints=HINTS, id="chart")
        self._sample, self._memory = SamplePanel(id="sample"), MemoryPanel(id="memory")
        self._live, self._log = LivePanel(id="live"), RunLog(id="log")

    def body(self) -> ComposeResult:
        """State, figures, coach, chart, trouble, answers, memory and machine, log."""
        yield Static(id="state", markup=False)
        yield self._figures
        yield Static(id="coach", markup=False)
        yield self._chart
        yield Static(id="trouble", markup=False)
        self._memory.border_title, self._log.border_title = "Memory and machine: m", "Log: l"
        yield from (self._sample, self._memory, self._live, self._log)

    def on_unmount(self) -> None:
        """Look at the box no more."""
        self._look_at_box(False)

    def on_resize(self) -> None:
        """A very tall window has room for what else is good to know."""
        self.set_class(self.size.height >= ROOMY, "-roomy")

    # Show

    def show_run(self) -> None:
        """Bring every part up to date; the curves every two seconds and at the end."""
        view, wishes, state = self.view, self._wishes, self.run.state
        wishes.stopping = wishes.stopping and self.run.alive
        wishes.pausing = wishes.pausing and state is State.RUNNING
        if self._draw_is_due():
            self._drawn = time.monotonic(), view.step, len(view.validation)
            self._draw()
        going = state is State.RUNNING
        self._figures.show(figures(view, time.time(), going=going, sparks=self._sparks))
        self.set_class(not (self.run.alive or view.trained), "-ended")
        trouble = trouble_words(self.folder, view, state, wishes)
        self._tell_trouble(trouble)
        self._memory.show(list(view.memories.values()), view.predicted, view.probe)
        asked = list(view.asked.values())
        self.set_class(any(answers(one) for one in asked), "-asked")
        self._sample.show(asked)
        self._log.show_events(view)
        self._look_at_box(self.run.alive and bool(view.device))

    def _draw_is_due(self) -> bool:
        """At most every two seconds, as no part costs more; seldomer while a run moves by less than a dot."""
        (drawn, step, measured), view = self._drawn, self.view
        passed = time.monotonic() - drawn
        moved = abs(view.step - step) >= self._chart.dot or len(view.validation) != measured
        return passed >= (CHART_SECONDS if moved else STILL_SECONDS) or not self.run.alive

    def _draw(self) -> None:
        """The curves and what they mean."""
        from ollama_tune.tui.coach import advise

        view = self.view
        marks = [(point.step, point.loss) for point in view.validation.values()]
        self._chart.show(view.losses, marks, view.total_steps)
        words = coach(advise(view))
        self.tell("#coach", words)
        lines = len(textwrap.wrap(words.plain, max(self._figures.size.width, 1)))
        self.set_class(lines < 2, "-brief")
        self.set_class(lines > 2, "-wordy")
        if self.size.width >= SPARK_WIDTH:
            curves = (spark(curve, SPARK, view.total_steps) for curve in (view.norms, view.rates))
            self._sparks = Sparks(*curves)

    def tick(self) -> None:
        """Before the first step the phase counts its seconds; silence does too, and the box lives."""
        width = self._figures.size.width
        self.tell("#state", state_words(self.view, self.run.state, self._wishes, time.time(), width))
        self._log.show_output(self._tail.poll())
        self._live.show(self._watch.latest if self._watch else None)

    def _tell_trouble(self, text: str) -> None:
        trouble = self.query_one("#trouble", Static)
        if str(trouble.content) != text:
            trouble.update(Content(text))
        self.set_class(bool(text), "-trouble")

    def _look_at_box(self, wanted: bool) -> None:
        if wanted and self._watch is None:
            self._watch = watch_box(self.folder, self.view.device)
        elif not wanted and self._watch is not None:
            self._watch.close()
            self._watch = None

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Each key shows where it has something to do."""
        alive, state, view = self.run.alive, self.run.state, self.view
        if action == "pause":
            return state is State.RUNNING and not (view.trained or self._wishes.pausing)
        if action == "go_on":
            return state is State.PAUSED or self._wishes.pausing
        if action in ("detach", "stop"):
            return alive and not (action == "stop" and view.trained)
        if action == "resume":
            return not (alive or view.trained or self._wishes.starting)
        if action == "details":
            return state in (State.FAILED, State.CRASHED)
        if action == "answers":
            return bool(view.asked)
        return super().check_action(action, parameters)

    def _keys(self) -> tuple[object, ...]:
        return *super()._keys(), bool(self.view.asked)

    def obstacle(self) -> str:
        """The next step needs the finished adapter."""
        if self.view.trained:
            return ""
        if self.run.alive:
            return "Training is still going. Wait for its end, or press d to leave it to itself."
        return "This run is not finished. " + way_on(self.view)

    def action_detach(self) -> None:
        """Leave; the run goes on without the window."""
        self.tune.action_leave()

    def action_scale(self) -> None:
        """Another scale for the losses: after a steep start the linear one is flat."""
        self._chart.rescale()

    def action_look(self, closer: int, along: int) -> None:
        """Which steps the chart shows."""
        self._chart.look(closer=closer, along=along)

    def action_turn(self, questions: int, evaluations: int) -> None:
        """Another question, or an earlier or later evaluation."""
        self._sample.turn(questions, evaluations)

    def action_answers(self) -> None:
        """All answers so far."""
        from ollama_tune.tui.screens.run_answers import AnswersScreen

        self.app.push_screen(AnswersScreen(self.run))

    def action_log(self) -> None:
        """The whole log."""
        from ollama_tune.tui.screens.run_log import LogScreen

        self.app.push_screen(LogScreen(self.run))

    def action_memory(self) -> None:
        """Memory by part and the machine, in full."""
        from ollama_tune.tui.screens.run_memory import MemoryScreen

        self.app.push_screen(MemoryScreen(self.run, lambda: self._watch.latest if self._watch else None))

    def action_pause(self) -> None:
        """Ask the worker to wait after its step; nothing is lost by it, so nothing is asked."""
        from ollama_tune.core.runs.control import request_pause

        try:
            request_pause(self.folder)
            self._wishes.pausing = True
        except TuneError as error:
            self.say(error.what)
        self.show_now()

    def action_go_on(self) -> None:
        """Take the wish to pause back."""
        from ollama_tune.core.runs.control import continue_run

        continue_run(self.folder)
        self._wishes.pausing = False
        self.show_now()

    def action_stop(self) -> None:
        """Ask once; Enter says no."""
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        question = ConfirmScreen(f"Stop {self.folder.name}?", what_stop_keeps(self.view))
        self.app.push_screen(question, self._stop_answered)

    def _stop_answered(self, yes: bool | None) -> None:
        from ollama_tune.core.runs.control import request_stop, terminate

        if not yes:
            return
        try:
            request_stop(self.folder)
            self._wishes.stopping = True
            if self.run.state is State.SILENT:
                terminate(self.folder)
        except TuneError as error:
            self.say(error.what)
        self.show_now()

    def action_details(self) -> None:
        """The error with all the technical text there is; from there it can be written to a file."""
        from ollama_tune.tui.widgets.errors import ErrorScreen

        error, tail = self.view.error, self.folder.log_tail()
        what = str(error["what"]) if error else GONE
        fix = str(error["fix"]) if error else way_on(self.view)
        details = f"{error.get('details', '') if error else ''}\n{tail}".strip()
        self.app.push_screen(ErrorScreen(TuneError(what, fix, details=details)))

    def action_resume(self) -> None:
        """Go on from the last checkpoint."""
        self._wishes = Wishes(starting=True)
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
        self._wishes = Wishes(refused=message.error)
        self.run.poll()
        self.show_now()
