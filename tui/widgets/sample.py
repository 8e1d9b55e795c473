"""What the model answers by now to a held-out question, above what was wanted."""

from __future__ import annotations

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.evaluate.compare import Sample
from ollama_tune.core.evaluate.metrics import exact_match
from ollama_tune.core.text import one_line

LABEL = 11


class SamplePanel(Widget):
    """One question in three lines; every evaluation brings another answer to the same one."""

    DEFAULT_CSS = "SamplePanel { height: 3; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._sample: Sample | None = None
        self._step = 0

    def show(self, sample: Sample | None, step: int) -> None:
        """Show the answer at that step."""
        if (sample, step) != (self._sample, self._step):
            self._sample, self._step = sample, step
            self.refresh()

    def lines(self, width: int) -> list[Content]:
        """Question, wanted answer and the model's, each on one line of `width` cells."""
        if self._sample is None:
            return []
        room = max(width - LABEL, 10)
        answer = self._sample.tuned or ""
        right = exact_match(answer, self._sample.reference)
        said = Content.assemble((one_line(answer, room - 2) or "(nothing)", "bold"), " ✓" if right else "")
        return [
            self._line("asked", one_line(self._sample.prompt, room)),
            self._line("wanted", one_line(self._sample.reference, room)),
            self._line(f"at {self._step:,}", said),
        ]

    def _line(self, label: str, words: str | Content) -> Content:
        return Content.assemble((f"{label:<{LABEL}}", "dim"), words)

    def render(self) -> RenderResult:
        """The lines that fit."""
        return Content("\n").join(self.lines(self.size.width)[: max(self.size.height, 1)])
