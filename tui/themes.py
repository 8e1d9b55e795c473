"""The colours: five themes, which one a person gets, and what each must keep to.

Ordinary text has a contrast of at least 4.5 to what is below it, in high contrast 7 (WCAG 2.2, 1.4.3 and
1.4.6), and the border of a box 3 (1.4.11). The two ANSI themes use the terminal's own sixteen colours, so the
terminal answers for theirs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.filter import LineFilter
from textual.theme import Theme

if TYPE_CHECKING:
    from textual.color import Color

DARK = Theme(
    name="dark",
    primary="#3b8ede",
    secondary="#2f6fae",
    accent="#ffa62b",
    warning="#ffa62b",
    error="#e0526f",
    success="#4ebf71",
    foreground="#e4e4e4",
    background="#121212",
    surface="#1e1e1e",
    panel="#242f38",
    variables={
        "text-muted": "#bebebe",
        "text-disabled": "#bebebe",
        "block-cursor-background": "#3b8ede 40%",
        "block-cursor-foreground": "#e4e4e4",
        "surface-lighten-2": "#6c6c6c",
        "surface-lighten-3": "#7c7c7c",
    },
)
LIGHT = Theme(
    name="light",
    primary="#1f5fa8",
    secondary="#2f6fae",
    accent="#8a4b00",
    warning="#8a4b00",
    error="#a3163a",
    success="#1c6b35",
    foreground="#1a1a1a",
    background="#f4f4f2",
    surface="#e8e8e6",
    panel="#dcdfe3",
    dark=False,
    variables={
        "text-muted": "#3c3c3c",
        "text-disabled": "#3c3c3c",
        "block-cursor-background": "#1f5fa8 40%",
        "block-cursor-foreground": "#1a1a1a",
        "surface-lighten-2": "#7c7c7c",
        "surface-lighten-3": "#6c6c6c",
    },
)
HIGH_CONTRAST = Theme(
    name="high-contrast",
    primary="#4f9fff",
    secondary="#9fd0ff",
    accent="#ffd75f",
    warning="#ffd75f",
    error="#ff8f8f",
    success="#7fff9f",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#1a1a1a",
    variables={
        "text-muted": "#e0e0e0",
        "text-disabled": "#e0e0e0",
        "block-cursor-background": "#4f9fff 40%",
        "block-cursor-foreground": "#ffffff",
        "surface-lighten-2": "#b0b0b0",
        "surface-lighten-3": "#d0d0d0",
        "input-selection-background": "#ffffff",
        "input-selection-foreground": "#000000",
    },
)
OWN = (DARK, LIGHT, HIGH_CONTRAST)


def automatic_theme(color_system: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """What suits the terminal: its own colours where it has sixteen, light where it says it is light.

    `COLORFGBG` ends in the number of the background's colour; 7 and 15 are the light ones (rxvt's convention,
    set by Konsole, iTerm2 and others).
    """
    light = environment.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")
    few = color_system == "standard"
    return ("ansi-light" if few else "light") if light else ("ansi-dark" if few else "dark")


class Undimmed(LineFilter):
    """Takes `dim` away, which halves a contrast."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments in full strength."""
        return [Segment(text, _undimmed(style), control) for text, style, control in segments]


@lru_cache(1024)
def _undimmed(style: Style | None) -> Style | None:
    return style + Style(dim=False) if style is not None and style.dim else style


class ThemedApp(App[int]):
    """Knows our themes; in high contrast no text is dimmed."""

    _undimmed: Undimmed | None = None

    def dress(self, name: str | None) -> None:
        """Bring the themes in and take one by its name; None is the one that suits the terminal.

        Called before anything is parsed. Setting `theme` would have Textual parse all styles twice.
        """
        for theme in OWN:
            self.register_theme(theme)
        self._undimmed = Undimmed(enabled=False)
        self._filters.insert(0, self._undimmed)
        self.set_reactive(App.theme, name or automatic_theme(self.console.color_system))
        self.stylesheet.set_variables(self.get_css_variables())
        self.set_class(self.current_theme.dark, "-dark-mode")
        self.set_class(not self.current_theme.dark, "-light-mode")
        self._refresh_truecolor_filter(self.ansi_theme)
        self.watch_theme(self.theme)

    def watch_theme(self, name: str) -> None:
        """Textual changes the colours by itself; full strength is ours."""
        if self._undimmed is not None:
            self._undimmed.enabled = name == HIGH_CONTRAST.name
