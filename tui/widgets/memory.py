"""The memory panel of a run: predicted, measured now and measured peak against the device's total."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.run_view import Memory

LABEL, FIGURE = 10, 10


def bar(share: float, width: int) -> Content:
    """A bar of `width` cells, filled by `share` (0 to 1) to half a cell; the rest is light shade."""
    halves = round(min(max(share, 0.0), 1.0) * 2 * width)
    full = "█" * (halves // 2) + "▌" * (halves % 2)
    return Content.assemble((full, "$text-primary"), ("░" * (width - len(full)), "$text-muted"))


class MemoryPanel(Widget):
    """Three bars with words, and the predicted parts where there is a fourth line."""

    DEFAULT_CSS = """
    MemoryPanel { height: 4; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._memory: Memory | None = None
        self._parts: Mapping[str, int] = {}

    def show(self, memory: Memory | None, predicted: Mapping[str, int] | None = None) -> None:
        """Show what was measured; `predicted` (name to bytes) is the plan's, else the worker's own parts."""
        parts = predicted or (memory.parts if memory else {})
        if (memory, parts) != (self._memory, self._parts):
            self._memory, self._parts = memory, dict(parts)
            self.refresh()

    def lines(self, width: int) -> list[Content]:
        """The panel's lines for a width in cells."""
        memory, predicted = self._memory, sum(self._parts.values())
        total = memory.total if memory else 0
        if not memory or not total:
            return [Content.styled("Memory is measured from the first step on.", "$text-muted")]
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
            (f"{label:<{LABEL}}", "$text-muted"),
            bar(count / total, room),
            (f"{human_bytes(count):>{FIGURE}}", "bold"),
            f"  {words}",
        )

    def _verdict(self, peak: int, predicted: int) -> str:
        if not predicted:
            return ""
        share = peak / predicted
        return f"{share:.0%} of predicted" if share <= 1 else f"! {share - 1:.0%} over predicted"

    def _legend(self, memory: Memory) -> list[Content]:
        names = [f"{one_line(name, 24)} {human_bytes(count)}" for name, count in self._parts.items() if count]
        text = f"{one_line(memory.device, 24)}: {', '.join(names)}" if names else ""
        return [Content.styled(text, "$text-muted")] if text else []
