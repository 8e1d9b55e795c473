"""Step 8: the tuned model as one file, proved and put into Ollama."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import ExportSettings
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.exporting import (
    Look,
    ask_ollama,
    begin_export,
    fails_in_ollama_only,
    look,
    refusal,
    replaces,
)
from ollama_tune.tui.screens.run_screen import RunScreen, working
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.card import VerificationCard
from ollama_tune.tui.widgets.errors import ErrorScreen, sentence
from ollama_tune.tui.widgets.export_form import ExportForm
from ollama_tune.tui.widgets.log import RunLog

if TYPE_CHECKING:
    from ollama_tune.core.export.values import Check
    from ollama_tune.core.machine.values import OllamaStatus

KNOCK = 4.0
FILE_ONLY = "For the file alone press F2 and say no to Send to Ollama."


@dataclass
class Looked(Message):
    """The base model and the box were looked at."""

    look: Look


@dataclass
class Asked(Message):
    """What Ollama says of a model of that name and size."""

    status: OllamaStatus
    about: tuple[str, int]
    checks: list[Check]


@dataclass
class Checked(Message):
    """What Ollama says of the very export that was asked for; it is started if nothing is against it."""

    request: ExportSettings
    checks: list[Check]


@dataclass
class Begun(Message):
    """A worker exports, or could not be started (then `error` says why)."""

    error: TuneError | None = None


class ExportScreen(RunScreen):
    """Name and type, then the work, then the verification card."""

    STEP = 8
    CSS_PATH = "export.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "export", "Export", priority=True),
        Binding("enter", "next", "Next", priority=True),
        Binding("tab", "other_field", "Other field"),
        Binding("f2,m", "more", "More"),
        Binding("s", "stop", "Stop"),
        Binding("a", "again", "Export again"),
        Binding("e", "details", "Details"),
    ]

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self._look: Look | None = None
        self._checks: list[Check] = []
        self._error: TuneError | None = None
        self._busy = self._again = False
        self._mark = -1

    def body(self) -> ComposeResult:
        """State, the form, trouble, the card."""
        yield Static(id="state", markup=False)
        yield ExportForm(self.folder.export_settings(), id="form")
        yield Static(id="trouble", markup=False)
        yield RunLog(id="log")
        with VerticalScroll(id="result"):
            yield VerificationCard(id="card")

    @property
    def form(self) -> ExportForm:
        """The form."""
        return self.query_one(ExportForm)

    def on_mount(self) -> None:
        """Look at Ollama and the model while the form is already there."""
        super().on_mount()
        self._start_look()
        self.set_interval(KNOCK, self._knock)

    # What the screen is at

    @property
    def working(self) -> bool:
        """True while something is exported, or about to be."""
        return self._busy or (self.run.alive and self.view.stage == "export")

    @property
    def finished(self) -> bool:
        """True when an export is done and no other one is wished for."""
        return not self.working and "export" in self.view.done and not self._again

    @property
    def refuted(self) -> bool:
        """True when the last export ended with a file that is not the tuned model."""
        verification = self.view.verification
        told = verification is not None and verification.verdict == "fail" and self.view.error is not None
        return told and not (self.working or self._again)

    @property
    def _in_ollama(self) -> bool:
        proof = self.view.verification
        return proof is not None and fails_in_ollama_only(proof)

    @property
    def form_shown(self) -> bool:
        """True while the person chooses."""
        return not (self.working or self.finished or self.refuted or self.impossible)

    @property
    def impossible(self) -> bool:
        """True when this model's architecture cannot be written as a file for Ollama."""
        spec = self._look.spec if self._look else None
        return spec is not None and bool(spec.export_reason)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enter exports in the form and goes on after it; the other keys show where they do something."""
        form = self.form_shown
        shown = {
            "export": form,
            "other_field": form,
            "more": form or self.finished or self.refuted,
            "next": not form,
            "again": self.finished or self.refuted,
            "stop": self.run.alive and self.view.stage == "export",
            "details": (form or self.refuted) and self._failure() is not None,
        }
        return shown[action] if action in shown else super().check_action(action, parameters)

    def obstacle(self) -> str:
        """The end of the wizard needs a file."""
        if self.refuted:
            if self._in_ollama:
                return "The model is not in Ollama: press a to export again."
            return "This file is not proved: press a to export again with another type."
        return "The export is still going: wait for its end, or press s to stop it." if self.working else ""

    # Show

    def show_run(self) -> None:
        """Form, work or result."""
        if self._mark >= 0 and (self.view.version > self._mark or not self.run.alive):
            self._busy, self._mark = False, -1  # the worker has said its first word, or ended without one
        form, log, card = self.form, self.query_one(RunLog), self.finished or self.refuted
        form.display = self.form_shown
        log.display = self.working
        if self.working and not self._busy:
            self.call_after_refresh(log.show_events, self.view, since=self.view.started)
        self.query_one("#result").display = card
        self.query_one(VerificationCard).show(self.view.verification if card else None)
        if not form.display and self.focused is not None and form in self.focused.ancestors:
            self.set_focus(None)
        if self.focused is None and (card or self.form_shown):
            self.query_one("#result" if card else "#name").focus()
        self._watch_facts(self.tune.facts)
        self.tick()
        failure = self._failure() if self.form_shown or self.impossible else None
        trouble = self.query_one("#trouble", Static)
        trouble.display = failure is not None
        if failure is not None:
            trouble.update(sentence(failure))

    def tick(self) -> None:
        """The line at the top; a phase counts its seconds."""
        self.tell("#state", self._state(), layout=True)

    def _state(self) -> Content:
        if self.working:
            return Content("Starting the export …") if self._busy else working(self.view, time.time())
        if self.refuted:
            words = "model in Ollama failed its proof"
            if not self._in_ollama:
                words = "exported file failed its proof, and was not sent to Ollama"
            return Content.styled(f"✗ The {words}.", "bold $text-error")
        if not self.finished:
            return Content("One file that Ollama runs, proved to be the tuned model.")
        name = self.view.done["export"].get("ollama_name")
        where = (
            f"It is in Ollama as {one_line(str(name).removesuffix(':latest'), 60)}."
            if name
            else "The file is in the run's folder."
        )
        return Content.assemble(("✓ Exported. ", "bold $text-success"), where)

    def _failure(self) -> TuneError | None:
        """What went wrong last, until the next try."""
        if self._error is not None or self.view.stage != "export" or self._again:
            return self._error
        if self.view.error is not None:
            error = self.view.error
            return TuneError(str(error["what"]), str(error["fix"]), details=str(error.get("details", "")))
        if self.view.stopped is not None:
            return TuneError("The export was stopped.", "Press Enter to export again.")
        if self.run.state is State.CRASHED:
            tail = self.folder.log_tail()
            where = f"Its log is {tilde(self.folder.log_path)}; press Enter to try again."
            return TuneError("The export ended without a word.", where, details=tail)
        return None

    # The look at the box, the model and Ollama

    @work(thread=True, exclusive=True, exit_on_error=False, group="look")
    def _start_look(self) -> None:
        self.post_message(Looked(look(self.folder, self.tune.look_at_box())))

    @on(Looked)
    def _looked(self, message: Looked) -> None:
        self._look, self._error = message.look, message.look.error
        self.form.show_look(message.look)
        self._ask_again()
        if message.look.spec is not None and self.impossible:
            tuned = self.folder.tuned or self.folder.adapter
            reason = f"{message.look.spec.export_reason} The {tuned.name} is in {tilde(tuned)}."
            self._error = TuneError("This model cannot be exported.", reason)
        self.show_now()

    @on(ExportForm.Changed)
    def _ask_again(self) -> None:
        """Ollama's words follow the form."""
        if self._look is not None:
            self.form.show_ollama(self._look.ollama, self._checks)
            self._ask(self._look.ollama, *self._asked)

    @property
    def _asked(self) -> tuple[str, int]:
        asked = self.form.asked
        return asked.name or "", self._look.size(asked.type) if self._look else 0

    def _knock(self) -> None:
        """An Ollama that did not answer may have been started by now."""
        if self.is_current and self.form_shown and self._look and not self._look.ollama.reachable:
            self._ask(None, *self._asked)

    @work(thread=True, exclusive=True, exit_on_error=False, group="ask")
    def _ask(self, status: OllamaStatus | None, name: str, size: int) -> None:
        from ollama_tune.core.machine.ollama import read_ollama

        found = status or read_ollama()
        self.post_message(Asked(found, (name, size), ask_ollama(found, name, size)))

    @on(Asked)
    def _answered_by_ollama(self, message: Asked) -> None:
        """Show it, unless the form asks something else by now."""
        if self._look is not None and message.about == self._asked:
            self._look, self._checks = replace(self._look, ollama=message.status), message.checks
            self.form.show_ollama(message.status, message.checks)

    # From the form to a worker

    def action_export(self) -> None:
        """Check the form, ask before a model is replaced, and start."""
        obstacle = self.form.obstacle()
        self.say(obstacle)
        if self.form.checked_name() is None:
            self.query_one("#name").focus()
        elif not obstacle:
            self._busy, self._error, self._again = True, None, True
            self.show_now()
            self._check(self.form.asked)

    @work(thread=True, exclusive=True, exit_on_error=False, group="export")
    def _check(self, request: ExportSettings) -> None:
        from ollama_tune.core.machine.ollama import read_ollama

        size = self._look.size(request.type) if self._look else 0
        checks = ask_ollama(read_ollama(), str(request.name), size) if request.push else []
        self.post_message(Checked(request, checks))

    @on(Checked)
    def _checked(self, message: Checked) -> None:
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        refused = refusal(message.checks)
        if refused:
            self._begun(Begun(TuneError(refused, FILE_ONLY)))
        elif replaces(message.checks):
            name = visible(str(message.request.name))
            question = ConfirmScreen(
                f"Replace {name} in Ollama?",
                "Ollama has a model of this name already. It is replaced once the new one is proved.",
            )
            self.app.push_screen(question, lambda yes: self._answered(message.request, bool(yes)))
        else:
            self._start(message.request)

    def _answered(self, request: ExportSettings, yes: bool) -> None:
        if yes:
            self._start(request)
            return
        self._busy = False
        self.show_now()
        self.query_one("#name").focus()

    @work(thread=True, exclusive=True, exit_on_error=False, group="export")
    def _start(self, request: ExportSettings) -> None:
        try:
            begin_export(self.folder, request, self._look.size(request.type) if self._look else 0)
        except TuneError as error:
            self.post_message(Begun(error))
        else:
            self.post_message(Begun())

    @on(Begun)
    def _begun(self, message: Begun) -> None:
        self._busy, self._error = message.error is None, message.error
        self._again = message.error is not None
        self._mark = self.view.version if self._busy else -1
        self.run.poll()
        self.show_now()

    # Other keys

    def action_other_field(self) -> None:
        """From the name to the number format and back."""
        self.focus_next()

    def action_more(self) -> None:
        """Show or hide what few need: of the form, or of the card."""
        (self.form if self.form_shown else self.query_one(VerificationCard)).toggle_more()

    def help_topic(self) -> tuple[str, str]:
        """The help of the focused field, else of the step."""
        topic = (
            self.form.help_topic() if self.form_shown else "proof" if self.finished or self.refuted else ""
        )
        return ("export", topic) if topic else super().help_topic()

    def action_again(self) -> None:
        """Back to the form; what was exported stays until the next one is done."""
        self._again = True
        self.show_now()
        self.query_one("#name").focus()

    def action_stop(self) -> None:
        """Ask once; Enter says no."""
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        text = "What was trained stays; no half-written file is left. You can export again at any time."
        self.app.push_screen(ConfirmScreen("Stop the export?", text), self._stop_answered)

    def _stop_answered(self, yes: bool | None) -> None:
        from ollama_tune.core.runs.control import request_stop

        try:
            if yes:
                request_stop(self.folder)
                self.say("Stopping the export …")
        except TuneError as error:
            self.say(error.what)

    def action_details(self) -> None:
        """The whole error; from there it can be written to a file."""
        failure = self._failure()
        if failure is not None:
            self.app.push_screen(ErrorScreen(failure))
