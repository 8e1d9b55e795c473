"""Step 3: which examples are learned, and how the model will see them."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static
from textual.widgets.input import Selection
from textual.worker import Worker, get_current_worker

from ollama_tune.core.text import visible
from ollama_tune.tui import data_tasks, tasks
from ollama_tune.tui.messages import RowRendered, RowsFound
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.screens.data_columns import ReadingScreen
from ollama_tune.tui.screens.data_rows import MAP, GoToScreen, QuestionScreen
from ollama_tune.tui.state import BUNDLED, Facts
from ollama_tune.tui.text import put_text, tilde
from ollama_tune.tui.widgets.data_summary import found_lines
from ollama_tune.tui.widgets.form import TextField
from ollama_tune.tui.widgets.help import paragraphs
from ollama_tune.tui.widgets.page import Page
from ollama_tune.tui.widgets.problems import ProblemList, what_to_do
from ollama_tune.tui.widgets.rendered import RowText
from ollama_tune.tui.widgets.rows import RowHead, RowList

if TYPE_CHECKING:
    from ollama_tune.core.data.chat.render import ChatFormat
    from ollama_tune.core.data.values import DatasetProfile, Problem, Question, Row

HELP = {part: ("data", part) for part in ("path", "problems", "text")} | {"rows": ("data", "table")}
WITH_ROWS = ("go_to", "ids", "all_rows")
REST = 0.06
"""Seconds between two keys below which a key is held: rows that it passes over get no text."""
LONG = 0.7
"""Seconds of reading after which Esc stops it instead of going back."""


class DataScreen(StepScreen):
    """A file, what was found in it, its rows, and the exact text of one row with the trained part marked."""

    STEP = 3
    CSS_PATH = "data.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "app.focus_next", "Next part"),
        Binding("a", "all_rows", "All rows"),
        Binding("g", "go_to", "Go to row"),
        Binding("i", "ids", "Token ids"),
        Binding("f3", "ask", "Question"),
        Binding("f2", "columns", "Columns"),
        Binding("ctrl+o", "browse", "Browse files"),
        Binding("escape", "stop_reading", "Stop reading"),
        Binding("escape", "back", "Back"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._row: Row | None = None
        self._chat: ChatFormat | None = None
        self._limit, self._limit_of = 0, ""
        self._filter: Problem | None = None
        self._told_about: set[tuple[str, str]] = set()
        self._moved = 0.0
        self._rest: Timer | None = None
        self._reads_since: float | None = None

    def body(self) -> ComposeResult:
        """Path, findings, problems, rows, rendered row."""
        yield TextField(id="path", placeholder="bundled, a file, a folder, or org/name of the hub")
        yield Page(id="found")
        yield ProblemList(id="problems")
        yield Static(id="advice", markup=False)
        with Vertical(id="rows-and-text"):
            rows = RowList(id="rows")
            yield Static(id="filter", markup=False)
            yield RowHead(rows, id="rows-head")
            yield rows
            yield RowText(id="row-text")

    def on_mount(self) -> None:
        """The path of the answers stands in the line."""
        super().on_mount()
        self._put(self.tune.answers.data)
        self.query_one("#path").focus()

    def on_screen_resume(self) -> None:
        """The file may have been mended in between."""
        self.tune.read_changed_data()
        super().on_screen_resume()

    def _put(self, path: str) -> None:
        """With the cursor at its end; over `bundled` one types at once."""
        field = self.query_one("#path", TextField)
        field.value = tilde(path) if path.startswith("/") else path
        field.selection = Selection(0 if path == BUNDLED else len(field.value), len(field.value))

    # What is known

    def facts_changed(self, facts: Facts) -> None:
        """Findings and rows; the highlighted row is rendered again when the model changed."""
        self._clock(facts)
        self.query_one("#found", Page).show(found_lines(facts))
        profile = facts.profile
        own = {*self._own("data.include"), *self._own("data.exclude")}
        problems = (*profile.problems, *facts.length_problems) if profile else ()
        self.query_one("#problems", ProblemList).show(problems, own)
        self._show_rows(profile)
        kept = self._limit if self.tune.answers.data == self._limit_of else 0
        limit = facts.plan.settings.training.sequence_length if facts.plan else kept
        chat = facts.fitted or facts.chat
        if (chat, limit) != (self._chat, self._limit):
            self._chat, self._limit, self._limit_of = chat, limit, self.tune.answers.data
            self.query_one("#row-text", RowText).cut_at(limit)
            self._render_row()
        self.query_one("#rows-and-text").display = profile is not None
        self._ask_once(facts)

    def _clock(self, facts: Facts) -> None:
        """Remember since when the data is read: what takes long can be stopped."""
        if not facts.busy.keys() & {"data", "rows"}:
            self._reads_since = None
        elif self._reads_since is None:
            self._reads_since = time.monotonic()
            self.set_timer(LONG, self.refresh_bindings)

    @property
    def _reads_long(self) -> bool:
        return self._reads_since is not None and time.monotonic() - self._reads_since >= LONG

    def _own(self, path: str) -> list[str]:
        return list(self.tune.answers.changed.get(path, []))

    def _show_rows(self, profile: DatasetProfile | None) -> None:
        if profile is None:
            self._filter = None
        if self._filter is None:
            self._table.show(profile.rows if profile else (), stay=True)
        self._tell_filter()

    @property
    def _table(self) -> RowList:
        return self.query_one("#rows", RowList)

    # Problems and the rows of one

    @on(ProblemList.Chosen)
    def _chosen(self, event: ProblemList.Chosen) -> None:
        if self.tune.facts.profile is not None:
            self._find_rows(self.tune.facts.profile, event.problem)

    @work(thread=True, exclusive=True, exit_on_error=False, group="filter")
    def _find_rows(self, profile: DatasetProfile, problem: Problem) -> None:
        rows = data_tasks.rows_of(profile, problem)
        if not get_current_worker().is_cancelled:
            self.post_message(RowsFound(problem, rows))

    @on(RowsFound)
    def _rows_found(self, message: RowsFound) -> None:
        if not message.rows:
            whole = "That is about the data as a whole, not about single rows. F1 says what to do."
            unread = "These lines cannot be shown here; look at them in the file."
            self.say(unread if message.problem.lines else whole)
            return
        self.say("")
        self._filter = message.problem
        self._table.show(message.rows)
        self._tell_filter()
        self._table.focus()

    @on(ProblemList.Pointed)
    def _pointed(self, event: ProblemList.Pointed) -> None:
        """What to do about the problem under the cursor, below the list while that has the focus."""
        line, problem = self.query_one("#advice", Static), event.problem
        words = what_to_do(problem.kind) if problem is not None else ""
        line.display = bool(words)
        put_text(line, Content.assemble(("→ ", "bold"), paragraphs(words)))

    def _tell_filter(self) -> None:
        line = self.query_one("#filter", Static)
        line.display = self._filter is not None
        if self._filter is not None:
            words = f"Only these (a shows all): {visible(self._filter.text)}"
            put_text(line, Content.assemble(("▼ ", "bold"), words), layout=False)
        self.refresh_bindings()

    def action_all_rows(self) -> None:
        """Show all rows again."""
        self._filter = None
        self._show_rows(self.tune.facts.profile)

    @on(ProblemList.Switched)
    def _switched(self, event: ProblemList.Switched) -> None:
        """Undo the person's choice about these rows, or make one."""
        kind, values = event.problem.kind, self.tune.answers.reading_values()
        include, exclude = set(self._own("data.include")), set(self._own("data.exclude"))
        if kind in include | exclude:
            include, exclude = include - {kind}, exclude - {kind}
        elif event.problem.severity == "error":
            include.add(kind)
        else:
            exclude.add(kind)
        self._read_as(values | {"data.include": sorted(include), "data.exclude": sorted(exclude)})

    def _read_as(self, values: dict[str, Any]) -> None:
        self._filter = None
        self.tune.read_as({path: value for path, value in values.items() if value})

    # What a file leaves open

    def _ask_once(self, facts: Facts) -> None:
        """Ask by itself once, where a file leaves something open or nobody knows its columns."""
        if not self.is_current:
            return
        path = self.tune.answers.data
        questions = facts.profile.questions if facts.profile else ()
        fresh = [question for question in questions if (path, question.kind) not in self._told_about]
        if fresh:
            self._ask(fresh[0])
        elif facts.columns and (path, "columns") not in self._told_about:
            self.action_columns()

    def _ask(self, question: Question) -> None:
        self._told_about.add((self.tune.answers.data, question.kind))
        profile = self.tune.facts.profile
        columns = profile.columns if profile else ()
        self.app.push_screen(QuestionScreen(question, columns), partial(self._answered, question))

    def _answered(self, question: Question, place: int | None) -> None:
        if place == MAP:
            self.action_columns()
        elif place is not None:
            reading = question.options[place].reading
            self._read_as(self.tune.answers.reading_values() | reading.settings())

    def action_ask(self) -> None:
        """Ask again."""
        profile = self.tune.facts.profile
        if profile is not None and profile.questions:
            self._ask(profile.questions[0])

    def action_columns(self) -> None:
        """Say how the data is read."""
        from ollama_tune.core.data.schemas.labels import values_to_name

        facts = self.tune.facts
        self._told_about.add((self.tune.answers.data, "columns"))
        columns = facts.columns or (facts.profile.columns if facts.profile else ())
        remote = not self.tune.answers.data.startswith("/") and self.tune.answers.data != BUNDLED
        why = facts.data_error.what if facts.data_error else ""
        values = self.tune.answers.reading_values()
        labels = values_to_name(facts.profile.labels if facts.profile else (), values.get("data.labels", {}))
        screen = ReadingScreen(columns, values, remote, why, labels)
        self.app.push_screen(screen, self._said)

    def _said(self, values: dict[str, Any] | None) -> None:
        if values is not None:
            self._read_as(values)

    # One row

    @property
    def waiting(self) -> bool:
        """True while the text of a row will be made once the cursor rests."""
        return self._rest is not None

    @on(RowList.Highlighted)
    def _highlighted(self, event: RowList.Highlighted) -> None:
        """A row's text is made at once, or when the cursor rests after a held key."""
        now, self._row = time.monotonic(), event.row
        moving, self._moved = now - self._moved < REST, now
        if self._rest is not None:
            self._rest.stop()
        self._rest = self.set_timer(REST, self._rested) if moving else None
        if not moving:
            self._render_row()

    def _rested(self) -> None:
        self._rest = None
        self._render_row()

    def _render_row(self) -> None:
        if self._row is not None and self._chat is not None:
            self._make_text(self._chat, self._row, self._limit)
        else:
            self.query_one("#row-text", RowText).clear()

    @work(thread=True, exclusive=True, exit_on_error=False, group="row")
    def _make_text(self, chat: ChatFormat, row: Row, limit: int) -> None:
        message = data_tasks.render_row(chat, row, limit)
        if not get_current_worker().is_cancelled:
            self.post_message(message)

    @on(RowRendered)
    def _rendered(self, message: RowRendered) -> None:
        if message.row is self._row:
            self.query_one("#row-text", RowText).show(message)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """An error in this screen's own thread is the application's to tell."""
        self.tune.on_worker_state_changed(event)

    def action_go_to(self) -> None:
        """Ask for the number of a row and stand on it."""
        self.app.push_screen(GoToScreen(self._reachable), self._gone_to)

    def _reachable(self) -> tuple[int, bool]:
        """How many rows there are to go to now, and whether more of them come."""
        profile = self.tune.facts.profile
        return len(self._table.rows), profile is not None and not profile.exact and self._filter is None

    def _gone_to(self, number: int | None) -> None:
        if number is not None:
            self._table.cursor = number - 1
            self._table.focus()

    def action_ids(self) -> None:
        """Show the ids of the tokens beside their text, or hide them."""
        self.query_one("#row-text", RowText).toggle_ids()

    def help_topic(self) -> tuple[str, str]:
        """The help of the part with the focus: of a problem, what that kind means."""
        focused = self.focused
        if isinstance(focused, ProblemList) and focused.problem is not None:
            return "problems", focused.problem.kind
        return HELP.get(focused.id or "", super().help_topic()) if focused else super().help_topic()

    # The path, and going on

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Letters are keys only where nothing is typed; Enter belongs to the problems while they have the
        focus."""
        profile = self.tune.facts.profile
        if action in WITH_ROWS:
            typing = self.focused is not None and self.focused.id == "path"
            shown = profile is not None and not typing
            return shown and (action != "all_rows" or self._filter is not None)
        if action == "ask":
            return bool(profile and profile.questions)
        if action == "next" and isinstance(self.focused, ProblemList):
            return False
        if action in ("stop_reading", "back"):
            return self._reads_long is (action == "stop_reading")
        return super().check_action(action, parameters)

    def action_stop_reading(self) -> None:
        """End a long reading; the form is as it was, and the next Esc goes back."""
        self.tune.stop_reading()

    @on(TextField.Blurred, "#path")
    def leaving(self) -> None:
        """Take the path that was typed."""
        self._take_typed()

    def _take_typed(self) -> bool:
        """Read the file whose path was typed, when it is another; True when it is being read now."""
        typed, data = self.query_one("#path", TextField).value.strip(), self.tune.answers.data
        if typed in (data, tilde(data)):
            return False
        path = tasks.whole_path(typed)
        if path == data:
            return False
        self.say("")
        self.tune.choose_data(path)
        return True

    def obstacle(self) -> str:
        """A file that cannot be used; one that is still being read may be read on."""
        return "Mend that first: see above." if self.tune.facts.data_error else ""

    async def action_next(self) -> None:
        """A typed file is read and shown first, and again after a change or an error; then Enter goes on."""
        if self._take_typed() or self.tune.read_changed_data():
            return
        if self.tune.facts.data_error is not None:
            self.tune.choose_data(self.tune.answers.data)
        else:
            await super().action_next()

    def action_browse(self) -> None:
        """Choose a file from a list."""
        from ollama_tune.tui.widgets.filepicker import FilePicker

        data = Path(self.tune.answers.data)
        start = data.parent if data.is_absolute() else Path.cwd()
        self.app.push_screen(FilePicker(start), self._picked)

    def _picked(self, path: Path | None) -> None:
        if path is not None:
            self._put(str(path))
            self.tune.choose_data(str(path))
