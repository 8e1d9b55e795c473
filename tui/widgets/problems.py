"""What was found in a data set, one entry a kind: how many rows, where, and what becomes of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.text import where_text
from ollama_tune.tui.widgets.options import Options
from ollama_tune.tui.widgets.page import Line, wrapped

if TYPE_CHECKING:
    from ollama_tune.core.data.values import Problem


class ProblemList(Options):
    """Problems one a line; while it has the focus each is told in full. Enter shows the rows of one, and
    `x` uses them or leaves them out, where that is the person's to say."""

    DEFAULT_CSS = """
    ProblemList {
        height: auto; max-height: 4; border: none; scrollbar-size-vertical: 1; padding: 0;
        background: $background;
    }
    ProblemList:focus { border: none; max-height: 50%; background: $background; }
    ProblemList > .option-list--option { padding: 0; }
    ProblemList > .option-list--option-highlighted { background: $surface-lighten-1; color: $foreground; }
    ProblemList:focus > .option-list--option-highlighted { background: $primary 40%; color: $foreground; }
    ProblemList:ansi:focus > .option-list--option-highlighted {
        background: ansi_default; text-style: reverse;
    }
    ProblemList:ansi, ProblemList:ansi:focus { background: ansi_default; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Its rows"),
        Binding("x", "switch", "Use or leave out"),
    ]

    @dataclass
    class Chosen(Message):
        """The rows of a problem are wanted."""

        problem: Problem

    @dataclass
    class Pointed(Message):
        """The cursor stands on a problem; on None when the list has not the focus."""

        problem: Problem | None

    @dataclass
    class Switched(Message):
        """The rows of a problem are to be used, or not, other than now."""

        problem: Problem

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False, compact=True)
        self._problems: tuple[Problem, ...] = ()
        self._own: frozenset[str] = frozenset()
        self._drawn = 0
        self.display = False

    def show(self, problems: Sequence[Problem], own: Collection[str]) -> None:
        """Replace the problems; `own` are the kinds of which the person decided what becomes of them."""
        if (tuple(problems), frozenset(own)) != (self._problems, self._own):
            here = self.problem
            self._problems, self._own = tuple(problems), frozenset(own)
            self._draw(self._place_of(here.kind) if here else 0)

    def _place_of(self, kind: str) -> int:
        return next((at for at, problem in enumerate(self._problems) if problem.kind == kind), 0)

    @property
    def problem(self) -> Problem | None:
        """The one under the cursor."""
        at = self.highlighted
        return self._problems[at] if at is not None and at < len(self._problems) else None

    def _draw(self, at: int | None = None) -> None:
        at, many = self.highlighted if at is None else at, len(self._problems)
        self.clear_options()
        self.add_options([Option(self._words(problem)) for problem in self._problems])
        self.highlighted = min(at or 0, many - 1) if many and self.has_focus else None
        self.display = bool(many)

    def _words(self, problem: Problem) -> Content:
        width = max(self.size.width - 1, 40)
        if not self.has_focus:
            return short_line(problem, width)
        words = Content.assemble(problem_sign(problem), *full_words(problem), self._choice(problem))
        return Content("\n").join(wrapped(Line(words, 2), width))

    def _choice(self, problem: Problem) -> Content:
        """What becomes of the rows."""
        if not problem.lines:
            return Content("")
        state = "left out" if problem.severity == "error" else "used"
        by = ", as you said" if problem.kind in self._own else ""
        key = "; x changes that" if problem.switchable else ""
        return Content.styled(f" – {state}{by}{key}", "dim")

    def watch_has_focus(self, has_focus: bool) -> None:
        """Tell everything, or one line each again."""
        super().watch_has_focus(has_focus)
        self._draw()
        self.post_message(self.Pointed(self.problem if has_focus else None))
        if not has_focus:
            self.scroll_home(animate=False)

    def on_resize(self) -> None:
        """The short lines are cut to the width."""
        if self.size.width != self._drawn:
            self._drawn = self.size.width
            self._draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """`x` only where there is a choice."""
        return action != "switch" or bool(self.problem and self.problem.switchable)

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self.refresh_bindings()
        if self.has_focus:
            self.post_message(self.Pointed(self.problem))

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if self.problem is not None:
            self.post_message(self.Chosen(self.problem))

    def action_switch(self) -> None:
        """Use the rows, or leave them out."""
        if self.problem is not None:
            self.post_message(self.Switched(self.problem))


def what_to_do(kind: str) -> str:
    """The advice of the help on a kind of problem; empty for one that has none."""
    from ollama_tune.tui.help_texts import help_text

    parts = help_text("problems", kind).partition("**What to do.** ")
    return " ".join(parts[2].split())


def problem_sign(problem: Problem) -> Content:
    """✗ for rows left out, ! for rows to look at."""
    out = problem.severity == "error"
    return Content.styled("✗ " if out else "! ", "$text-error bold" if out else "$text-warning bold")


def _count(problem: Problem) -> str:
    """How many rows; nothing for what concerns the whole data set."""
    return f"{problem.count:,} × " if problem.lines else ""


def full_words(problem: Problem) -> tuple[Content | str, Content]:
    """How many rows, what, and the first lines."""
    where = where_text(problem)
    return f"{_count(problem)}{visible(problem.text)}", Content.styled(f" ({where})" if where else "", "dim")


def short_line(problem: Problem, width: int) -> Content:
    """The same in one line of at most `width` cells; the place stays, the sentence is cut."""
    head, where = _count(problem), where_text(problem)
    where = f" ({where})" if where else ""
    text = one_line(problem.text, max(width - 2 - len(head) - len(where), 12))
    return Content.assemble(problem_sign(problem), head, text, (where, "dim"))
