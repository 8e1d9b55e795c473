"""The application: which screen is shown, what is saved, and how it ends."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.text import Text
from textual import events, on
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.timer import Timer

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import visible
from ollama_tune.tui import messages
from ollama_tune.tui.failing import FailingApp
from ollama_tune.tui.look import Look, find_look
from ollama_tune.tui.pasting import PasteApp
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.signals import SignalApp
from ollama_tune.tui.starting import StartingApp
from ollama_tune.tui.state import (
    REVIEW,
    STEPS,
    TRAINING,
    WizardState,
    forget_answers,
    goes_on,
    live_run,
    load_answers,
)
from ollama_tune.tui.tasks import Probe
from ollama_tune.tui.themes import ThemedApp

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder
    from ollama_tune.tui.palette import Command

SAVE_AFTER = 0.5
READ_AFTER = 0.7
TELL = 10.0


@dataclass(frozen=True)
class Start:
    """What opens first: the screen of the run in the folder `run`, else the wizard at its step."""

    answers: WizardState
    run: Path | None = None


def find_start() -> Start:
    """A run that is going, else the unfinished wizard, else step 1."""
    return Start(load_answers(), live_run())


def collect_again() -> None:
    """The start made no garbage: what it made is never looked at again, and collecting begins (see cli)."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def keep_loaded() -> None:
    """What the rooms loaded is no garbage either: to look through it all would keep a key waiting for 20 to
    50 ms, now and then."""
    if gc.get_freeze_count():
        gc.freeze()


class TuneApp(PasteApp, ThemedApp, SignalApp, FailingApp, StartingApp):
    """The wizard. `probe` replaces the look at the box; `warm` says whether a worker is warmed, `simulate`
    whether the plan's memory is simulated.
    """

    TITLE = "ollama-tune"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (80, "-usual"), (100, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (18, "-short"), (24, "-high"), (34, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "leave", "Quit", priority=True),
        Binding("ctrl+c", "leave", "Quit", show=False, priority=True),
        Binding("q", "leave", "Quit", show=False),
        Binding("ctrl+p,f9,colon", "palette", "Commands"),
        Binding("ctrl+z", "suspend_process", "To the shell (fg comes back)", show=False, priority=True),
    ]

    def __init__(
        self,
        start: Start | None = None,
        *,
        probe: Probe | None = None,
        look: Look | None = None,
        warm: bool = True,
        simulate: bool = True,
    ) -> None:
        self._start = start or find_start()
        super().__init__(self._start.answers, probe, warm=warm)
        self.look = look or Look()
        self.may_simulate = simulate
        self._reading = False
        self._save_timer: Timer | None = None
        self._unread: Timer | None = None
        self._planned_before = False
        self.animation_level = "none"
        self.dress(self.look.theme)

    # Start and end

    def _first_screen(self) -> Screen[Any]:
        if self._start.run is not None:
            self._take_run(self._start.run)
            return self._step_screen(TRAINING)
        return self._step_screen(self._possible(self.answers.step))

    @on(events.Mount)
    async def _open(self) -> None:
        """Show the first screen, and say what in the person's preferences was ignored."""
        await self.push_screen(self._first_screen())
        self.call_after_refresh(collect_again)
        for remark in self.look.remarks:
            self.tell(remark)

    def on_unmount(self) -> None:
        """Keep the answers."""
        self.save_answers()

    def action_leave(self) -> None:
        """Quit; nothing is lost, so nothing is asked."""
        run = self.folder.path if self.folder is not None and self.folder.alive() else live_run()
        words = "Your answers are kept: `ollama-tune` goes on where you were."
        self.exit(0, message=Text(goes_on(run) if run is not None else words))

    @on(messages.PlanChanged)
    def _loaded(self) -> None:
        """With the first plan all rooms are loaded."""
        if not self._planned_before:
            self._planned_before = True
            keep_loaded()

    def work_failed(self, group: str) -> None:
        """Slow work that ended so is no longer busy."""
        self._known(group)

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
        if number > 1:
            self._read_now()
        step = STEPS[number - 1]
        kind = getattr(importlib.import_module(step.module), step.screen)
        return cast("Screen[Any]", kind(folder=self.folder) if number >= TRAINING else kind())

    def read_answers(self) -> None:
        """As the parent; the first step shows the box alone, so there the rest waits until it has settled."""
        if self.answers.step == 1 and not self.is_headless:
            self._unread = self.set_timer(READ_AFTER, self._read_now)
        else:
            super().read_answers()

    def _read_now(self) -> None:
        if self._unread is not None:
            self._unread.stop()
            self._unread = None
            super().read_answers()

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

    def can_go_to(self, number: int) -> bool:
        """Whether a step can be shown at once: any of the setup, the run, those before the present one."""
        screen: Screen[Any] = self.screen
        here = screen.STEP if isinstance(screen, StepScreen) else 0
        if number == here or (isinstance(screen, StepScreen) and number > here and screen.obstacle()):
            return False
        known = number <= REVIEW or (self.folder is not None and number == TRAINING)
        return known or (self.folder is not None and number <= here + 1)

    async def go_to(self, number: int) -> None:
        """Show a step from anywhere; answers stay."""
        if isinstance(self.screen, StepScreen):
            self.screen.leaving()
        if not self.can_go_to(number):
            return
        self._remember(number)
        while len(self.screen_stack) > 2 and not self._is_at_or_before(number):
            await self.pop_screen()
        if self._is_at_or_before(number - 1):
            await self.push_screen(self._step_screen(number))
        elif not self._is_at_or_before(number):
            await self.switch_screen(self._step_screen(number))

    def _is_at_or_before(self, number: int) -> bool:
        return isinstance(self.screen, StepScreen) and number >= self.screen.STEP

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

    def choose_data(self, path: str) -> None:
        """As the parent, and saved: a path is the longest thing that is typed here."""
        super().choose_data(path)
        self.save_soon()

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
        await self.open_wizard(WizardState())

    async def open_wizard(self, answers: WizardState) -> None:
        """Go on with other answers, at their step."""
        self.folder = None
        self.take_answers(answers)
        while len(self.screen_stack) > 2:
            await self.pop_screen()
        self._reading = False
        await self.switch_screen(self._step_screen(self._possible(answers.step)))

    # Everything by name

    def action_palette(self) -> None:
        """Show what can be done now, by name."""
        from ollama_tune.tui.palette import PaletteScreen, commands

        self.push_screen(PaletteScreen(commands(self)), self._do)

    async def _do(self, command: Command | None) -> None:
        done = command.run() if command is not None else None
        if isinstance(done, Awaitable):
            await done

    def tell(self, sentence: str) -> None:
        """Say a sentence over whatever screen is shown, for some seconds."""
        self.notify(visible(sentence), timeout=TELL, markup=False)

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


def run_app(folder: RunFolder | None = None, look: Look | None = None) -> int:
    """Open the wizard, or the screen of a run; returns the exit status."""
    look = look or find_look()
    app = TuneApp(Start(load_answers(), folder.path) if folder is not None else None, look=look)
    result = app.run(mouse=look.mouse)
    return result if result is not None else app.return_code or 0


if __name__ == "__main__":
    raise SystemExit(run_app())
