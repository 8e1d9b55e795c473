"""The line at the bottom: the keys that work now, in words."""

from __future__ import annotations

from rich.cells import cell_len
from textual import events
from textual.app import RenderResult
from textual.binding import Binding
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget

NAMES = {
    "enter": "Enter",
    "escape": "Esc",
    "question_mark": "?",
    "space": "Space",
    "tab": "Tab",
    "backspace": "Backspace",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
}
FIRST = {"enter": 0, "escape": 1}
LAST = {"explain": 3, "app.leave": 4}
"""Enter and Esc stand first, Help and Quit last; what does not fit is cut from the end."""


def key_name(key: str) -> str:
    """A key as people say it: `Enter`, `Ctrl+R`, `F1`, `m`."""
    head, plus, last = key.rpartition("+")
    if not plus:
        return NAMES.get(key, key.upper() if len(key) > 1 and key[0] == "f" else key)
    return f"{head.capitalize()}+{last.upper()}"


def _place(binding: Binding) -> int:
    return FIRST.get(binding.key, LAST.get(binding.action, 2))


class KeyBar(Widget):
    """Keys with their words, one widget and one line whatever their number.

    Textual's footer makes a widget for each key and makes them all again at every change of focus;
    this draws text, which costs a tenth. A key that does not work now is dimmed, one that does not
    fit is left out from the right, and a click on one presses it.
    """

    DEFAULT_CSS = """
    KeyBar { height: 1; background: $panel; color: $foreground; text-wrap: nowrap; }
    KeyBar:ansi { background: ansi_default; }
    """

    def on_mount(self) -> None:
        """Draw again whenever the keys change."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, _screen: Screen[object]) -> None:
        self.refresh()

    def keys(self) -> list[tuple[Binding, bool]]:
        """What is shown: one entry an action, with whether it works now."""
        dims = getattr(self.screen, "dims", lambda _action: False)
        shown: dict[str, tuple[Binding, bool]] = {}
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.show and binding.description:
                shown.setdefault(binding.action, (binding, active.enabled and not dims(binding.action)))
        return sorted(shown.values(), key=lambda entry: _place(entry[0]))

    def _entries(self) -> list[tuple[Binding, Content]]:
        entries, width = [], 1
        for binding, enabled in self.keys():
            name = key_name(binding.key)
            width += cell_len(name) + cell_len(binding.description) + 3
            if width > self.size.width + 2:
                break
            style = "bold $text-accent" if enabled else "dim"
            words = Content.assemble(
                (name, style), (f" {binding.description}", "" if enabled else "dim strike"), "  "
            )
            entries.append((binding, words))
        return entries

    def render(self) -> RenderResult:
        """The line."""
        return Content.assemble(" ", *(words for _, words in self._entries()))

    def on_click(self, event: events.Click) -> None:
        """Press the key under the pointer."""
        x = 1
        for binding, words in self._entries():
            x += words.cell_length
            if event.x < x:
                self.app.simulate_key(binding.key)
                return
