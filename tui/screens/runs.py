"""The list of runs: what each is doing, and what can be done with it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import Worker

from ollama_tune.core.errors import TuneError
from ollama_tune.core.runs.folder import RunFolder, State, list_runs
from ollama_tune.core.text import human_bytes, one_line, visible
from ollama_tune.tui.screens.base import FramedScreen
from ollama_tune.tui.screens.run_screen import RunFollower
from ollama_tune.tui.text import tilde

POLL = 1.0
SIGNS = {
    State.NEW: "·",
    State.RUNNING: "▶",
    State.PAUSED: "‖",
    State.SILENT: "!",
    State.FINISHED: "✓",
    State.STOPPED: "■",
    State.FAILED: "✗",
    State.CRASHED: "✗",
}
STATE, STEP, LOSS, WHEN = 17, 13, 8, 6
NAME = 24, 48


@dataclass
class RunsRead(Message):
    """Every run with its log read, newest first."""

    runs: tuple[RunFollower, ...]


@dataclass
class Settled(Message):
    """A resume or a deletion ended; `error` says why it did not work."""

    error: TuneError | None = None


class RunsScreen(FramedScreen):
    """Runs, newest first; live ones are followed, the others were read once."""

    TITLE_TEXT = "Runs"
    CSS_PATH = "runs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", priority=True),
        Binding("escape", "close", "Back"),
        Binding("s", "stop", "Stop"),
        Binding("r", "resume", "Resume"),
        Binding("x", "delete", "Delete"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._runs: tuple[RunFollower, ...] = ()
        self._read = False
        self._shown: tuple[Path, ...] = ()

    def body(self) -> ComposeResult:
        """Heading, list, and what the list has no room for."""
        yield Static(id="columns", markup=False)
        yield OptionList(id="runs", markup=False, compact=True)
        yield Static("Reading the runs …", id="about-run", markup=False)

    def on_mount(self) -> None:
        """Read the logs in a thread; then look at the live ones once a second."""
        super().on_mount()
        self.set_interval(POLL, self._poll)

    def on_screen_resume(self) -> None:
        """Read again: a run may have been started, deleted or ended meanwhile."""
        self._read_runs()

    def on_resize(self) -> None:
        """Lines have the width of the window."""
        self.call_after_refresh(self._fill)

    @work(thread=True, exclusive=True, exit_on_error=False, group="runs")
    def _read_runs(self) -> None:
        found = []
        for folder in list_runs():
            follower = RunFollower(folder)
            follower.poll()
            found.append(follower)
        self.post_message(RunsRead(tuple(found)))

    @on(RunsRead)
    def _runs_read(self, message: RunsRead) -> None:
        self._runs, self._read = message.runs, True
        self._fill()
        self.refresh_bindings()

    def _poll(self) -> None:
        changed = [run.poll() for run in self._runs if run.alive]
        if any(changed):
            self._fill()
            self.refresh_bindings()

    # Show

    def _fill(self) -> None:
        """Bring the lines up to date; the highlighted run stays highlighted."""
        runs = self.query_one("#runs", OptionList)
        names = min(max(runs.size.width - (STATE + STEP + LOSS + WHEN + 5), NAME[0]), NAME[1])
        paths = tuple(run.folder.path for run in self._runs)
        lines = [_line(run, names) for run in self._runs]
        self.query_one("#columns", Static).update(_heading(names))
        if paths == self._shown:
            for index, line in enumerate(lines):
                if runs.get_option_at_index(index).prompt != line:
                    runs.replace_option_prompt_at_index(index, line)
        else:
            before = self._shown[runs.highlighted] if runs.highlighted is not None else None
            runs.clear_options()
            runs.add_options(Option(line) for line in lines)
            self._shown = paths
            if paths:
                runs.highlighted = paths.index(before) if before in paths else 0
            runs.focus()
        self._tell_about()

    @on(OptionList.OptionHighlighted)
    def _highlighted(self) -> None:
        self._tell_about()
        self.refresh_bindings()

    @property
    def chosen(self) -> RunFollower | None:
        """The highlighted run."""
        index = self.query_one("#runs", OptionList).highlighted
        return self._runs[index] if index is not None and index < len(self._runs) else None

    def _tell_about(self) -> None:
        run = self.chosen
        none = "There is no run yet: go through the wizard or type `ollama-tune demo`."
        waiting = none if self._read else "Reading the runs …"
        self.query_one("#about-run", Static).update(_about(run) if run else Content(waiting))

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Each key shows where the highlighted run lets it do something."""
        if action == "close":
            return len(self.app.screen_stack) > 1
        if action not in ("open", "stop", "resume", "delete"):
            return True
        run = self.chosen if self.is_mounted else None
        if run is None:
            return False
        alive = run.alive
        return {"open": True, "stop": alive, "resume": not (alive or run.view.trained), "delete": not alive}[
            action
        ]

    async def action_open(self) -> None:
        """The end of an exported run, else the run as it goes."""
        run = self.chosen
        if run is None:
            return
        if "export" in run.view.done and not run.alive:
            from ollama_tune.tui.screens.done import DoneScreen

            self.tune.folder = run.folder
            await self.app.push_screen(DoneScreen(run.folder))
        else:
            await self.tune.open_run(run.folder)

    def action_close(self) -> None:
        """Back to where the list was opened."""
        self.app.pop_screen()

    def action_stop(self) -> None:
        """Ask once; Enter says no."""
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        run = self.chosen
        if run is not None:
            text = "The worker finishes its step, writes a checkpoint and ends. Going on later loses nothing."
            self.app.push_screen(
                ConfirmScreen(f"Stop {run.folder.name}?", text), lambda yes: self._stop(run.folder, bool(yes))
            )

    def _stop(self, folder: RunFolder, yes: bool) -> None:
        from ollama_tune.core.runs.control import request_stop

        try:
            if yes:
                request_stop(folder)
                self.say(f"{folder.name} ends after its step.")
        except TuneError as error:
            self.say(str(error))

    def action_resume(self) -> None:
        """Go on from the last checkpoint."""
        if self.chosen is not None:
            self.say(f"Starting a worker for {self.chosen.folder.name} …")
            self._resume(self.chosen.folder)

    @work(thread=True, exclusive=True, exit_on_error=False, group="change")
    def _resume(self, folder: RunFolder) -> None:
        from ollama_tune.core.runs.control import resume

        self._settle(lambda: resume(folder))

    def action_delete(self) -> None:
        """Ask with the name and the size; Enter says no."""
        from ollama_tune.tui.printing import folder_size
        from ollama_tune.tui.widgets.confirm import ConfirmScreen

        run = self.chosen
        if run is not None:
            size = human_bytes(folder_size(run.folder.path))
            text = "Checkpoints, adapter and exported files are removed. What is in Ollama stays there."
            question = ConfirmScreen(f"Delete run {run.folder.name}, {size}?", text)
            self.app.push_screen(question, lambda yes: self._deletion_answered(run.folder, bool(yes)))

    def _deletion_answered(self, folder: RunFolder, yes: bool) -> None:
        if yes:
            self._delete(folder)

    @work(thread=True, exclusive=True, exit_on_error=False, group="change")
    def _delete(self, folder: RunFolder) -> None:
        from ollama_tune.core.runs.control import delete

        self._settle(lambda: delete(folder))

    def _settle(self, change: Callable[[], None]) -> None:
        """Do it in the thread that calls this, and say how it went."""
        try:
            change()
        except TuneError as error:
            self.post_message(Settled(error))
        except OSError as error:
            problem = f"That did not work: {error.strerror}."
            self.post_message(Settled(TuneError(problem, "Look at the folder and try again.")))
        else:
            self.post_message(Settled())

    @on(Settled)
    def _settled(self, message: Settled) -> None:
        self.say(str(message.error) if message.error else "")
        self._read_runs()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """An error of our own in slow work is reported by the application."""
        self.tune.on_worker_state_changed(event)


def _heading(names: int) -> Content:
    return Content.styled(
        f"  {'state':<{STATE - 2}} {'run':<{names}} {'step':>{STEP}} {'loss':>{LOSS}}  when", "dim"
    )


def _line(run: RunFollower, names: int) -> Content:
    view = run.view
    state = f"{SIGNS[run.state]} {run.state.value}"
    if run.alive and view.stage == "export":
        state = "▶ exporting"
    step = f"{view.step:,}/{view.total_steps:,}" if view.total_steps else "–"
    loss = "–" if view.loss is None else f"{view.loss:.4f}"
    name = one_line(run.folder.name, names)
    return Content(f"{state:<{STATE}} {name:<{names}} {step:>{STEP}} {loss:>{LOSS}}  {_when(view.updated)}")


def _when(moment: float) -> str:
    """The time of today, else the day."""
    if not moment:
        return "–"
    then, now = (datetime.datetime.fromtimestamp(t) for t in (moment, time.time()))
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%d %b}"


def _about(run: RunFollower) -> Content:
    view = run.view
    lines = [Content.styled(visible(run.folder.name), "bold")]
    lines.append(_pair("model", one_line(view.model, 200) or "–"))
    if view.before is not None and view.after is not None:
        lines.append(_pair("learned", f"{view.before:.1%} exact answers before, {view.after:.1%} after"))
    done = view.done.get("export")
    if done is not None:
        name = done.get("ollama_name")
        lines.append(_pair("exported", f"in Ollama as {one_line(str(name), 80)}" if name else "as a file"))
    if view.error is not None and not run.alive:
        lines.append(_pair("problem", one_line(str(view.error["what"]), 200)))
    lines.append(_pair("folder", tilde(run.folder.path)))
    return Content("\n").join(lines)


def _pair(name: str, value: str) -> Content:
    return Content.assemble((f"{name:<9}", "dim"), value)
