"""A form of settings: an editor for each field, its reason below it, its error in the reason's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rich.cells import cell_len
from textual import events, on
from textual.app import ComposeResult, RenderResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input

from ollama_tune.core.text import visible
from ollama_tune.tui.fields import FormField, text_of

LABEL = 18
WHY = "why recommended: "
NUMERIC = frozenset("0123456789.,-+eE")


class Form(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Rows of fields; the arrows go from field to field and the window follows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Field above", show=False),
        Binding("down", "app.focus_next", "Field below", show=False),
        Binding("pageup", "page_up", "Page up", show=False),
        Binding("pagedown", "page_down", "Page down", show=False),
    ]

    def on_resize(self) -> None:
        """Keep the focused field in sight when the room for the form changes."""
        for row in self.query(FieldRow):
            if row.editor.has_focus:
                row.scroll_visible(animate=False)


class TextField(Input):
    """One line of text without a border and without a blinking cursor."""

    DEFAULT_CSS = """
    TextField { background: $surface-lighten-1; }
    TextField:focus { background: $primary 40%; }
    TextField > .input--placeholder, TextField:focus > .input--placeholder { color: $text-muted; }
    TextField:ansi { background: ansi_default; text-style: underline; }
    TextField:ansi:focus { background: ansi_default; text-style: reverse; }
    TextField:ansi > .input--selection {
        color: ansi_blue; background: ansi_bright_white; text-style: bold underline;
    }
    """

    def __init__(self, value: str = "", placeholder: str = "", **options: Any) -> None:
        super().__init__(value, placeholder, compact=True, select_on_focus=False, **options)
        self.cursor_blink = False

    def _on_paste(self, event: events.Paste) -> None:
        """Several lines become one; Textual takes the first alone, which is empty after a line break."""
        event.prevent_default()
        event.stop()
        lines = (line.strip() for line in event.text.splitlines())
        self.replace(" ".join(line for line in lines if line), *self.selection)


class NumberField(TextField):
    """Takes only what a number is written with; every other letter stays a key of the screen."""

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Letters are not for this field."""
        return character is not None and character in NUMERIC

    async def _on_key(self, event: events.Key) -> None:
        """Letters bubble on to the screen's keys; Textual calls the parent's handler by itself otherwise."""
        if event.is_printable and event.character not in NUMERIC:
            event.prevent_default()


class ChoiceField(Widget, can_focus=True):
    """One of a few values; left, right and space go through them."""

    DEFAULT_CSS = """
    ChoiceField { height: 1; background: $surface-lighten-1; text-wrap: nowrap; }
    ChoiceField:focus { background: $primary 40%; text-style: bold; }
    ChoiceField:nocolor:focus { text-style: reverse; }
    ChoiceField:ansi { background: ansi_default; }
    ChoiceField:ansi:focus { background: ansi_default; text-style: reverse; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,space", "turn(1)", "Other value"),
        Binding("left", "turn(-1)", "Other value", show=False),
    ]

    @dataclass
    class Changed(Message):
        """Another value was taken."""

        field: ChoiceField
        value: Any

        @property
        def control(self) -> ChoiceField:
            """Who sent it."""
            return self.field

    def __init__(self, options: tuple[tuple[Any, str], ...], **names: Any) -> None:
        super().__init__(**names)
        self._options = options
        self._index = 0

    def show(self, value: Any) -> None:
        """Stand on a value, without a message."""
        self._index = next((i for i, (option, _) in enumerate(self._options) if option == value), 0)
        self.refresh()

    def action_turn(self, by: int) -> None:
        """The next value."""
        self._index = (self._index + by) % len(self._options)
        self.refresh()
        self.post_message(self.Changed(self, self._options[self._index][0]))

    def on_click(self) -> None:
        """As space."""
        self.action_turn(1)

    def render(self) -> RenderResult:
        """The words of the value between arrows."""
        return Content.assemble(("‹ ", "dim"), self._options[self._index][1], (" ›", "dim"))


class FieldRow(Widget):
    """A field of the form in two lines: label, editor and mark; below, why this value or what is wrong.

    The row draws its own text and holds one child, the editor, so that a form of thirty fields stays
    light.
    """

    DEFAULT_CSS = """
    FieldRow { height: 2; }
    FieldRow > .editor { margin-left: 18; height: 1; }
    """

    @dataclass
    class Edited(Message):
        """What stands in the field is another text (or choice) now."""

        row: FieldRow
        value: Any

    @dataclass
    class Left(Message):
        """The focus went away from the field."""

        row: FieldRow

    def __init__(self, field: FormField, classes: str = "") -> None:
        super().__init__(id="field-" + field.path.replace(".", "-"), classes=classes)
        self.field = field
        self.error = ""
        self._reason = ""
        self._recommended = ""
        self._source = ""
        self._filled = False
        self.editor = self._make_editor()
        self.editor.styles.width = field.width

    def _make_editor(self) -> TextField | ChoiceField:
        if self.field.words:
            return ChoiceField(self.field.words, classes="editor")
        return TextField(classes="editor") if self.field.wordy else NumberField(classes="editor")

    def compose(self) -> ComposeResult:
        """The editor."""
        yield self.editor

    def show_value(self, value: Any) -> None:
        """Put a value into the editor, without a message."""
        if isinstance(self.editor, ChoiceField):
            self.editor.show(value)
        elif not (self.editor.has_focus and self._filled):
            self.put(text_of(self.field, value))

    def put(self, text: str) -> None:
        """Put a text into the editor, without a message."""
        self._filled = True
        if isinstance(self.editor, TextField):
            with self.prevent(Input.Changed):
                self.editor.value = visible(text)
            self.editor.cursor_position = len(self.editor.value)

    def tell(self, reason: str, recommended: str = "", source: str = "") -> None:
        """Say why this value stands there and what the reason rests on or, for a changed one, what is
        recommended and why."""
        if (reason, recommended, source) != (self._reason, self._recommended, self._source):
            self._reason, self._recommended, self._source = reason, recommended, source
            self._fit()

    def complain(self, error: str) -> None:
        """Show what is wrong in the reason's place; empty takes it away."""
        if error != self.error:
            self.error = error
            self._fit()

    def _fit(self) -> None:
        self.styles.height = 3 if cell_len(self._below()) + 2 > self.size.width > 0 else 2
        self.refresh()

    def _beside(self) -> str:
        """`changed, recommended: X`, or as much of it as there is room for."""
        mark = f"changed, recommended: {self._recommended}"
        return mark if cell_len(mark) <= self._room() else "changed"

    def _unit(self) -> str:
        """The unit and, where there is room for it too, what the reason rests on."""
        source = f"[{self._source}]" if self._source else ""
        both = f"{self.field.unit} {source}".strip()
        return visible((both if cell_len(both) <= self._room() else self.field.unit)[: self._room()])

    def _below(self) -> str:
        if self.error:
            return f"✗ {self.error}"
        if not (self._recommended and self._beside() == "changed"):
            return f"  {self._reason}"
        return f"  recommended: {self._recommended}; {self._reason.removeprefix(WHY)}"

    def _room(self) -> int:
        return max(self.size.width - LABEL - self.field.width - 2, 0)

    def on_resize(self) -> None:
        """A long reason takes two lines in a narrow window."""
        self._fit()

    def render(self) -> RenderResult:
        """Everything but the editor."""
        label = (f"{self.field.label:<{LABEL}}", "bold" if self.editor.has_focus else "")
        unit = self._unit()
        beside = (visible(self._beside()), "$text-accent") if self._recommended else (unit, "dim")
        below = (visible(self._below()), "$text-error bold" if self.error else "dim")
        return Content.assemble(label, " " * self.field.width, "  ", beside, "\n", below)

    def on_descendant_focus(self) -> None:
        """The label of the focused field is bold, and its second line is in sight too."""
        self.refresh()
        self.call_after_refresh(self.scroll_visible, animate=False)

    def on_descendant_blur(self) -> None:
        """Leaving a field is when it is judged."""
        self.refresh()
        self.post_message(self.Left(self))

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Edited(self, event.value))

    @on(ChoiceField.Changed)
    def _turned(self, event: ChoiceField.Changed) -> None:
        event.stop()
        self.post_message(self.Edited(self, event.value))
