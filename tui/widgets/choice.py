"""A few values of which one is chosen, each on its own line with what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    from ollama_tune.core.plan.gguf_types import TypeOffer
    from ollama_tune.core.plan.settings import GgufType

Line = tuple[str, str]
USUAL = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
"""Types that are shown without `More`."""
NARROW = 70
TYPE_HEADING = f"{'':<11}{'file':>10}  {'in Ollama':<12}lost against 16 bit"


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

        chooser: ChoiceList
        value: str

        @property
        def control(self) -> ChoiceList:
            """Who sent it."""
            return self.chooser

    def __init__(self, lines: Sequence[Line], chosen: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines = tuple(lines)
        self.value = chosen

    def show(self, lines: Sequence[Line]) -> None:
        """Replace the lines; the chosen value must be one of them."""
        if tuple(lines) != self._lines:
            self._lines = tuple(lines)
            self.refresh(layout=True)

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
            self.post_message(self.Changed(self, value))

    def render(self) -> RenderResult:
        """One line a value; the chosen one has a full dot and, in focus, is reversed."""
        return Content("\n").join(self._line(value, meaning) for value, meaning in self._lines)

    def _line(self, value: str, meaning: str) -> Content:
        chosen = value == self.value
        style = "bold reverse" if chosen and self.has_focus else "bold" if chosen else ""
        sign = "(•)" if chosen else "( )"
        return Content.assemble((f"{sign} {value:<6}", style), f" {meaning}")


class CheckList(ChoiceList):
    """Lines of which any number is taken; up and down move, space takes a line or leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "take", "Take or leave"),
        Binding("down", "move(1)", show=False),
        Binding("up", "move(-1)", show=False),
    ]

    @dataclass
    class Taken(Message):
        """Other lines are taken now."""

        values: frozenset[str]

    def __init__(self, lines: Sequence[Line], taken: Sequence[str], *, id: str | None = None) -> None:
        super().__init__(lines, lines[0][0], id=id)
        self.taken = frozenset(taken)

    def action_take(self) -> None:
        """Take the line, or leave it."""
        self.taken = self.taken ^ {self.value}
        self.refresh()
        self.post_message(self.Taken(self.taken))

    def on_click(self, event: events.Click) -> None:
        """Take or leave the line under the pointer."""
        super().on_click(event)
        if 0 <= event.y < len(self._lines):
            self.action_take()

    def _line(self, value: str, meaning: str) -> Content:
        style = "bold reverse" if value == self.value and self.has_focus else ""
        sign = "[x]" if value in self.taken else "[ ]"
        return Content.assemble((f"{sign} {meaning}", style))


class GgufTypes(ChoiceList):
    """The types of an exported file: how large, whether Ollama can run it here, and what is lost.

    Before the model and the box are known it shows the chosen type alone. The recommended type stands
    first; rarely used ones only where `whole` is set.
    """

    def __init__(self, chosen: GgufType, *, id: str | None = None) -> None:
        super().__init__([(chosen, "")], chosen, id=id)
        self._offers: Mapping[GgufType, TypeOffer] = {}
        self._recommended = ""
        self.whole = False

    def on_resize(self) -> None:
        """Words are shorter in a narrow window."""
        self.show_whole(self.whole)

    def show_offers(self, offers: Mapping[GgufType, TypeOffer], recommended: GgufType | None) -> None:
        """Take over what the types cost for this model on this box."""
        self._offers, self._recommended = offers, recommended or ""
        self.show_whole(self.whole)

    def show_whole(self, whole: bool) -> None:
        """Show every type, or those that most people choose from and the chosen one."""
        self.whole = whole
        shown = [name for name in self._offers if whole or name in USUAL or name == self.value]
        shown.sort(key=lambda name: name != self._recommended)
        self.show([(name, self._meaning(self._offers[name])) for name in shown] or [(self.value, "")])

    def _meaning(self, offer: TypeOffer) -> str:
        best = "★ " if 0 < self.size.width < NARROW else "recommended; "
        mark = best if offer.name == self._recommended else ""
        figure = f", KL {offer.loss:g}" if offer.loss and self.whole else ""
        return f"{human_bytes(offer.bytes):>10}  {_runs(offer):<12}{mark}{offer.words}{figure}"


def _runs(offer: TypeOffer) -> str:
    if not offer.available:
        return "✗ not here"
    return {True: "✓ fits", False: "! too large", None: "– unknown"}[offer.fits]
