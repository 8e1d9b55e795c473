"""The application: which screen is shown, what is saved, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.timer import Timer
from textual.worker import Worker, WorkerState

from ollama_tune.core.errors import TuneError
from ollama_tune.tui import messages, tasks
from ollama_tune.tui.confirming import ConfirmingApp
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import (
    REVIEW,
    SETTINGS,
    STEPS,
    TRAINING,
    WizardState,
    forget_answers,
    live_run,
    load_answers,
)
from ollama_tune.tui.tasks import Probe

if TYPE_CHECKING:
    from ollama_tune.core.machine.values import Machine
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.runs.folder import RunFolder
    from ollama_tune.core.runs.launch import WarmWorker

SAVE_AFTER = 0.5
WARM_AFTER = 1.5


@dataclass(frozen=True)
class Start:
    """What opens first: the screen of the run in the folder `run`, else the wizard at its step."""

    answers: WizardState
    run: Path | None = None


def find_start() -> Start:
    """A run that is going, else the unfinished wizard, else step 1."""
    return Start(load_answers(), live_run())


class TuneApp(ConfirmingApp):
    """The wizard. `probe` replaces the look at the box; `warm` says whether a worker is warmed, `simulate`
    whether the plan's memory is simulated.
    """

    TITLE = "ollama-tune"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (80, "-usual"), (100, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (18, "-short"), (24, "-high"), (34, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q,ctrl+c", "leave", "Quit", show=False, priority=True)
    ]

    def __init__(
        self,
        start: Start | None = None,
        *,
        probe: Probe | None = None,
        warm: bool = True,
        simulate: bool = True,
    ) -> None:
        self._start = start or find_start()
        super().__init__(self._start.answers, probe)
        self.folder: RunFolder | None = None
        self._warm: WarmWorker | None = None
        self._may_warm = warm
        self.may_simulate = simulate
        self._reading = False
        self._save_timer: Timer | None = None
        self.animation_level = "none"
        if self.console.color_system == "standard":
            self.theme = "ansi-dark"

    # Start and end

    def _first_screen(self) -> Screen[Any]:
        if self._start.run is not None:
            self._take_run(self._start.run)
            return self._step_screen(TRAINING)
        return self._step_screen(self._possible(self.answers.step))

    async def on_mount(self) -> None:
        """End in order on SIGTERM and SIGHUP, and show the first screen."""
        self._handle_signals(True)
        await self.push_screen(self._first_screen())
        if self._may_warm:
            self.set_timer(WARM_AFTER, self.warm_up)

    def on_unmount(self) -> None:
        """Keep the answers; end a warm worker that was not needed."""
        self._handle_signals(False)
        self.save_answers()
        self.stop_confirming()
        if self._warm is not None:
            self._warm.close()

    def _handle_signals(self, on: bool) -> None:
        if self.is_headless:
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if on:
                loop.add_signal_handler(number, self.exit, None, 128 + number)
            else:
                loop.remove_signal_handler(number)

    def action_leave(self) -> None:
        """Quit; nothing is lost, so nothing is asked."""
        lines = ["Your answers are kept: `ollama-tune` goes on where you were."]
        if self.folder is not None and self.folder.alive():
            name = self.folder.name
            lines = [f"{name} goes on without this window: `ollama-tune attach {name}` shows it again."]
        self.exit(0, message=Text("\n".join(lines)))

    def _fatal_error(self) -> None:
        """Textual would print every local value, data rows too; write a report without them instead."""
        from ollama_tune.tui.crash import report_crash

        self.panic(Text(report_crash(cast("Exception", self._exception))))

    # Steps

    def _possible(self, step: int) -> int:
        """The step that can be shown: those after Review need the run that the answers name."""
        if step <= REVIEW:
            return step
        from ollama_tune.core.errors import UsageError
        from ollama_tune.core.runs.folder import find_run

        with contextlib.suppress(UsageError):
            if self.answers.run:
                self.folder = find_run(self.answers.run)
                return step
        return REVIEW

    def _step_screen(self, number: int) -> Screen[Any]:
        if number <= REVIEW and not self._reading:
            self._reading = True
            self.call_after_refresh(self.read_everything)
        step = STEPS[number - 1]
        kind = getattr(importlib.import_module(step.module), step.screen)
        return cast("Screen[Any]", kind(folder=self.folder) if number >= TRAINING else kind())

    async def go_on(self, screen: StepScreen) -> None:
        """Show the step after the screen's."""
        if screen.step is not STEPS[-1]:
            self._remember(screen.STEP + 1)
            await self.push_screen(self._step_screen(screen.STEP + 1))

    async def go_back(self, screen: StepScreen) -> None:
        """Show the step before the screen's; from a run that these answers did not start, the runs."""
        if screen.STEP == 1:
            return
        below = self.screen_stack[-2]
        if screen.STEP == TRAINING and not self._own_run():
            alone = below is self.screen_stack[0]
            await (self.switch_screen(self.runs_screen()) if alone else self.pop_screen())
            return
        self._remember(screen.STEP - 1)
        if isinstance(below, StepScreen) and below.STEP == screen.STEP - 1:
            await self.pop_screen()
        else:
            await self.switch_screen(self._step_screen(screen.STEP - 1))

    def _own_run(self) -> bool:
        return self.folder is not None and self.folder.name == self.answers.run

    def _remember(self, step: int) -> None:
        if step <= REVIEW or self._own_run():
            self.answers = replace(self.answers, step=step)
            self.save_answers()
            self._foresee()

    def save_answers(self) -> None:
        """Write the answers now; a state folder that cannot be written must not stop the wizard."""
        with contextlib.suppress(OSError, TuneError):
            self.answers.save()

    def save_soon(self) -> None:
        """Write the answers when the person pauses for half a second."""
        if self._save_timer is not None:
            self._save_timer.stop()
        self._save_timer = self.set_timer(SAVE_AFTER, self.save_answers)

    def set_value(self, path: str, value: Any) -> None:
        """As the parent, and saved."""
        super().set_value(path, value)
        self.save_soon()

    def restore_value(self, path: str) -> None:
        """As the parent, and saved."""
        super().restore_value(path)
        self.save_soon()

    async def start_over(self) -> None:
        """Forget the answers and show step 1: the wizard after Done."""
        forget_answers()
        self.answers, self.folder = WizardState(), None
        while len(self.screen_stack) > 2:
            await self.pop_screen()
        self._reading = False
        await self.switch_screen(self._step_screen(1))

    # Runs

    def _take_run(self, path: Path) -> None:
        from ollama_tune.core.runs.folder import RunFolder

        self.folder = RunFolder(path)

    def runs_screen(self) -> Screen[Any]:
        """The list of runs."""
        module = importlib.import_module("ollama_tune.tui.screens.runs")
        return cast("Screen[Any]", module.RunsScreen())

    async def open_run(self, folder: RunFolder) -> None:
        """Show a run on its Training screen."""
        self.folder = folder
        await self.push_screen(self._step_screen(TRAINING))

    def start_run(self, settings: Settings) -> None:
        """Make the run folder and start its worker; ends in `RunStarted` or `StartFailed`."""
        self._busy("start", "Starting the run …")
        self._start_run(settings)

    @work(thread=True, exclusive=True, exit_on_error=False, group="start")
    def _start_run(self, settings: Settings) -> None:
        from ollama_tune.core.runs.folder import create_run
        from ollama_tune.core.runs.launch import start

        warm = self._warm
        lack = self.shortage_now(settings, warm.pid if warm is not None else None)
        if lack is not None:
            self.post_message(messages.StartFailed(lack))
            return
        try:
            folder = create_run(settings, settings.export.name or Path(settings.model.source).name)
            start(folder, "train", self.take_warm())
        except TuneError as error:
            self.post_message(messages.StartFailed(error))
        else:
            self.post_message(messages.RunStarted(folder))

    @on(messages.RunStarted)
    async def _run_started(self, message: messages.RunStarted) -> None:
        self.folder = message.folder
        self.answers = replace(self.answers, run=message.folder.name)
        self._known("start")
        self._remember(TRAINING)
        await self.push_screen(self._step_screen(TRAINING))

    @on(messages.StartFailed)
    def _start_failed(self, message: messages.StartFailed) -> None:
        from ollama_tune.tui.widgets.errors import ErrorScreen

        self._known("start")
        self.push_screen(ErrorScreen(message.error))

    # The warm worker

    def warm_up(self) -> None:
        """Let a worker import the training libraries while the person is still choosing."""
        if self._may_warm and self._warm is None and self.folder is None:
            self._may_warm = False
            self._start_warm()

    @work(thread=True, exclusive=True, exit_on_error=False, group="warm")
    def _start_warm(self) -> None:
        from ollama_tune.core.runs.launch import WarmWorker

        self.post_message(messages.WarmStarted(WarmWorker()))

    @on(messages.WarmStarted)
    def _warmed(self, message: messages.WarmStarted) -> None:
        self._warm = message.worker
        self._foresee()

    @on(messages.PlanChanged)
    def _foresee(self) -> None:
        """Let it load what will likely be trained, from the settings step on and where that fits."""
        if self._warm is not None:
            plan = self.facts.plan
            likely = plan is not None and plan.memory.fits and self.answers.step >= SETTINGS
            self._warm.prepare(plan.settings if plan is not None and likely else None)

    def look_at_box(self) -> Machine:
        """As the parent; what the warm worker holds counts as free, for it is the run's."""
        return tasks.without(self._warm.pid if self._warm is not None else None, super().look_at_box())

    def take_warm(self) -> WarmWorker | None:
        """Give the warm worker away, once."""
        warm, self._warm = self._warm, None
        return warm

    # What nobody foresaw

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Slow work met an error of its own: say so, with a report, and go on."""
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            from ollama_tune.tui.crash import report_crash
            from ollama_tune.tui.widgets.errors import ErrorScreen

            self._known(event.worker.group)
            report = report_crash(event.worker.error)
            self.push_screen(ErrorScreen(TuneError("That did not work.", report)))


def run_app(folder: RunFolder | None = None) -> int:
    """Open the wizard, or the screen of a run; returns the exit status."""
    app = TuneApp(Start(load_answers(), folder.path) if folder is not None else None)
    result = app.run()
    return result if result is not None else app.return_code or 0


if __name__ == "__main__":
    raise SystemExit(run_app())
