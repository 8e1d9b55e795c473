"""The list of runs: what each came to, and what can be done with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.turns import searching
from ollama_tune.tui.duplicate import kept_answers
from ollama_tune.tui.run_summary import ListedRun, folder_size, read_runs
from ollama_tune.tui.screens.run_changes import RunChangesScreen
from ollama_tune.tui.screens.runs_lines import Table, about, together
from ollama_tune.tui.text import put_text
from ollama_tune.tui.widgets.options import Options

POLL = 1.0
NEWS = 0.3
MOST = 4
"""So many runs can be compared at once."""
SEARCHING = "Learning rates are being tried in the background: F6 in Settings shows them."
MANY = 6
"""From so many runs on the list can be filtered and ordered."""
ORDERS: dict[str, Callable[[ListedRun], Any]] = {
    "when": lambda run: 0,
    "loss": lambda run: math.inf if run.summary.shown_loss is None else run.summary.shown_loss,
    "size": lambda run: -(run.size or 0),
    "name": lambda run: run.name,
}


def _searched(run: ListedRun) -> str:
    """The words that a run is found by."""
    trial = f"{run.trial.sweep} {run.trial.words}" if run.trial else ""
    return f"{run.name} {run.summary.model} {run.summary.name} {run.state.value} {trial}"


@dataclass
class RunsRead(Message):
    """Runs with what is known of them, newest first; `last` is off while older ones are still being read."""

    runs: tuple[ListedRun, ...]
    last: bool = True


@dataclass
class SizesKnown(Message):
    """How many bytes each run's folder takes."""

    sizes: dict[Path, int]


class RunsScreen(RunChangesScreen):
    """Runs, newest first; live ones are followed, of the others a summary is kept."""

    TITLE_TEXT = "Runs"
    CSS_PATH = "runs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", priority=True),
        Binding("escape", "close", "Back"),
        Binding("space", "mark", "Mark"),
        Binding("c,equals_sign", "compare", "Compare"),
        Binding("s", "stop", "Stop"),
        Binding("r", "resume", "Resume"),
        Binding("n", "duplicate", "Again"),
        Binding("b", "bring_back", "Bring back"),
        Binding("x", "delete", "Delete"),
        Binding("f,slash", "filter", "Filter"),
        Binding("o", "order", "Order", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._runs: tuple[ListedRun, ...] = ()
        self._read = False
        self._shown: tuple[Path, ...] = ()
        self._lines: list[Content] = []
        self._marked: list[Path] = []
        self._order = "when"
        self._wanted = ""
        self._kept = False

    def body(self) -> ComposeResult:
        """Heading, list, the word that is looked for, and what the list has no room for."""
        yield Static(id="columns", markup=False)
        yield Options(id="runs", markup=False, compact=True)
        yield Input(id="filter", placeholder="part of a name, model or state", compact=True)
        yield Static("Reading the runs …", id="about-run", markup=False)

    def on_mount(self) -> None:
        """Read the runs in a thread; then look at the live ones once a second."""
        super().on_mount()
        self.query_one("#filter").display = False
        self.set_interval(POLL, self._poll)

    def on_screen_resume(self) -> None:
        """Read again: a run may have been started, deleted or ended meanwhile."""
        self._kept = kept_answers() is not None
        if searching():
            self.say(SEARCHING)
        self._read_runs()

    def on_resize(self) -> None:
        """Lines have the width of the window."""
        self.call_after_refresh(self._fill)

    @work(thread=True, exclusive=True, exit_on_error=False, group="runs")
    def _read_runs(self) -> None:
        """First what the list shows, then the sizes, which may take as long as the disk wants."""
        found: list[ListedRun] = []
        told, worker = time.monotonic(), get_current_worker()
        for run in read_runs():
            found.append(run)
            if time.monotonic() - told > NEWS and not worker.is_cancelled:
                told = time.monotonic()
                self.post_message(RunsRead(tuple(found), last=False))
        if not worker.is_cancelled:
            self.post_message(RunsRead(tuple(found)))
        sizes = {run.folder.path: folder_size(run.folder.path) for run in found if not worker.is_cancelled}
        if not worker.is_cancelled:
            self.post_message(SizesKnown(sizes))

    @on(RunsRead)
    def _runs_read(self, message: RunsRead) -> None:
        """A list that is not whole yet takes the place of none, never of a whole one."""
        if self._read and not message.last:
            return
        sizes = {run.folder.path: run.size for run in self._runs}
        for run in message.runs:
            run.size = sizes.get(run.folder.path)
        self._runs, self._read = message.runs, message.last
        known = {run.folder.path for run in self._runs}
        self._marked = [path for path in self._marked if path in known]
        self._fill()

    @on(SizesKnown)
    def _sizes_known(self, message: SizesKnown) -> None:
        for run in self._runs:
            run.size = message.sizes.get(run.folder.path, run.size)
        self._fill()

    def _poll(self) -> None:
        changed = [run.poll() for run in self._runs if run.alive]
        if any(changed):
            self._fill()

    # Show

    def _listed(self) -> list[ListedRun]:
        """The runs that are looked for, in the chosen order."""
        word = self._wanted.lower()
        found = [run for run in self._runs if word in _searched(run).lower()]
        return together(found) if self._order == "when" else sorted(found, key=ORDERS[self._order])

    def _fill(self) -> None:
        """Bring the lines up to date; the highlighted run stays so, at first the one that one came from."""
        runs, listed = self.query_one("#runs", OptionList), self._listed()
        table = Table(runs.size.width)
        paths = tuple(run.folder.path for run in listed)
        lines = [table.line(run, run.folder.path in self._marked) for run in listed]
        put_text(self.query_one("#columns", Static), table.heading(self._order), layout=False)
        if paths == self._shown:
            for index, line in enumerate(lines):
                if self._lines[index] != line:
                    runs.replace_option_prompt_at_index(index, line)
        else:
            opened = self.tune.folder.path if self.tune.folder is not None else None
            before = self._shown[runs.highlighted] if runs.highlighted is not None else opened
            runs.clear_options()
            runs.add_options(Option(line) for line in lines)
            self._shown = paths
            if paths:
                runs.highlighted = paths.index(before) if before in paths else 0
            if not self.query_one("#filter").has_focus:
                runs.focus()
        self._lines = lines
        self._tell_about()
        self.refresh_bindings()

    @on(OptionList.OptionHighlighted)
    def _highlighted(self) -> None:
        self._tell_about()
        self.refresh_bindings()

    @property
    def chosen(self) -> ListedRun | None:
        """The highlighted run."""
        index = self.query_one("#runs", OptionList).highlighted
        if index is None or index >= len(self._shown):
            return None
        return next((run for run in self._runs if run.folder.path == self._shown[index]), None)

    def _tell_about(self) -> None:
        run = self.chosen
        none = "There is no run yet: go through the wizard or type `ollama-tune demo`."
        if self._runs:
            none = f"No run has {self._wanted!r} in its name, model or state."
        waiting = Content(none if self._read else "Reading the runs …")
        words = about(run, run.model(), run.trained()) if run else waiting
        put_text(self.query_one("#about-run", Static), words)

    def changed(self) -> None:
        """Read the runs again."""
        self._read_runs()

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Each key shows where the highlighted run lets it do something."""
        if not self.is_mounted:
            return True
        if action == "close":
            return bool(self._wanted) or self._filtering or len(self.app.screen_stack) > 1
        if action in ("filter", "order"):
            return len(self._runs) >= MANY and not self._filtering
        if action == "compare":
            return len(self._marked) > 1
        if action == "bring_back":
            return self._kept
        if action not in ("open", "stop", "resume", "delete", "duplicate", "mark"):
            return True
        return self._works(action)

    def _works(self, action: str) -> bool:
        run = self.chosen
        if run is None:
            return False
        alive = run.alive
        works = {"stop": alive, "resume": not (alive or run.summary.trained), "delete": not alive}
        return works.get(action, True)

    @property
    def _filtering(self) -> bool:
        return bool(self.query_one("#filter").has_focus)

    def action_mark(self) -> None:
        """Mark the run for a comparison, or take the mark away; the cursor goes on to the next."""
        run = self.chosen
        if run is None:
            return
        path = run.folder.path
        if path in self._marked:
            self._marked.remove(path)
        elif len(self._marked) < MOST:
            self._marked.append(path)
        else:
            self.say(f"At most {MOST} runs can be compared: take a mark away first.")
            return
        more = "Mark another one, then c compares them." if len(self._marked) == 1 else ""
        self.say(more or (f"{len(self._marked)} runs are marked: c compares them." if self._marked else ""))
        self._fill()
        self.query_one("#runs", OptionList).action_cursor_down()

    async def action_compare(self) -> None:
        """The marked runs side by side."""
        from ollama_tune.tui.screens.compare import CompareScreen

        self.say("")
        await self.app.push_screen(CompareScreen([RunFolder(path) for path in self._marked]))

    def action_filter(self) -> None:
        """Type a word; the list follows."""
        word = self.query_one("#filter", Input)
        word.display = True
        word.focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self._wanted = event.value.strip()
        self._fill()

    def action_order(self) -> None:
        """Order the list by the next column."""
        names = list(ORDERS)
        self._order = names[(names.index(self._order) + 1) % len(names)]
        self._fill()

    async def action_open(self) -> None:
        """The end of an exported run, else the run as it goes; from the filter, to the list."""
        if self._filtering:
            self.query_one("#runs").focus()
            return
        run = self.chosen
        if run is None:
            return
        if run.summary.exported and not run.alive:
            from ollama_tune.tui.screens.done import DoneScreen

            self.tune.folder = run.folder
            await self.app.push_screen(DoneScreen(run.folder))
        else:
            await self.tune.open_run(run.folder)

    async def action_close(self) -> None:
        """Take the filter away; without one, back to where the list was opened, or to the wizard."""
        word = self.query_one("#filter", Input)
        if word.display:
            word.value, word.display = "", False
            self.query_one("#runs").focus()
        elif len(self.app.screen_stack) > 2:
            self.app.pop_screen()
        else:
            await self.tune.open_wizard(self.tune.answers)
