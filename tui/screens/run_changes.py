"""What can be done with a run of the list: stop it, go on with it, do it again with changes, delete it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textual import on, work
from textual.message import Message
from textual.worker import Worker

from ollama_tune.core.errors import TuneError
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.text import human_bytes
from ollama_tune.tui.duplicate import forget_kept, keep_answers, kept_answers
from ollama_tune.tui.run_summary import ListedRun, folder_size
from ollama_tune.tui.screens.base import FramedScreen
from ollama_tune.tui.state import answers_of


@dataclass
class Settled(Message):
    """A resume or a deletion ended; `error` says why it did not work."""

    error: TuneError | None = None


class RunChangesScreen(FramedScreen):
    """A screen with a chosen run that can be changed; `changed` is called after each change."""

    @property
    def chosen(self) -> ListedRun | None:
        """The run that the keys are about."""
        return None

    def changed(self) -> None:
        """Something became of a run: look again."""

    async def action_duplicate(self) -> None:
        """The wizard at Settings with everything as this run had it."""
        run = self.chosen
        if run is None:
            return
        try:
            answers = answers_of(run.folder.settings())
        except TuneError as error:
            self.say(str(error))
            return
        kept = keep_answers(self.tune.answers, answers)
        await self.tune.open_wizard(answers)
        told = "Your unfinished answers are kept: b in Runs brings them back." if kept else ""
        self._tell_wizard(f"The settings of {run.name}: change what you like. {told}".strip())

    async def action_bring_back(self) -> None:
        """The answers that a duplicate took the place of."""
        answers = kept_answers()
        if answers is not None:
            forget_kept()
            await self.tune.open_wizard(answers)
            self._tell_wizard("These are the answers you had before.")

    def _tell_wizard(self, sentence: str) -> None:
        screen = self.tune.screen
        if isinstance(screen, FramedScreen):
            screen.call_after_refresh(screen.say, sentence)

    def action_stop(self) -> None:
        """Ask once; Enter says no."""
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        run = self.chosen
        if run is not None:
            text = "The run finishes its step, writes a checkpoint and ends. Going on later loses nothing."
            self.app.push_screen(
                ConfirmScreen(f"Stop {run.folder.name}?", text), lambda yes: self._stop(run.folder, bool(yes))
            )

    def _stop(self, folder: RunFolder, yes: bool) -> None:
        from ollama_tune.core.runs.control import request_stop

        try:
            if yes:
                request_stop(folder)
                self.say(f"{folder.name} ends after its step.")
        except TuneError as error:
            self.say(str(error))

    def action_resume(self) -> None:
        """Go on from the last checkpoint."""
        if self.chosen is not None:
            self.say(f"Starting {self.chosen.folder.name} again …")
            self._resume(self.chosen.folder)

    @work(thread=True, exclusive=True, exit_on_error=False, group="change")
    def _resume(self, folder: RunFolder) -> None:
        from ollama_tune.core.runs.control import resume

        self._settle(lambda: resume(folder))

    def action_delete(self) -> None:
        """Ask with the name and the size; Enter says no."""
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        run = self.chosen
        if run is not None:
            size = human_bytes(folder_size(run.folder.path))
            text = "Checkpoints, adapter and exported files are removed. What is in Ollama stays there."
            if run.trial:
                more = "removes all of its sweep that did not come to their end."
                text = f"{text} `ollama-tune delete {run.trial.sweep}` {more}"
            question = ConfirmScreen(f"Delete run {run.folder.name}, {size}?", text)
            self.app.push_screen(question, lambda yes: self._deletion_answered(run.folder, bool(yes)))

    def _deletion_answered(self, folder: RunFolder, yes: bool) -> None:
        if yes:
            self._delete(folder)

    @work(thread=True, exclusive=True, exit_on_error=False, group="change")
    def _delete(self, folder: RunFolder) -> None:
        from ollama_tune.core.runs.control import delete

        self._settle(lambda: delete(folder))

    def _settle(self, change: Callable[[], None]) -> None:
        """Do it in the thread that calls this, and say how it went."""
        try:
            change()
        except TuneError as error:
            self.post_message(Settled(error))
        except OSError as error:
            problem = f"That did not work: {error.strerror}."
            self.post_message(Settled(TuneError(problem, "Look at the folder and try again.")))
        else:
            self.post_message(Settled())

    @on(Settled)
    def _settled(self, message: Settled) -> None:
        self.say(str(message.error) if message.error else "")
        self.changed()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """An error of our own in slow work is reported by the application."""
        self.tune.on_worker_state_changed(event)
