"""Where the wizard is: the line at the top and the list at the side."""

from __future__ import annotations

from rich.cells import cell_len
from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.tui.state import STEPS


class StepHeader(Widget):
    """One line: `Step n of 9`, the step's title, and at the right what it is about (a run's name)."""

    DEFAULT_CSS = """
    StepHeader { height: 1; background: $panel; color: $foreground; text-wrap: nowrap; }
    StepHeader:ansi { background: ansi_default; text-style: reverse; }
    """

    def __init__(self, number: int | None, title: str, about: str = "") -> None:
        super().__init__()
        self._number = number
        self._title = title
        self._about = about

    def tell(self, about: str) -> None:
        """Replace what stands at the right."""
        self._about = about
        self.refresh()

    def render(self) -> RenderResult:
        """The line, with the words at the left whole and those at the right cut."""
        where = f" Step {self._number} of {len(STEPS)} · " if self._number else " "
        about = self._about or "ollama-tune"
        room = self.size.width - cell_len(where) - cell_len(self._title) - 3
        gap = " " * max(room - cell_len(about), 0)
        right = f"  {gap}{about} " if cell_len(about) <= room else ""
        return Content.assemble(where, (self._title, "bold"), right)


class StepList(Widget):
    """The nine steps: ✓ done, ▶ current, · to come. Shown where the window has the room."""

    DEFAULT_CSS = """
    StepList {
        width: 20; height: 1fr; padding: 1 1 0 2; display: none;
        border-right: solid $surface-lighten-2;
    }
    StepList:ansi { border-right: solid ansi_default; }
    """

    def __init__(self, current: int) -> None:
        super().__init__()
        self._current = current

    def render(self) -> RenderResult:
        """One line a step with a blank line between the setup and the run."""
        return Content("\n").join(self._line(step.number, step.title) for step in STEPS)

    def _line(self, number: int, title: str) -> Content:
        if number < self._current:
            return Content.assemble(("✓ ", "$text-success"), title)
        if number == self._current:
            return Content.assemble(("▶ ", "$text-accent bold"), (title, "bold"))
        return Content.styled(f"· {title}", "dim")
