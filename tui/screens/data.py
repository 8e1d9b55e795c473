"""Step 3: which examples are learned, and how the model will see them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static
from textual.worker import Worker, get_current_worker

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import one_line, visible
from ollama_tune.tui.messages import RowRendered
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import BUNDLED, Facts
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.errors import sentence
from ollama_tune.tui.widgets.form import TextField
from ollama_tune.tui.widgets.page import Line, Page
from ollama_tune.tui.widgets.rendered import legend, marked
from ollama_tune.tui.widgets.rows import RowList

if TYPE_CHECKING:
    from ollama_tune.core.data.render import ChatFormat
    from ollama_tune.core.data.values import DatasetProfile, Lengths, Problem, Row

PROBLEMS = 3


class DataScreen(StepScreen):
    """A file, what was found in it, its rows, and the exact text of one row with the trained part marked."""

    STEP = 3
    CSS_PATH = "data.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+o", "browse", "Browse files"),
        Binding("tab", "app.focus_next", "Path / rows / text"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._row: Row | None = None
        self._chat: ChatFormat | None = None

    def body(self) -> ComposeResult:
        """Path, findings, rows, rendered row."""
        yield TextField(id="path", placeholder="bundled, or the path of a file")
        yield Page(id="found")
        with Vertical(id="rows-and-text"):
            yield RowList(id="rows")
            with Vertical(id="text-side"):
                yield Static(legend(), id="legend")
                with VerticalScroll(id="text-scroll"):
                    yield Static(id="text", markup=False)

    def on_mount(self) -> None:
        """The path of the answers stands in the line."""
        super().on_mount()
        self._put(self.tune.answers.data)
        self.query_one("#path").focus()

    def _put(self, path: str) -> None:
        self.query_one("#path", TextField).value = path if path == BUNDLED else tilde(path)

    def facts_changed(self, facts: Facts) -> None:
        """Findings and rows; the highlighted row is rendered again when the model changed."""
        self.query_one("#found", Page).show(self._found(facts))
        self.query_one("#rows", RowList).show(facts.profile.rows if facts.profile else ())
        if facts.chat is not self._chat:
            self._chat = facts.chat
            self._render_row()
        self.query_one("#rows-and-text").display = facts.profile is not None

    def _found(self, facts: Facts) -> list[Line]:
        if facts.data_error is not None:
            return [Line(sentence(facts.data_error), 2)]
        if facts.profile is None:
            return [Line(Content(visible(facts.busy.get("data", ""))))]
        problems = problem_lines((*facts.profile.problems, *facts.length_problems))
        return [Line(content, 2) for content in (_summary(facts.profile), self._lengths(facts), *problems)]

    def _lengths(self, facts: Facts) -> Content:
        if facts.lengths is not None:
            return _length_line(facts.lengths)
        if facts.plan_error is not None:
            return sentence(facts.plan_error)
        if facts.model_error is not None:
            return Content.assemble(
                ("! ", "$text-warning bold"), "Tokens are counted once there is a model (step 2)."
            )
        return Content(visible(facts.busy.get("rows", facts.busy.get("model", ""))))

    @on(RowList.Highlighted)
    def _highlighted(self, event: RowList.Highlighted) -> None:
        self._row = event.row
        self._render_row()

    def _render_row(self) -> None:
        if self._row is not None and self._chat is not None:
            self._make_text(self._chat, self._row)
        else:
            self.query_one("#text", Static).update("")

    @work(thread=True, exclusive=True, exit_on_error=False, group="row")
    def _make_text(self, chat: ChatFormat, row: Row) -> None:
        from ollama_tune.core.data.mask import make_example

        worker = get_current_worker()
        try:
            message = RowRendered(row, make_example(chat, row))
        except TuneError as error:
            message = RowRendered(row, error=error)
        if not worker.is_cancelled:
            self.post_message(message)

    @on(RowRendered)
    def _rendered(self, message: RowRendered) -> None:
        if message.row is self._row:
            text = marked(message.example) if message.example else Content("")
            self.query_one("#text", Static).update(sentence(message.error) if message.error else text)
            self.query_one("#text-scroll").scroll_home(animate=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """An error in this screen's own thread is the application's to tell."""
        self.tune.on_worker_state_changed(event)

    def leaving(self) -> None:
        """Take the path that was typed."""
        self._take_typed()

    def _take_typed(self) -> bool:
        """Read the file whose path was typed, when it is another; True when it is being read now."""
        typed, data = self.query_one("#path", TextField).value.strip(), self.tune.answers.data
        path = BUNDLED if typed in ("", BUNDLED) else str(Path(typed).expanduser().absolute())
        if path == data or typed == tilde(data):
            return False
        self.tune.choose_data(path)
        return True

    @on(TextField.Blurred, "#path")
    def _left_line(self) -> None:
        self.leaving()

    def obstacle(self) -> str:
        """A file that cannot be used; one that is still being read may be read on."""
        return "Choose another file first: see above." if self.tune.facts.data_error else ""

    async def action_next(self) -> None:
        """A typed file is read and shown first, and again after an error; the next Enter goes on."""
        if self._take_typed():
            return
        if self.tune.facts.data_error is not None:
            self.tune.choose_data(self.tune.answers.data)
        else:
            await super().action_next()

    def action_browse(self) -> None:
        """Choose a file from a list."""
        from ollama_tune.tui.widgets.filepicker import FilePicker

        data = self.tune.answers.data
        start = Path.cwd() if data == BUNDLED else Path(data).parent
        self.app.push_screen(FilePicker(start), self._picked)

    def _picked(self, path: Path | None) -> None:
        if path is not None:
            self._put(str(path))
            self.tune.choose_data(str(path))


def _summary(profile: DatasetProfile) -> Content:
    left = profile.total - profile.usable
    words = f"{visible(profile.format)}, {visible(profile.schema)}, {visible(profile.encoding)}"
    rows = f"{profile.usable:,} row" + ("" if profile.usable == 1 else "s")
    rows += f" of {profile.total:,}" if left else ""
    return Content.assemble(("✓ ", "$text-success bold"), (rows, "bold"), f" · {words}")


def _length_line(lengths: Lengths) -> Content:
    return Content.styled(
        f"  {lengths.tokens:,} tokens, {lengths.trained_tokens:,} of them trained; "
        f"a row has {lengths.median:,} (median) to {lengths.longest:,}",
        "dim",
    )


def problem_lines(problems: tuple[Problem, ...], limit: int = PROBLEMS) -> list[Content]:
    """One line a problem: how many rows, what, and the first line numbers."""
    lines = []
    for problem in problems[:limit]:
        left_out = problem.severity == "error"
        style = "$text-error bold" if left_out else "$text-warning bold"
        where = ", ".join(f"{line:,}" for line in problem.lines[:4]) + (", …" if problem.count > 4 else "")
        lines.append(
            Content.assemble(
                ("✗ " if left_out else "! ", style),
                f"{problem.count:,} × {one_line(problem.text, 90)}",
                (f" (line {where})" if problem.lines else "", "dim"),
            )
        )
    if len(problems) > limit:
        lines.append(Content.styled(f"  and {len(problems) - limit} more kinds of problem", "dim"))
    return lines
