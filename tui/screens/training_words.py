"""What the training screen says of a run's state and troubles, made from its view."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content

from ollama_tune.core.errors import TuneError
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.text import human_seconds, visible
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.training_lines import finished, running
from ollama_tune.tui.text import tilde

LAST_LINES = 5
GONE = "The training ended without a word: it was killed, or the system had no memory left for it."
SIGNS = {State.PAUSED: "‖ Paused", State.STOPPED: "■ Stopped", State.NEW: "· Not started"}


@dataclass
class Wishes:
    """What the person asked for that the run has not answered yet; `refused` is why a resume did not work."""

    starting: bool = False
    stopping: bool = False
    pausing: bool = False
    refused: TuneError | None = None


def state_words(view: RunView, state: State, wishes: Wishes, now: float, width: int) -> Content:
    """The first line: what the run does, or how it ended."""
    if wishes.starting:
        return Content("Starting the run …")
    if view.trained:
        return finished(view, width)
    if wishes.stopping:
        return Content("Stopping: the run finishes its step and writes a checkpoint …")
    if wishes.pausing:
        return Content("Pausing: the run finishes its step and writes a checkpoint …")
    if state is State.SILENT:
        ago = human_seconds(now - view.updated)
        return Content.assemble(("! No sign of life ", "bold $text-warning"), f"for {ago}.")
    if state is State.RUNNING:
        return running(view, now)
    word = SIGNS.get(state, f"✗ {state.value.capitalize()}")
    waited = (
        f" Waiting for {human_seconds(now - view.pause.t)}." if state is State.PAUSED and view.pause else ""
    )
    where = f"at step {view.step:,} of {view.total_steps:,}" if view.total_steps else "before the first step"
    return Content.assemble((word, "bold"), f" {where}.{waited}")


def trouble_words(folder: RunFolder, view: RunView, state: State, wishes: Wishes) -> str:
    """What went wrong or waits for the person, with what to do; empty where nothing does."""
    if wishes.refused is not None:
        return f"✗ {visible(str(wishes.refused))}"
    if view.trained or wishes.starting:
        return ""
    if state is State.FAILED and view.error is not None:
        what, fix = visible(str(view.error["what"])), visible(str(view.error["fix"]))
        return f"✗ {what}\n  {fix}\n  {way_on(view)} Press e for the details."
    if state is State.CRASHED:
        return f"✗ {GONE} {way_on(view)}\n{last_lines(folder)}"
    if state is State.STOPPED and view.stopped is not None:
        return f"Stopped: {visible(str(view.stopped['reason']))}. {way_on(view)}"
    if state is State.PAUSED and view.pause is not None:
        return f"‖ {visible(str(view.pause['what']))} {visible(str(view.pause['fix']))}"
    if state is State.NEW:
        return way_on(view)
    if state is State.SILENT:
        return (
            "The run goes on but writes nothing. A very long step may do this; "
            "if it lasts, press s to stop it."
        )
    what, fix = next(reversed(view.warnings.items()), ("", ""))
    return f"! {what} {fix}" if what else ""


def way_on(view: RunView) -> str:
    """From where a resume goes on."""
    point = view.checkpoints[-1].step if view.checkpoints else 0
    where = f"the checkpoint of step {point:,}" if point else "the beginning: there is no checkpoint yet"
    return f"Press r to go on from {where}."


def last_lines(folder: RunFolder) -> str:
    """The end of what libraries printed, and where all of it is."""
    lines = folder.log_tail(LAST_LINES).splitlines()
    return "\n".join([*(f"  {visible(line)}" for line in lines), f"  All of it: {tilde(folder.log_path)}"])


def what_stop_keeps(view: RunView) -> str:
    """What is saved by a stop, for the question before it."""
    if not view.step:
        return "No step is done yet, so there is nothing to save: going on later starts from the beginning."
    return (
        f"The run finishes its step, writes a checkpoint (step {view.step:,} so far) and ends. "
        "You can go on from there later with r. To leave and let it train on, press d instead."
    )
