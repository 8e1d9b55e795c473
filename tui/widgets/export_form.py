"""The form of an export: name and type first, what few need behind `More`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import ExportSettings, GgufType
from ollama_tune.core.text import human_bytes, one_line, visible
from ollama_tune.tui.exporting import Look
from ollama_tune.tui.fields import EXPORT_MORE, value_of
from ollama_tune.tui.text import put_text
from ollama_tune.tui.widgets.choice import TYPE_HEADING, CheckList, ChoiceList, GgufTypes
from ollama_tune.tui.widgets.form import FieldRow, TextField

if TYPE_CHECKING:
    from ollama_tune.core.export.values import Check
    from ollama_tune.core.machine.values import OllamaStatus

EXAMPLE = "for example kitchen-tickets"
CLOSED = "F2 shows more: every type, and what few people need."
OPENED = "F2 hides the following again."
FORMS = (
    ("merged", "merged model: a 16-bit safetensors folder for other programs"),
    ("adapter", "adapter: the PEFT folder, small, of use with the base model"),
    ("adapter_gguf", "adapter as GGUF: for llama.cpp and Ollama 0.30 to 0.34.0 only"),
)
REASONS = {
    "export.importance": "keeps best what your own rows use; of no effect on 8 bit and more",
    "export.system": "empty: none, as in training; else Ollama puts it before every chat",
    "export.push": "no: the file and the commands stay in the run's folder",
}
LATER = "The file and the commands for later are left in the run's folder."
SIGNS = {
    "pass": ("✓ ", "bold $text-success"),
    "warn": ("! ", "bold $text-warning"),
    "fail": ("✗ ", "bold $text-error"),
    "skipped": ("– ", "bold"),
}


class ExportForm(VerticalScroll, can_focus=False):
    """What an export is asked for; `asked` is it, as far as everything in the form is allowed."""

    @dataclass
    class Changed(Message):
        """The name, the type or the way to Ollama is another one now."""

    def __init__(self, asked: ExportSettings, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.asked = asked
        self._look: Look | None = None
        self._name_error = ""

    def compose(self) -> ComposeResult:
        """Name, type, Ollama; the rest is hidden until it is asked for."""
        with Horizontal(id="name-line"):
            yield Static("Name in Ollama", classes="label")
            yield TextField(visible(self.asked.name or ""), placeholder=EXAMPLE, id="name")
        yield Static(id="name-note", markup=False)
        yield Static(TYPE_HEADING, id="type-heading", markup=False)
        yield GgufTypes(self.asked.type, id="type")
        yield Static(id="type-reason", markup=False)
        yield Static("Looking for Ollama …", id="ollama", markup=False)
        yield Static(CLOSED, id="more-hint", markup=False)
        with Vertical(id="more"):
            for field in EXPORT_MORE:
                yield FieldRow(field)
            yield Static("Write as well (space takes a line)", classes="label")
            yield CheckList(FORMS, self.asked.also, id="also")

    def on_mount(self) -> None:
        """Fill in what was asked for last."""
        self.query_one("#more").display = False
        for row in self.query(FieldRow):
            row.show_value(getattr(self.asked, row.field.path.partition(".")[2]))
            row.tell(REASONS[row.field.path])

    # What is known

    def show_look(self, look: Look) -> None:
        """Take over the model, the box and what they mean for the types."""
        self._look = look
        name, types = self.query_one("#name", TextField), self.query_one(GgufTypes)
        recommended = cast("GgufType", look.recommended.value) if look.recommended else None
        if not name.value and look.suggestion:
            name.value = look.suggestion
            if recommended is not None:
                types.value = recommended
                self._ask(type=recommended)
        types.show_offers(look.offers, recommended)
        self.checked_name()
        self._tell_type()

    def show_ollama(self, status: OllamaStatus, checks: Sequence[Check]) -> None:
        """Say where the model goes and what stands in the way."""
        put_text(self.query_one("#ollama", Static), ollama_content(status, checks, self.asked.push))

    def _ask(self, **values: Any) -> None:
        self.asked = self.asked.model_copy(update=values)
        self.post_message(self.Changed())

    # The name

    @on(Input.Changed, "#name")
    def _typed(self) -> None:
        """Never a complaint while somebody types; an old one goes as soon as the name is right."""
        if self._name_error:
            self.checked_name()
        self._tell_name()

    @on(Input.Blurred, "#name")
    def _left(self) -> None:
        if self.checked_name() is not None:
            self.post_message(self.Changed())
        self._tell_name()

    def checked_name(self) -> str | None:
        """The name if Ollama takes it, else None with the reason below the field."""
        from ollama_tune.core.plan.names import check_ollama_name

        name = self.query_one("#name", Input).value.strip()
        try:
            check_ollama_name(name)
        except TuneError as error:
            self._name_error = f"{visible(error.what)} {visible(error.fix)}"
            self._tell_name()
            return None
        self._name_error = ""
        self.asked = self.asked.model_copy(update={"name": name})
        return name

    def _tell_name(self) -> None:
        name = visible(self.query_one("#name", Input).value.strip())
        text = f"Talk to it with: ollama run {name}" if name else EXAMPLE
        note = Content.styled(text, "dim")
        if self._name_error:
            note = Content.styled(f"✗ {self._name_error}", "bold $text-error")
        put_text(self.query_one("#name-note", Static), note)

    # The type

    @on(ChoiceList.Changed, "#type")
    def _type_chosen(self, event: ChoiceList.Changed) -> None:
        self._ask(type=event.value)
        self._tell_type()

    def _tell_type(self) -> None:
        """Why the recommended type, or what the chosen one needs and what would be recommended."""
        put_text(self.query_one("#type-reason", Static), Content.styled(self._type_reason(), "dim"))

    def _type_reason(self) -> str:
        if self._look is None or self._look.recommended is None:
            return ""
        recommended, offer = self._look.recommended, self._look.offers[self.asked.type]
        if recommended.value == offer.name:
            return f"why: {recommended.reason}"
        needs = f"needs {human_bytes(offer.needed)} to run"
        return f"{offer.name} {needs}; recommended: {recommended.value}, {recommended.reason}"

    def obstacle(self) -> str:
        """Why the chosen type cannot be written on this box; empty when it can."""
        return self._look.obstacle(self.asked.type) if self._look else ""

    # More

    @property
    def opened(self) -> bool:
        """True while everything is shown."""
        return bool(self.query_one("#more").display)

    def toggle_more(self) -> None:
        """Show or hide what few need."""
        opened = not self.opened
        self.query_one("#more").display = opened
        self.query_one("#more-hint", Static).update(OPENED if opened else CLOSED)
        self.query_one(GgufTypes).show_whole(opened)
        if opened:
            self.call_after_refresh(self._enter_more)
        elif self.screen.focused is None or self.query_one("#more") in self.screen.focused.ancestors:
            self.query_one("#name").focus()

    def _enter_more(self) -> None:
        self.scroll_to_widget(self.query_one("#more-hint"), top=True, animate=False)
        self.query(FieldRow).first(FieldRow).editor.focus(scroll_visible=False)

    @on(FieldRow.Edited)
    def _edited(self, event: FieldRow.Edited) -> None:
        value = value_of(event.row.field, event.value) if isinstance(event.value, str) else event.value
        self._ask(**{event.row.field.path.partition(".")[2]: value})

    @on(CheckList.Taken)
    def _taken(self, event: CheckList.Taken) -> None:
        self._ask(also=[name for name, _ in FORMS if name in event.values])

    def help_topic(self) -> str:
        """The heading in the help of the export that belongs to the focused field."""
        focused = self.screen.focused
        if focused is None:
            return ""
        for row in self.query(FieldRow):
            if row.editor is focused:
                return row.field.path.partition(".")[2]
        return focused.id or ""


def ollama_content(status: OllamaStatus, checks: Sequence[Check], push: bool) -> Content:
    """Where the model goes, and what of that server is worth a line: its kind, an old model, its disk."""
    if not push:
        return Content.assemble(SIGNS["skipped"], f"Nothing is sent to Ollama. {LATER}")
    if not status.reachable:
        return Content.assemble(SIGNS["skipped"], f"{one_line(status.reason, 200)} {LATER}")
    place = "" if status.local else " (another host)"
    server = f"Ollama {one_line(str(status.version), 20)} at {one_line(status.url, 60)}{place}"
    refused = any(check.verdict == "fail" for check in checks)
    verdict, words = ("fail", "cannot get the model:") if refused else ("pass", "gets the model.")
    lines = [Content.assemble(SIGNS[verdict], f"{server} {words}")]
    told = [check for check in checks if (check.name, check.verdict) != ("ollama name", "pass")]
    lines += [Content.assemble(SIGNS[check.verdict], one_line(check.text, 240)) for check in told]
    return Content("\n").join(lines)
