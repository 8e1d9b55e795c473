"""Step 8: the tuned model as one file, proved and put into Ollama."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import ExportSettings, GgufType
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.screens.run_screen import RunScreen, working
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.card import VerificationCard
from ollama_tune.tui.widgets.choice import GgufTypes
from ollama_tune.tui.widgets.errors import ErrorScreen, sentence
from ollama_tune.tui.widgets.form import TextField
from ollama_tune.tui.widgets.log import RunLog

if TYPE_CHECKING:
    from ollama_tune.core.machine.values import OllamaStatus
    from ollama_tune.core.models.values import ModelSpec

EXAMPLE = "for example kitchen-tickets"
FREE_SECONDS = 10.0


@dataclass
class Looked(Message):
    """Ollama and the base model were looked at; `error` says why the model could not be read."""

    ollama: OllamaStatus
    spec: ModelSpec | None
    suggestion: str
    error: TuneError | None


@dataclass
class Checked(Message):
    """Whether Ollama already has a model of that name; `error` says why it did not tell."""

    request: ExportSettings
    taken: bool
    error: TuneError | None = None


@dataclass
class Begun(Message):
    """A worker exports, or could not be started (then `error` says why)."""

    error: TuneError | None = None


class ExportScreen(RunScreen):
    """Name and number format, then the work, then the verification card."""

    STEP = 8
    CSS_PATH = "export.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "export", "Export", priority=True),
        Binding("enter", "next", "Next", priority=True),
        Binding("tab", "other_field", "Other field"),
        Binding("s", "stop", "Stop"),
        Binding("a", "again", "Export again"),
        Binding("e", "details", "Details"),
    ]

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self._request = folder.export_settings()
        self._ollama: OllamaStatus | None = None
        self._spec: ModelSpec | None = None
        self._error: TuneError | None = None
        self._name_error = ""
        self._busy = self._again = False

    def body(self) -> ComposeResult:
        """State, the form, trouble, the card."""
        yield Static(id="state", markup=False)
        with Vertical(id="form"):
            yield Static("Name in Ollama", classes="label")
            yield TextField(visible(self._request.name or ""), placeholder=EXAMPLE, id="name")
            yield Static(id="name-note", markup=False)
            yield Static("Weights in the file", classes="label")
            yield GgufTypes(self._request.type, id="type")
            yield Static("Ollama", classes="label")
            yield Static("Looking for Ollama …", id="ollama", markup=False)
        yield Static(id="trouble", markup=False)
        yield RunLog(id="log")
        with VerticalScroll(id="result"):
            yield VerificationCard(id="card")

    def on_mount(self) -> None:
        """Look at Ollama and the model while the form is already there."""
        super().on_mount()
        self._look()

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
    def form_shown(self) -> bool:
        """True while the person chooses."""
        return not (self.working or self.finished or self.refuted or self.impossible)

    @property
    def impossible(self) -> bool:
        """True when this model's architecture cannot be written as a file for Ollama."""
        return self._spec is not None and bool(self._spec.export_reason)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enter exports in the form and goes on after it; the other keys show where they do something."""
        form = self.form_shown
        shown = {
            "export": form,
            "other_field": form,
            "next": not form,
            "again": self.finished or self.refuted,
            "stop": self.run.alive and self.view.stage == "export",
            "details": (form or self.refuted) and self._failure() is not None,
        }
        return shown[action] if action in shown else super().check_action(action, parameters)

    def obstacle(self) -> str:
        """The end of the wizard needs a file."""
        if self.refuted:
            return "This file is not proved: press a to export again with another type."
        return "The export is still going: wait for its end, or press s to stop it." if self.working else ""

    # Show

    def show_run(self) -> None:
        """Form, work or result."""
        form, log, card = self.query_one("#form"), self.query_one(RunLog), self.finished or self.refuted
        form.display = self.form_shown
        log.display = self.working
        if self.working:
            self.call_after_refresh(log.show_events, self.view, since=self.view.started)
        self.query_one("#result").display = card
        self.query_one(VerificationCard).show(self.view.verification if card else None)
        if not form.display and self.focused is not None and form in self.focused.ancestors:
            self.set_focus(None)
        if self.focused is None and (card or self.form_shown):
            self.query_one("#result" if card else "#name").focus()
        self.tick()
        failure = None if self.working or self.finished else self._failure()
        trouble = self.query_one("#trouble", Static)
        trouble.display = failure is not None
        if failure is not None:
            trouble.update(sentence(failure))

    def tick(self) -> None:
        """The line at the top; a phase counts its seconds."""
        self.tell("#state", self._state(), layout=True)

    def _state(self) -> Content:
        if self.working:
            return Content("Starting the worker …") if self._busy else working(self.view, time.time())
        if self.refuted:
            return Content.styled("✗ The exported file failed its proof.", "bold $text-error")
        if not self.finished:
            return Content("One file that Ollama runs, proved to be the tuned model.")
        name = self.view.done["export"].get("ollama_name")
        where = (
            f"It is in Ollama as {one_line(str(name), 60)}." if name else "The file is in the run's folder."
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

    def _note(self) -> Content:
        if self._name_error:
            return Content.styled(f"✗ {self._name_error}", "bold $text-error")
        name = visible(self.query_one("#name", Input).value.strip())
        return Content.styled(f"You will talk to it with: ollama run {name}" if name else EXAMPLE, "dim")

    # The look at Ollama and the model

    @work(thread=True, exclusive=True, exit_on_error=False, group="look")
    def _look(self) -> None:
        from ollama_tune.core.machine.ollama import read_ollama
        from ollama_tune.core.models.spec import read_spec
        from ollama_tune.core.plan.names import suggest_name

        spec, suggestion, error = None, "", None
        try:
            settings = self.folder.settings()
            spec = read_spec(settings.model.source, settings.model.revision)
            suggestion = suggest_name(spec, settings.data.path)
        except TuneError as found:
            error = found
        self.post_message(Looked(read_ollama(), spec, suggestion, error))

    @on(Looked)
    def _looked(self, message: Looked) -> None:
        self._ollama, self._spec, self._error = message.ollama, message.spec, message.error
        name = self.query_one("#name", TextField)
        if not name.value and message.suggestion:
            name.value = message.suggestion
        self.query_one(GgufTypes).show_sizes(message.spec)
        self.query_one("#ollama", Static).update(_ollama_line(message.ollama))
        if message.spec is not None and self.impossible:
            reason = f"{message.spec.export_reason} The adapter is in {tilde(self.folder.adapter)}."
            self._error = TuneError("This model cannot be exported.", reason)
        self.show_now()

    # The form

    @on(Input.Changed, "#name")
    def _typed(self) -> None:
        """Never a complaint while somebody types; an old one goes as soon as the name is right."""
        if self._name_error:
            self._check_name()
        self.tell("#name-note", self._note())

    @on(Input.Blurred, "#name")
    def _left(self) -> None:
        self._check_name()
        self.tell("#name-note", self._note(), layout=True)

    def _check_name(self) -> str | None:
        """The name if Ollama takes it, else None with the reason below the field."""
        from ollama_tune.core.plan.names import check_ollama_name

        name = self.query_one("#name", Input).value.strip()
        try:
            check_ollama_name(name)
        except TuneError as error:
            self._name_error = f"{visible(error.what)} {visible(error.fix)}"
            return None
        self._name_error = ""
        return name

    def action_export(self) -> None:
        """Check the name, ask before a model is replaced, and start."""
        name = self._check_name()
        self.tell("#name-note", self._note(), layout=True)
        if name is None:
            self.query_one("#name").focus()
            return
        chosen = cast("GgufType", self.query_one(GgufTypes).value)
        self._busy, self._error, self._again = True, None, True
        self.show_now()
        self._check(ExportSettings(name=name, type=chosen, push=self._request.push))

    @work(thread=True, exclusive=True, exit_on_error=False, group="export")
    def _check(self, request: ExportSettings) -> None:
        from ollama_tune.core.export.ollama import OllamaClient
        from ollama_tune.core.machine.ollama import read_ollama

        status = read_ollama()
        taken = False
        try:
            if status.reachable and request.push:
                with OllamaClient(status.url) as client:
                    taken = client.exists(str(request.name))
        except TuneError as error:
            self.post_message(Checked(request, False, error))
        else:
            self.post_message(Checked(request, taken))

    @on(Checked)
    def _checked(self, message: Checked) -> None:
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        if message.error is not None:
            self._begun(Begun(message.error))
        elif message.taken:
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
            begin_export(self.folder, request)
        except TuneError as error:
            self.post_message(Begun(error))
        except OSError as error:
            problem = f"The export could not be asked for: {error.strerror}."
            self.post_message(Begun(TuneError(problem, f"Look at {self.folder.path} and try again.")))
        else:
            self.post_message(Begun())

    @on(Begun)
    def _begun(self, message: Begun) -> None:
        self._busy, self._error = False, message.error
        self._again = message.error is not None
        self.run.poll()
        self.show_now()

    # Other keys

    def action_other_field(self) -> None:
        """From the name to the number format and back."""
        self.focus_next()

    def action_again(self) -> None:
        """Back to the form; what was exported stays until the next one is done."""
        self._again = True
        self.show_now()
        self.query_one("#name").focus()

    def action_stop(self) -> None:
        """Ask once; Enter says no."""
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        text = "The adapter stays as it is; no half-written file is left. You can export again at any time."
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


def begin_export(folder: RunFolder, request: ExportSettings) -> None:
    """Write the request into the run's folder and start a worker on it; a training one may just be ending."""
    from ollama_tune.core.runs.control import wait_until_free
    from ollama_tune.core.runs.folder import write_export_request
    from ollama_tune.core.runs.launch import start

    wait_until_free(folder, FREE_SECONDS)
    write_export_request(folder, request.model_dump())
    start(folder, "export")


def _ollama_line(status: OllamaStatus) -> Content:
    if status.reachable:
        server = f"Ollama {one_line(str(status.version), 20)} answers at {one_line(status.url, 60)}."
        return Content.assemble(("✓ ", "bold $text-success"), f"{server} The model is put into it.")
    later = "The file and the commands for later are left in the run's folder."
    return Content.assemble(("– ", "bold"), f"{one_line(status.reason, 200)} {later}")
