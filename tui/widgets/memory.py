"""The memory panel of a run: predicted, measured now and measured peak against the device's total."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.run_view import Memory
from ollama_tune.tui.widgets.bar import level

LABEL, FIGURE = 10, 10


class MemoryPanel(Widget):
    """Bars with words for predicted, now and peak, and the parts on the last line where there is room."""

    DEFAULT_CSS = """
    MemoryPanel { height: 4; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._memory: Memory | None = None
        self._predicted: Mapping[str, int] | None = None

    def show(self, memory: Memory | None, predicted: Mapping[str, int] | None = None) -> None:
        """Show what was measured against the plan's parts (name to bytes), where there is a plan."""
        if (memory, predicted) != (self._memory, self._predicted):
            self._memory, self._predicted = memory, predicted
            self.refresh()

    def lines(self, width: int) -> list[Content]:
        """The panel's lines for a width in cells."""
        memory, predicted = self._memory, sum((self._predicted or {}).values())
        total = memory.total if memory else 0
        if not memory or not total:
            return [Content.styled("Memory: not measured yet.", "dim")]
        rows = [self._row("predicted", predicted, total, width, "")] if predicted else []
        rows.append(self._row("now", memory.used, total, width, ""))
        rows.append(self._row("peak", memory.peak, total, width, self._verdict(memory.peak, predicted)))
        return [*rows, *self._legend(memory)]

    def render(self) -> RenderResult:
        """The lines that fit."""
        return Content("\n").join(self.lines(self.size.width)[: max(self.size.height, 1)])

    def _row(self, label: str, count: int, total: int, width: int, words: str) -> Content:
        words = words or (f"of {human_bytes(total)}" if label == "now" else "")
        room = max(width - LABEL - FIGURE - 24, 8)
        return Content.assemble(
            (f"{label:<{LABEL}}", "dim"),
            level(count / total, room),
            (f"{human_bytes(count):>{FIGURE}}", "bold"),
            f"  {words}",
        )

    def _verdict(self, peak: int, predicted: int) -> str:
        if not predicted:
            return ""
        share = peak / predicted
        return f"{share:.0%} of predicted" if share <= 1 else f"! {share - 1:.0%} over predicted"

    def _legend(self, memory: Memory) -> list[Content]:
        """The parts: all of the prediction, or what the worker counted of what it holds."""
        parts = self._predicted or memory.parts
        names = [f"{one_line(name, 24)} {human_bytes(count)}" for name, count in parts.items() if count]
        text = f"{'predicted' if self._predicted else 'in use'} by {', '.join(names)}"
        return [Content.styled(text, "dim")] if names else []
