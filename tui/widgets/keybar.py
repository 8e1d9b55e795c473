"""The line at the bottom: the keys that work now, in words."""

from __future__ import annotations

from textual import events
from textual.app import RenderResult
from textual.binding import Binding
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget

from ollama_tune.tui.keys import key_name

FIRST = {"enter": 0, "escape": 1}
LAST = {"palette": 3, "leave": 4, "explain": 5}
"""Enter and Esc stand first; what there is no room for is left out before Help, which names every key."""
KEEP = "explain"
GAP = 2


def _place(binding: Binding) -> int:
    return FIRST.get(binding.key, LAST.get(binding.action, 2))


def _words(binding: Binding, enabled: bool) -> Content:
    name = (key_name(binding.key), "bold $text-accent" if enabled else "dim")
    return Content.assemble(name, (f" {binding.description}", "" if enabled else "dim strike"), " " * GAP)


class KeyBar(Widget):
    """Keys with their words, one widget and one line whatever their number.

    Textual's footer makes a widget for each key and makes them all again at every change of focus;
    this draws text, which costs a tenth. A key that does not work now is dimmed, one that does not
    fit is left out, and a click on one presses it.
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
        """What is shown: one entry an action, with whether it works now; `?` for F1 where it is no letter."""
        dims = getattr(self.screen, "dims", lambda _action: False)
        shown: dict[str, tuple[Binding, bool]] = {}
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.show and binding.description:
                entry = binding, active.enabled and not dims(binding.action)
                if binding.action not in shown or (binding.action, binding.key) == (
                    "explain",
                    "question_mark",
                ):
                    shown[binding.action] = entry
        return sorted(shown.values(), key=lambda entry: _place(entry[0]))

    def _entries(self) -> list[tuple[Binding, Content]]:
        made = [(binding, _words(binding, enabled)) for binding, enabled in self.keys()]
        kept = sum(words.cell_length for binding, words in made if binding.action == KEEP)
        entries, room, full = [], self.size.width - 1 + GAP - kept, False
        for binding, words in made:
            full = full or words.cell_length > room
            if binding.action == KEEP:
                entries.append((binding, words))
            elif not full:
                room -= words.cell_length
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
