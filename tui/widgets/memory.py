"""The memory panel of a run: predicted, probed, now and peak against the device's total."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.text import human_bytes, one_line
from ollama_tune.tui.run_view import Memory, ProbeResult
from ollama_tune.tui.widgets.bar import level

LABEL, FIGURE = 10, 10


class MemoryPanel(Widget):
    """Bars with words for predicted, now and peak; with room for it what the probe found, and the parts."""

    DEFAULT_CSS = """
    MemoryPanel { height: 4; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._memory: Memory | None = None
        self._predicted: Mapping[str, int] | None = None
        self._probe: ProbeResult | None = None

    def show(
        self,
        memory: Memory | None,
        predicted: Mapping[str, int] | None = None,
        probe: ProbeResult | None = None,
    ) -> None:
        """Show what was measured against the plan's parts (name to bytes), where there is a plan."""
        if (memory, predicted, probe) != (self._memory, self._predicted, self._probe):
            self._memory, self._predicted, self._probe = memory, predicted, probe
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
        return [*rows, *self._probed(), *self._legend(memory)]

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

    def _probed(self) -> list[Content]:
        """`probe     5.9 GiB measured, 6.0 GiB predicted (-2 %), limit 21.3 GiB`."""
        probe = self._probe
        if probe is None or not probe.predicted:
            return []
        share = f"{100 * (probe.measured / probe.predicted - 1):+.0f} %"
        limit = f", limit {human_bytes(probe.limit)}" if probe.limit > 0 else ""
        measured, predicted = human_bytes(probe.measured), human_bytes(probe.predicted)
        words = f"{measured} measured, {predicted} predicted ({share}){limit}"
        return [Content.assemble((f"{'probe':<{LABEL}}", "dim"), words)]

    def _legend(self, memory: Memory) -> list[Content]:
        """The parts: all of the prediction, or what the worker counted of what it holds."""
        parts = self._predicted or memory.parts
        names = [f"{one_line(name, 24)} {human_bytes(count)}" for name, count in parts.items() if count]
        text = f"{'predicted' if self._predicted else 'in use'} by {', '.join(names)}"
        return [Content.styled(text, "dim")] if names else []
