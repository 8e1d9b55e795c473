"""A few values of which one is chosen, each on its own line with what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from ollama_tune.core.text import human_bytes

if TYPE_CHECKING:
    from ollama_tune.core.models.values import ModelSpec

Line = tuple[str, str]
GGUF_TYPES = {
    "q8_0": "8 bit, half the size: the usual choice",
    "f16": "16 bit: closest to what was trained",
    "bf16": "16 bit, wider range: for models made in bf16",
}


class ChoiceList(Widget, can_focus=True):
    """Lines of (value, meaning); up and down move the choice, a click takes a line."""

    DEFAULT_CSS = """
    ChoiceList { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "move(1)", "Choose"),
        Binding("up", "move(-1)", "Choose", show=False),
    ]

    @dataclass
    class Changed(Message):
        """Another value was chosen."""

        value: str

    def __init__(self, lines: Sequence[Line], chosen: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines = tuple(lines)
        self.value = chosen

    def show(self, lines: Sequence[Line]) -> None:
        """Replace the meanings; the values stay."""
        if tuple(lines) != self._lines:
            self._lines = tuple(lines)
            self.refresh()

    def action_move(self, by: int) -> None:
        """Choose the line above or below."""
        values = [value for value, _ in self._lines]
        self._choose(values[min(max(values.index(self.value) + by, 0), len(values) - 1)])

    def on_click(self, event: events.Click) -> None:
        """Choose the line under the pointer."""
        if 0 <= event.y < len(self._lines):
            self._choose(self._lines[event.y][0])

    def _choose(self, value: str) -> None:
        if value != self.value:
            self.value = value
            self.refresh()
            self.post_message(self.Changed(value))

    def render(self) -> RenderResult:
        """One line a value; the chosen one has a full dot and, in focus, is reversed."""
        return Content("\n").join(self._line(value, meaning) for value, meaning in self._lines)

    def _line(self, value: str, meaning: str) -> Content:
        chosen = value == self.value
        style = "bold reverse" if chosen and self.has_focus else "bold" if chosen else ""
        sign = "(•)" if chosen else "( )"
        return Content.assemble((f"{sign} {value:<6}", style), f" {meaning}")


class GgufTypes(ChoiceList):
    """The number formats of an exported file, with the size of the file once the model is known."""

    def __init__(self, chosen: str, *, id: str | None = None) -> None:
        super().__init__(_gguf_lines(None), chosen, id=id)

    def show_sizes(self, spec: ModelSpec | None) -> None:
        """Put the file's size before each meaning; None leaves it out."""
        self.show(_gguf_lines(spec))


def _gguf_lines(spec: ModelSpec | None) -> list[Line]:
    from ollama_tune.core.plan.duration import TYPE_BYTES

    sizes = {name: human_bytes(spec.parameters * TYPE_BYTES[name]) if spec else "" for name in GGUF_TYPES}
    return [(name, f"{sizes[name]:>10}  {meaning}") for name, meaning in GGUF_TYPES.items()]
