"""Keys in words: those that work on a screen now, and all there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from textual.binding import Binding, BindingType
from textual.containers import ScrollableContainer
from textual.dom import DOMNode
from textual.keys import key_to_character
from textual.screen import Screen
from textual.widgets import Input, OptionList

NAMES = {
    "enter": "Enter",
    "escape": "Esc",
    "space": "Space",
    "tab": "Tab",
    "backspace": "Backspace",
    "delete": "Delete",
    "home": "Home",
    "end": "End",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "plus": "+",
    "minus": "-",
    "slash": "/",
}
GIVEN: tuple[tuple[type[DOMNode], tuple[tuple[str, str], ...]], ...] = (
    (Input, (("← → Home End", "Move in the line"), ("Ctrl+U", "Empty the line up to here"))),
    (OptionList, (("↑ ↓ PgUp PgDn Home End", "Move in the list"),)),
    (ScrollableContainer, (("↑ ↓ PgUp PgDn Home End", "Scroll"),)),
)
"""What Textual's own widgets do with keys, as far as a person needs to know it."""
PASSED_ON = ("scroll_", "page_")
"""Actions of Textual's widgets that leave the key to others where there is nothing to scroll."""
FIELDS = ("Tab, Shift+Tab", "Next part, part before")


FAR = 10**9
"""More rows than any list has: a move by it ends at the edge."""


def list_keys(*, show: bool = False) -> list[BindingType]:
    """The keys of a list whose `action_move` takes rows and whose `action_page` takes pages; `show` names
    the arrow in the line of keys."""
    return [
        Binding("up", "move(-1)", "Row before", show=False),
        Binding("down", "move(1)", "Other row", show=show),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", f"move({-FAR})", "First row", show=False),
        Binding("end", f"move({FAR})", "Last row", show=False),
    ]


@dataclass
class Key:
    """What a key does: its names as people say them, its words, and where it is asked for."""

    names: list[str]
    words: str
    action: str
    node: object
    enabled: bool = True


@dataclass
class Keys:
    """The keys of one thing: of the focused widget, of the screen, or everywhere."""

    title: str
    lines: list[tuple[str, str]]


def key_name(key: str) -> str:
    """A key as people say it: `Enter`, `Ctrl+R`, `F1`, `m`, `?`."""
    head, plus, last = key.rpartition("+")
    if plus:
        return f"{head.capitalize()}+{NAMES.get(last, last.upper())}"
    if len(key) > 1 and key[0] == "f" and key[1:].isdecimal():
        return key.upper()
    return NAMES.get(key) or key_to_character(key) or key


def declared(kind: type[Any]) -> Iterator[Binding]:
    """The bindings in the body of a class, one a key."""
    yield from Binding.make_bindings(vars(kind).get("BINDINGS", ()))


def own_bindings(kind: type[Any]) -> Iterator[Binding]:
    """Those of our own classes that it is made of, a subclass first; Textual's are left out."""
    for base in kind.__mro__:
        if base.__module__.startswith("ollama_tune."):
            yield from declared(base)


def named(bindings: Iterable[tuple[Binding, object, bool]]) -> list[Key]:
    """Bindings as keys, one for each action, with the words of whichever of its bindings has some."""
    found: dict[tuple[str, int], Key] = {}
    for binding, node, enabled in bindings:
        key = found.setdefault((binding.action, id(node)), Key([], "", binding.action, node, enabled))
        name = key_name(binding.key)
        key.names += [name] if name not in key.names else []
        key.words = key.words or binding.description
    return [key for key in found.values() if key.words]


def keys_now(screen: Screen[Any]) -> list[Keys]:
    """What every key does now, the hidden ones too: at the focus, on the screen, everywhere."""
    places: dict[str, list[Key]] = {"Keys here": [], "On this screen": [], "Everywhere": []}
    for key in named(_active(screen)):
        place = "Everywhere" if key.node is screen.app else "Keys here"
        places["On this screen" if key.node is screen else place].append(key)
    given = next((lines for kind, lines in GIVEN if isinstance(screen.focused, kind)), ())
    extra = {"Keys here": list(given), "Everywhere": [FIELDS] if len(screen.focus_chain) > 1 else []}
    made = [
        Keys(place, [(", ".join(key.names), key.words) for key in keys] + extra.get(place, []))
        for place, keys in places.items()
    ]
    return [keys for keys in made if keys.lines]


def _active(screen: Screen[Any]) -> Iterator[tuple[Binding, DOMNode, bool]]:
    """Our own bindings that answer now, from the focus outwards; a key belongs to the first that has it.

    `Screen.active_bindings` would name for an arrow the scrolling of a line of text, which only passes it on.
    """
    taken: set[str] = set()
    for node, bindings in screen._modal_binding_chain:
        ours = {binding.action for binding in own_bindings(type(node))}
        for key, binding in bindings:
            state = screen.app._check_action_state(binding.action, node)
            mine = binding.action in ours and state is not False
            if mine and (key not in taken or binding.priority):
                yield binding, node, bool(state)
            if mine or not binding.action.startswith(PASSED_ON):
                taken.add(key)
