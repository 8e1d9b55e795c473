"""What the model answers by now to a held-out question, with the wanted answer and the base model's."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from ollama_tune.core.evaluate.metrics import exact_match
from ollama_tune.core.text import one_line
from ollama_tune.tui.run_values import Asked, Said

LABEL = 11
NOTHING = "(nothing)"


class SamplePanel(Widget):
    """One question in four lines; another question or an earlier evaluation at a key.

    Where there is little room the base model's answer goes first, then what was wanted.
    """

    DEFAULT_CSS = "SamplePanel { height: 3; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._asked: tuple[Asked, ...] = ()
        self._number = 0
        self._earlier = 0
        self._told: tuple[object, ...] = ()

    def show(self, asked: Sequence[Asked]) -> None:
        """Show these questions; one that nobody answered yet is left out."""
        self._asked = tuple(one for one in asked if answers(one))
        self._refresh()

    def turn(self, questions: int = 0, evaluations: int = 0) -> None:
        """Another question (round and round) or an earlier (1) or later (-1) evaluation."""
        if self._asked:
            self._number = (self._number + questions) % len(self._asked)
            most = answers(self._one) - 1
            self._earlier = min(max(self._earlier + evaluations, 0), most)
            self._refresh()

    @property
    def _one(self) -> Asked:
        return self._asked[self._number % len(self._asked)]

    def _refresh(self) -> None:
        if self._asked:
            one = self._one
            self._earlier = min(self._earlier, answers(one) - 1)
            told = (one.prompt, one.reference, one.base, answer_at(one, self._earlier), self._earlier)
            if told != self._told:
                self._told = told
                self.border_title = self._title()
                self.refresh()

    def _title(self) -> str:
        parts = ["Answers: a"]
        if len(self._asked) > 1:
            parts.append(f"question {self._number + 1} of {len(self._asked)}: n")
        if answers(self._one) > 1:
            parts.append(f"earlier ,{'  later .' if self._earlier else ''}")
        return "   ".join(parts)

    def lines(self, width: int) -> list[tuple[int, Content]]:
        """Question, wanted answer and both models', each on one line of `width` cells after its rank."""
        if not self._asked:
            return []
        one, room = self._one, max(width - LABEL, 10)
        many = f" {self._number + 1}/{len(self._asked)}" if len(self._asked) > 1 else ""
        label, answer = answer_at(one, self._earlier)
        base = Content.styled("not asked yet", "dim") if one.base is None else said(one.base, one, room)
        return [
            (0, _line(f"asked{many}", one_line(one.prompt, room))),
            (2, _line("wanted", one_line(one.reference, room))),
            (3, _line("base", base)),
            (1, _line(label, tuned(answer, one, room))),
        ]

    def render(self) -> RenderResult:
        """The most important of the lines that fit, in their order."""
        room = max(self.size.height, 1)
        return Content("\n").join([line for rank, line in self.lines(self.size.width) if rank < room])


def answers(asked: Asked) -> int:
    """How many answers of the tuned model are known: one an evaluation, and the whole one after training."""
    return len(asked.said) + (asked.final is not None)


def answer_at(asked: Asked, earlier: int) -> tuple[str, Said]:
    """The answer so many before the newest, and when it was given."""
    if asked.final is not None and earlier == 0:
        return "at the end", Said(0, asked.final)
    given = asked.said[(asked.final is not None) - 1 - earlier]
    return f"step {given.step:,}", given


def said(answer: str, asked: Asked, room: int, style: str = "") -> Content:
    """An answer on one line; ✓ where it is the wanted one."""
    right = " ✓" if exact_match(answer, asked.reference) else ""
    return Content.assemble((one_line(answer, room - 2) or NOTHING, style), right)


def tuned(answer: Said, asked: Asked, room: int) -> Content:
    """The tuned model's answer at a step; one that was cut short ends in dots."""
    words = said(answer.text, asked, room - 2, "bold")
    return Content.assemble(words, " …") if answer.cut else words


def _line(label: str, words: str | Content) -> Content:
    return Content.assemble((f"{label:<{LABEL}}", "dim"), words)
