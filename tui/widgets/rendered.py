"""A row as the model sees it, with the trained tokens marked by more than colour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Region
from textual.widgets import Static

from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.widgets.errors import sentence
from ollama_tune.tui.widgets.page import Line, Page
from ollama_tune.tui.widgets.textview import TextView

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.mask import Cut
    from ollama_tune.core.data.values import Example
    from ollama_tune.tui.messages import RowRendered

TRAINED = "bold underline $text-success"
REJECTED = "bold italic $text-error"
CONTEXT = ""
CUT = "bold reverse"
LONGEST = 20_000
MOST_IDS = 2_000
MOST_EXAMPLES = 8

Part = Content | str


def legend() -> Content:
    """What the marks mean."""
    return Content.assemble(("trained: learned by the model", TRAINED), "   context: only read")


def marked(example: Example, limit: int = 0, learned: str = TRAINED) -> Content:
    """The exact rendered text; trained tokens bold and underlined. A very long text is cut and says so.

    Where the row has more than `limit` tokens a line says so at the place where they end; 0 is no limit.
    """
    cut = _cut_of(example, limit)
    edge = cut.at if cut else len(example.text) + 1
    parts: list[Part] = []
    for start, end, trained in spans(example):
        style = learned if trained else CONTEXT
        for first, last in ((start, min(end, edge)), (max(start, edge), end)):
            if cut and first == edge and first < last:
                parts.append(_cut(cut, limit))
            if first < min(last, LONGEST):
                parts.append(_piece(example.text[first : min(last, LONGEST)], style))
        if end > LONGEST:
            break
    hidden = len(example.text) - LONGEST
    if hidden > 0:
        parts.append(f"\n… {hidden:,} more characters")
    return Content.assemble(*parts)


def with_ids(example: Example, limit: int = 0, learned: str = TRAINED) -> Content:
    """Token for token: its text and, dimmed behind it, its id; `⋯` is one more token of the same letter."""
    cut = _cut_of(example, limit)
    parts: list[Part] = []
    done = 0
    for index, (number, trained, (start, end)) in enumerate(
        zip(example.ids[:MOST_IDS], example.trained, example.offsets, strict=False)
    ):
        if cut and index == limit:
            parts.append(_cut(cut, limit))
        text = example.text[start:end] if end > done or start == end else "⋯"
        done = max(done, end)
        parts.append(_piece(text.replace("\n", "␊"), learned if trained else CONTEXT))
        parts.append(Content.styled(f"·{number} ", "dim"))
        if text.endswith("\n"):
            parts.append("\n")
    hidden = len(example.ids) - MOST_IDS
    if hidden > 0:
        parts.append(f"\n… {hidden:,} more tokens")
    return Content.assemble(*parts)


def _piece(text: str, style: str) -> Content:
    return Content.styled(visible(text, keep_newlines=True), style)


def _cut(cut: Cut, limit: int) -> Content:
    words = f" ✂ {limit:,} tokens end here, {cut.tokens:,} more follow "
    return Content.assemble("\n", (words, CUT), "\n")


def _cut_of(example: Example, limit: int) -> Cut | None:
    """Where the allowed tokens end, where not all are; 0 is no limit."""
    from ollama_tune.core.data.chat.mask import cut

    return cut(example, limit) if limit else None


def spans(example: Example) -> Iterator[tuple[int, int, bool]]:
    """The text cut into pieces (start, end, trained) that cover all of it, in order, by character."""
    position = 0
    for (start, end), trained in zip(example.offsets, example.trained, strict=True):
        if trained and end > position:
            if start > position:
                yield position, start, False
            yield max(start, position), end, True
            position = end
    if position < len(example.text):
        yield position, len(example.text), False


class RowText(Vertical):
    """The exact text of a row below what is to be known of it; its ids on demand."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._shown: RowRendered | None = None
        self._limit = 0
        self._ids = False
        self._said: tuple[str, ...] | None = None

    def compose(self) -> ComposeResult:
        """Legend, notes, text."""
        yield Static(legend(), id="legend")
        yield Page(id="notes")
        yield TextView(id="text")

    def show(self, rendered: RowRendered) -> None:
        """Another row."""
        self._shown = rendered
        self._draw()

    def clear(self) -> None:
        """No row."""
        self._shown = None
        self._draw()

    def cut_at(self, limit: int) -> None:
        """Show where `limit` tokens end; 0 is no limit."""
        if limit != self._limit:
            self._limit = limit
            self._draw()

    def toggle_ids(self) -> None:
        """Show the ids of the tokens, or hide them."""
        self._ids = not self._ids
        self._draw()

    def _draw(self) -> None:
        shown = self._shown
        self.query_one("#text", TextView).show(self._text(shown) if shown else Content(""))
        self._entitle(figures(shown) if shown and shown.examples else "")
        said = shown.notes if shown else ()
        if said != self._said:
            self._said = said
            self._tell(said)

    def _entitle(self, title: str) -> None:
        """The title above the text; a new `border_title` would paint every line of the box."""
        self._border_title = Content(title)
        self.refresh(Region(0, -1, self.size.width, 1))

    def _tell(self, said: tuple[str, ...]) -> None:
        notes, mark = self.query_one("#notes", Page), ("! ", "$text-warning bold")
        notes.show([Line(Content.assemble(mark, visible(note)), 2) for note in said])
        notes.display = bool(said)
        notes.call_after_refresh(notes.refresh, layout=True)

    def _text(self, shown: RowRendered) -> Content:
        if shown.error is not None:
            return sentence(shown.error)
        if not shown.examples:
            text = "\n".join(message.content for message in shown.row.messages)
            return _piece(text[:LONGEST], CONTEXT)
        draw, many = with_ids if self._ids else marked, len(shown.examples)
        parts: list[Content] = []
        for number, example in enumerate(shown.examples[:MOST_EXAMPLES], 1):
            parts += [Content.styled(f"── sample {number} of {many} ──", "dim")] if many > 1 else []
            parts.append(draw(example, self._limit))
        if shown.rejected is not None:
            words = ("── the worse answer of the pair; preferences (DPO) make ", "dim")
            parts.append(Content.assemble(words, ("this", REJECTED), (" less likely ──", "dim")))
            parts.append(draw(shown.rejected, self._limit, REJECTED))
        return Content("\n").join(parts)


def figures(shown: RowRendered) -> str:
    """Where the row stands and how long it is."""
    row, many = shown.row, len(shown.examples)
    place = f"line {row.line:,}" + (f" of {one_line(row.file, 40)}" if row.file else "")
    tokens = sum(len(example.ids) for example in shown.examples)
    trained = sum(sum(example.trained) for example in shown.examples)
    samples = f" in {many} samples" if many > 1 else ""
    return f"{place}: {tokens:,} tokens{samples}, {trained:,} of them trained"
