"""All answers to the held-out questions of a run: wanted, the base model's, and the tuned model's by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.evaluate.metrics import exact_match
from ollama_tune.tui.run_values import Asked
from ollama_tune.tui.screens.run_window import RunWindow, hanging

NOTHING = "(nothing)"


class AnswersScreen(RunWindow):
    """One question at a time; ← and → turn to another."""

    TITLE_TEXT = "Answers"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,n", "turn(1)", "Next question"),
        Binding("left", "turn(-1)", "Question before"),
    ]
    _number = 0

    def body(self) -> ComposeResult:
        """Which question, and everything about it."""
        yield Static(id="head", markup=False)
        with VerticalScroll(can_focus=False):
            yield Static(id="text", markup=False)

    def show_view(self) -> None:
        """Show the question."""
        asked = list(self.view.asked.values())
        if not asked:
            return
        number = self._number % len(asked)
        head = f"Question {number + 1} of {len(asked)}, from the held-out rows. ✓ is word for word as wanted."
        self.query_one("#head", Static).update(head)
        width = max(self.scroller().size.width - 2, 20)
        self.query_one("#text", Static).update(Content("\n").join(answer_lines(asked[number], width)))

    def action_turn(self, by: int) -> None:
        """Another question."""
        self._number += by
        self.scroller().scroll_home(animate=False)
        self.show_view()


def answer_lines(asked: Asked, width: int) -> Iterator[Content]:
    """Everything about a question, the newest answers first."""
    yield from hanging("asked", asked.prompt, width)
    yield Content("")
    yield from hanging("wanted", asked.reference, width, "bold")
    yield Content("")
    base = "not asked yet" if asked.base is None else _marked(asked.base, asked)
    yield from hanging("base model", base, width)
    yield Content("")
    if asked.final is not None:
        yield from hanging("at the end", _marked(asked.final, asked), width)
    for said in reversed(asked.said):
        cut = " …" if said.cut else ""
        yield from hanging(f"step {said.step:,}", f"{_marked(said.text, asked)}{cut}", width)


def _marked(answer: str, asked: Asked) -> str:
    return f"{answer or NOTHING}{' ✓' if exact_match(answer, asked.reference) else ''}"
