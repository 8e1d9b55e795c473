"""Several held-out questions in one go: what both models answer, how good it is, and the sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.evaluate.conversation import MODELS, NAMES, Result, Totals
from ollama_tune.core.evaluate.several import AT_ONCE, Several
from ollama_tune.core.text import visible
from ollama_tune.tui.screens.base import FramedScreen
from ollama_tune.tui.text import put_text
from ollama_tune.tui.widgets.modal import BoxScreen, paragraph
from ollama_tune.tui.widgets.results import ResultHead, ResultList, answer_words

LISTEN = 0.1
MOST = 20_000
"""Characters of a text that a box shows."""


@dataclass(frozen=True)
class Does:
    """What the table asks Try it to do: the process and the files are its."""

    ask: Callable[[], None]
    stop: Callable[[], None]
    write: Callable[[Callable[[str], None]], None]


class HeldOutScreen(FramedScreen):
    """The rows, with the totals above them; F6 asks more, Enter opens one."""

    TITLE_TEXT = "Held-out questions"
    CSS_PATH = "try_it_table.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", priority=True),
        Binding("escape", "stop", "Stop"),
        Binding("escape", "close", "Back"),
        Binding("f6,ctrl+t", "more", f"{AT_ONCE} more"),
        Binding("f8,ctrl+s", "write", "Write to a file"),
    ]

    def __init__(self, several: Several, does: Does, about: str) -> None:
        super().__init__()
        self._several, self._does, self._about = several, does, about
        self._shown = -1

    def about(self) -> str:
        """The run's name."""
        return self._about

    def body(self) -> ComposeResult:
        """Totals, state, rows."""
        yield Static(id="totals", markup=False)
        yield Static(id="several-state", markup=False)
        yield ResultHead()
        yield ResultList(id="results")

    def on_mount(self) -> None:
        """Show what is there; ask the first questions where none was asked yet."""
        super().on_mount()
        self.query_one(ResultList).focus()
        if not self._several.results:
            self._does.ask()
        self.set_interval(LISTEN, self._look)
        self._look()

    def screen_topic(self) -> tuple[str, str]:
        """Its own heading."""
        return "try_it", "Held-out questions"

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Esc first stops the answers, then goes back."""
        busy, some = self._several.busy, bool(self._several.results)
        shown = {
            "stop": busy,
            "close": not busy,
            "more": not busy and self._several.left > 0,
            "open": some,
            "write": some and not busy,
        }
        return shown[action] if action in shown else super().check_action(action, parameters)

    def _look(self) -> None:
        if self._several.version != self._shown:
            self._shown = self._several.version
            self.query_one(ResultList).show(self._several.results)
            put_text(self.query_one("#totals", Static), totals_line(self._several.totals()))
            put_text(self.query_one("#several-state", Static), self._state())
            self.refresh_bindings()

    def _state(self) -> Content:
        several = self._several
        if several.problem:
            return Content.assemble(("✗ ", "bold $text-error"), visible(several.problem))
        if several.busy:
            model, done, count = several.waiting_for()
            return Content(f"{NAMES[model]}: {done} of {count} answered …")
        more = f"{several.left:,} held-out questions are left; F6 asks {min(several.left, AT_ONCE)} of them."
        return Content.styled(more if several.left else "All held-out questions were asked.", "dim")

    def action_more(self) -> None:
        """Ask the next ones."""
        self._does.ask()
        self._look()

    def action_stop(self) -> None:
        """End the answers; what is there stays."""
        self._does.stop()
        self._look()

    def action_close(self) -> None:
        """Back to the conversation; the table is kept."""
        self.dismiss()

    def action_write(self) -> None:
        """Write all rows, in full."""
        self._does.write(self.say)

    def action_open(self) -> None:
        """Show the chosen row in full."""
        number = self.query_one(ResultList).cursor
        if number < len(self._several.results):
            self.app.push_screen(ResultScreen(self._several.results, number))

    @on(ResultList.Opened)
    def _opened(self) -> None:
        self.action_open()


class ResultScreen(BoxScreen[None]):
    """One question with everything before it, the wanted answer and both models' answers, in full."""

    HELP_TOPIC = ("try_it", "Held-out questions")
    DEFAULT_CSS = "ResultScreen #box KeyBar { dock: bottom; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape", "refuse", "Close", priority=True),
        Binding("right", "turn(1)", "Other question"),
        Binding("left", "turn(-1)", "Question before", show=False),
        Binding("down", "scroll(1)", "Scroll"),
        Binding("up", "scroll(-1)", "Scroll", show=False),
        Binding("pagedown", "scroll(10)", "Page down", show=False),
        Binding("pageup", "scroll(-10)", "Page up", show=False),
    ]

    def __init__(self, results: list[Result], number: int) -> None:
        super().__init__(f"Question {number + 1} of {len(results)}")
        self._results, self._number = results, number

    def content(self) -> ComposeResult:
        """Everything, as text."""
        result = self._results[self._number]
        texts = [(str(message["role"]), str(message["content"])) for message in result.question.messages]
        texts.append(("wanted", result.question.reference))
        for model in MODELS:
            answer = result.answers.get(model)
            texts.append((verdict(result, model), answer.text if answer is not None else ""))
        for heading, text in texts:
            yield Static(Content.styled(visible(heading), "bold $text-accent"), markup=False)
            yield paragraph(cut(text) + "\n")

    async def action_turn(self, by: int) -> None:
        """Another question."""
        number = (self._number + by) % len(self._results)
        await self.app.switch_screen(ResultScreen(self._results, number))

    def action_scroll(self, lines: int) -> None:
        """Move the text."""
        self.query_one("#content").scroll_relative(y=lines, animate=False)


def verdict(result: Result, model: str) -> str:
    """`Tuned model: ✓ as wanted, similarity 1.00`."""
    judged = result.judged(model)
    if judged is None:
        return f"{NAMES[model]}: {answer_words(result, model)[:24]}"
    exact = "✓ as wanted" if judged.exact else "✗ not as wanted"
    return f"{NAMES[model]}: {exact}, similarity {judged.similarity:.2f}"


def totals_line(totals: dict[str, Totals]) -> Content:
    """`Exact: 2 of 8 before, 7 of 8 after. Mean similarity: 0.41 before, 0.93 after.`"""
    base, tuned = (totals[model] for model in MODELS)
    if not base.rows:
        return Content.styled("Nothing is answered yet.", "dim")
    before, after = f"{base.exact} of {base.rows} before", "… after"
    alike = f"{base.similarity:.2f} before, … after"
    if tuned.rows:
        after = f"{tuned.exact} of {tuned.rows} after"
        alike = f"{base.similarity:.2f} before, {tuned.similarity:.2f} after"
    return Content.assemble(
        ("Exact ", "dim"), (f"{before}, {after}", "bold"), (" · mean similarity ", "dim"), (alike, "bold")
    )


def cut(text: str) -> str:
    """What a box shows of a text."""
    more = len(text) - MOST
    return text if more <= 0 else f"{text[:MOST]}\n… {more:,} characters more; F8 in the table writes all."
