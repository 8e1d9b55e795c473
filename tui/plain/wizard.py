"""The whole wizard as plain questions and lines: for screen readers, simple terminals and pipes."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.text import one_line, visible
from ollama_tune.tui import tasks
from ollama_tune.tui.plain.data import ask_data
from ollama_tune.tui.plain.done import ask_done
from ollama_tune.tui.plain.export import ask_export
from ollama_tune.tui.plain.machine import ask_machine
from ollama_tune.tui.plain.model import ask_model
from ollama_tune.tui.plain.review import ask_review
from ollama_tune.tui.plain.rooms import Rooms
from ollama_tune.tui.plain.settings import ask_settings
from ollama_tune.tui.plain.talk import Back, Ended, Quit, Talk
from ollama_tune.tui.plain.training import ask_training
from ollama_tune.tui.plain.try_it import ask_try_it
from ollama_tune.tui.state import (
    BUNDLED,
    REVIEW,
    STEPS,
    TRAINING,
    WizardState,
    forget_answers,
    live_run,
    load_answers,
)
from ollama_tune.tui.text import tilde

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder
    from ollama_tune.core.runs.launch import WarmWorker

INTERRUPTED = 130
MODEL, DONE = 2, len(STEPS)
WELCOME = (
    "ollama-tune: teach a language model your own examples, and run it in Ollama.",
    "One question at a time. Enter takes what stands in brackets, ? explains,",
    "b goes back, q quits and keeps your answers.",
)
ASKS: tuple[Callable[[Wizard], None], ...]


class Anew(Exception):
    """The person begins a new run."""


class Wizard:
    """The steps in their order; the answers are the same file as the screens', saved at each step."""

    def __init__(self, talk: Talk, rooms: Rooms, *, warm: bool = True) -> None:
        self.talk, self.rooms = talk, rooms
        self.folder: RunFolder | None = None
        self.saved = rooms.answers
        self._may_warm = warm
        self._warm: WarmWorker | None = None

    def run(self) -> None:
        """From the step where the person was to the end."""
        number = self._first()
        while number <= DONE:
            self._remember(number)
            self.talk.turn(f"Step {number} of {DONE}: {STEPS[number - 1].title}.")
            try:
                ASKS[number - 1](self)
                number += 1
            except Back:
                number = max(number - 1, 1)
            except Anew:
                number = self._anew()
            except TuneError as error:
                self.talk.error(error)
                number = self._after_error(number)

    def _after_error(self, number: int) -> int:
        """The same step again, or the one before."""
        try:
            self.talk.ask("Try again", "yes", ("plain", "error"))
        except Back:
            return max(number - 1, 1)
        return number

    # Where the person was

    def _first(self) -> int:
        live = live_run()
        if live is not None and self._attaches(live):
            return TRAINING
        answers = self.rooms.answers
        if answers.step == 1:
            return 1
        number = self._possible(answers.step)
        data = BUNDLED if answers.data == BUNDLED else tilde(answers.data)
        self.talk.say(
            f"You were at step {number}, {STEPS[number - 1].title}. "
            f"Model: {one_line(answers.model, 80)}. Data: {one_line(data, 120)}."
        )
        return number

    def _attaches(self, path: Path) -> bool:
        from ollama_tune.core.runs.folder import RunFolder

        folder = RunFolder(path)
        status = folder.status()
        done = f", step {status.step:,} of {status.total_steps:,}" if status.total_steps else ""
        self.talk.say(f"A run is going: {visible(folder.name)}{done}.")
        try:
            wanted = self.talk.agrees("Watch it", True, ("plain", "training"))
        except Back:
            wanted = False
        self.folder = folder if wanted else None
        return wanted

    def _possible(self, number: int) -> int:
        """The step that can be shown: those after Review need the run that the answers name."""
        from ollama_tune.core.runs.folder import find_run

        if number <= REVIEW:
            return number
        with contextlib.suppress(UsageError):
            if self.rooms.answers.run:
                self.folder = find_run(self.rooms.answers.run)
                return number
        return REVIEW

    def _remember(self, number: int) -> None:
        """Keep the step, unless it is one of a run that these answers did not start."""
        if number <= REVIEW or (self.folder is not None and self.folder.name == self.rooms.answers.run):
            self.rooms.answers = replace(self.rooms.answers, step=number)
            self.keep()
        if number == MODEL:
            self._warm_up()

    def keep(self) -> None:
        """Write the answers now; a state folder that cannot be written must not stop the wizard."""
        self.saved = self.rooms.answers
        with contextlib.suppress(OSError, TuneError):
            self.saved.save()

    def _anew(self) -> int:
        forget_answers()
        self.rooms.answers, self.folder = WizardState(), None
        return 1

    def run_folder(self) -> RunFolder:
        """The folder of the run that is trained, tried or exported."""
        assert self.folder is not None
        return self.folder

    # The warm worker

    def _warm_up(self) -> None:
        """Let a worker import the training libraries while the person is still choosing."""
        if self._may_warm and self.folder is None:
            from ollama_tune.core.runs.launch import WarmWorker

            self._may_warm = False
            self._warm = WarmWorker()
            self.rooms.own = self._warm.pid

    def foresee(self) -> None:
        """Let it load what will likely be trained."""
        if self._warm is not None:
            plan = self.rooms.plan()
            self._warm.prepare(plan.settings if plan.memory.fits else None)

    def take_warm(self) -> WarmWorker | None:
        """Give the warm worker away, once."""
        warm, self._warm, self.rooms.own = self._warm, None, None
        return warm

    def close(self) -> None:
        """End a warm worker that was not needed, and keep the answers."""
        warm = self.take_warm()
        if warm is not None:
            warm.close()
        self.keep()

    def farewell(self) -> list[str]:
        """What becomes of everything, and how to return."""
        if self.folder is not None and self.folder.alive():
            name = visible(self.folder.name)
            return [f"{name} goes on without this window. ollama-tune attach {name} shows it again."]
        return ["Your answers are kept. ollama-tune --plain goes on where you were, ollama-tune in a window."]


ASKS = (
    ask_machine,
    ask_model,
    ask_data,
    ask_settings,
    ask_review,
    ask_training,
    ask_try_it,
    ask_export,
    ask_done,
)


def run_plain(
    source: TextIO | None = None,
    target: TextIO | None = None,
    *,
    probe: tasks.Probe | None = None,
    warm: bool = True,
) -> int:
    """Ask everything on standard input and output, or on other streams; returns the exit status.

    0 at the end and after q; 2 where the input ended at a question, which is then named; 130 after Ctrl+C.
    `probe` replaces the look at the box, `warm` says whether a worker is warmed.
    """
    talk = Talk(source or _readable(sys.stdin or io.StringIO()), target or sys.stdout)
    wizard = Wizard(talk, Rooms(load_answers(), talk, probe), warm=warm)
    try:
        talk.say(*WELCOME)
        wizard.run()
    except Quit:
        talk.say(*wizard.farewell())
    except Ended as end:
        talk.say(f"✗ The input ended before this was answered: {end.question}.", *wizard.farewell())
        return 2
    except KeyboardInterrupt:
        talk.say("", *wizard.farewell())
        return INTERRUPTED
    finally:
        wizard.close()
    return 0


def _readable(source: TextIO) -> TextIO:
    """Bytes of another encoding are part of a path, not an error."""
    with contextlib.suppress(AttributeError, OSError):
        source.reconfigure(errors="surrogateescape")  # type: ignore[attr-defined]
    return source
