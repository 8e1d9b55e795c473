"""Step 6 in plain lines: the run is followed in sentences; Ctrl+C leaves it to itself, and never stops it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.text import visible
from ollama_tune.tui.follow import Follower, follow
from ollama_tune.tui.plain.talk import Quit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ollama_tune.core.runs.events import Event
    from ollama_tune.tui.coach import Advice
    from ollama_tune.tui.plain.talk import Talk
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "training")
LINE_EVERY = 10.0
"""Seconds between two lines about steps: often enough to know that it goes on, seldom enough to listen to."""
_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
_COUNT = re.compile(r"^step +")
_NAME = re.compile(r"^\w+(?=: )")


class SpokenFollower(Follower):
    """The lines of a run, without columns, and fewer about single steps; then what its curves mean.

    `before` are the events that were told already, or need not be.
    """

    def __init__(self, talk: Talk, before: Iterable[Event] = ()) -> None:
        super().__init__(lambda line: talk.say(in_sentence(line)), step_seconds=LINE_EVERY, before=before)
        self._talk = talk

    def tell(self, advice: Advice) -> None:
        """As the parent, without the sign."""
        self._talk.say(f"What the losses mean: {advice.sentence} {advice.advice}".rstrip())


def in_sentence(line: str) -> str:
    """A line of columns as a sentence: `step 12 of 100, loss 1.2345, 900 tokens/s`."""
    named = _NAME.sub(lambda name: name[0].replace("_", " "), line.strip())
    return _GAP.sub(", ", _COUNT.sub("step ", named))


def ask_training(wizard: Wizard) -> None:
    """Follow the run to the end of its training; ask only where it ended otherwise, or was ended before."""
    talk, folder = wizard.talk, wizard.run_folder()
    followed = False
    while True:
        if folder.alive() and not (trained(folder) and folder.status().stage == "export"):
            _watch(wizard, folder, again=followed)
            followed = True
        elif trained(folder):
            if followed:
                talk.say(*rate_lines(folder))
                return
            talk.say(*_ended(folder), *rate_lines(folder))
            talk.ask("Training is done", "go on", TOPIC)
            return
        else:
            _ask_resume(wizard, folder)
            followed = True


def trained(folder: RunFolder) -> bool:
    """Whether the training came to its end."""
    return any(event.kind == "done" and event["stage"] == "train" for event in folder.events())


def _watch(wizard: Wizard, folder: RunFolder, *, again: bool) -> None:
    """Say what happens until the worker ends; at Ctrl+C ask what is wished."""
    talk, seen = wizard.talk, len(folder.events())
    status = folder.status()
    if again or status.step:
        talk.say(f"Step {status.step:,} of {status.total_steps:,} so far.")
    else:
        seen = 0
    if status.state is State.PAUSED:
        talk.say("The run is paused: it waits with its memory held. Ctrl+C, then r, lets it go on.")
    try:
        talk.say("Ctrl+C leaves the run to itself or stops it; you are asked which.")
        follow(folder, SpokenFollower(talk, folder.events()[:seen]), skip=seen)
    except KeyboardInterrupt:
        talk.say("", f"{visible(folder.name)} goes on without this window.")
        _interrupted(wizard, folder)


def _interrupted(wizard: Wizard, folder: RunFolder) -> None:
    """What is to become of a run that is not followed any more; by itself it goes on."""
    from ollama_tune.core.runs import control

    talk = wizard.talk
    while True:
        paused = folder.status().state is State.PAUSED
        other = "r lets it go on" if paused else "p makes it wait with its memory held"
        talk.hint(f"Enter leaves it and ends this program, w watches it again, {other}, s stops it.")
        answer = talk.ask("What now", "leave it", TOPIC).lower()
        if not answer:
            raise Quit
        try:
            if answer == "p":
                control.request_pause(folder)
                talk.say("It waits after its step.")
            elif answer == "r":
                control.continue_run(folder)
                return
            elif answer == "s":
                _stop(talk, folder)
                return
            elif answer == "w":
                return
            else:
                talk.say("✗ Press Enter, or type a letter named above.")
        except TuneError as error:
            talk.error(error)
            return


def _stop(talk: Talk, folder: RunFolder) -> None:
    """Ask once; the default is no."""
    from ollama_tune.core.runs.control import request_stop

    talk.say("It then finishes its step, writes a checkpoint and ends. You can go on from there later.")
    if talk.agrees(f"Stop {visible(folder.name)}", False, TOPIC):
        request_stop(folder)
        talk.say("Stopping after this step ...")


def _ask_resume(wizard: Wizard, folder: RunFolder) -> None:
    """A run that ended before its training was done: say why, and go on where that is wished."""
    from ollama_tune.core.runs.control import resume

    status, talk = folder.status(), wizard.talk
    done = f"at step {status.step:,} of {status.total_steps:,}" if status.step else "before its first step"
    talk.say(f"! The run {visible(folder.name)} ended {done}: {status.state.value}.")
    if status.state in (State.FAILED, State.CRASHED):
        talk.say(visible_lines(status.message))
    talk.hint("Enter goes on from the last checkpoint, b goes back to the review, q leaves it as it is.")
    if talk.ask("Go on with the run", "yes", TOPIC).lower() not in ("", "y", "yes"):
        talk.say("✗ Press Enter, or type b or q.")
        return
    try:
        resume(folder, wizard.take_warm())
    except TuneError as error:
        talk.error(error)
    time.sleep(0.1)


def visible_lines(text: str) -> str:
    """Several lines of somebody else's, harmless."""
    return visible(text, keep_newlines=True)


def _ended(folder: RunFolder) -> list[str]:
    """How a training ended that is over for longer."""
    status = folder.status()
    loss = status.validation_loss
    held_out = f"; loss on the held-out rows {loss:.4f}" if loss is not None else ""
    return [f"✓ The run {visible(folder.name)} is trained: {status.step:,} steps{held_out}."]


def rate_lines(folder: RunFolder) -> list[str]:
    """How many of the questions that were held out are answered right before and after; none if unknown."""
    from ollama_tune.core.evaluate.compare import compare

    figures = compare(folder.events())
    before, after = figures.base.exact_match, figures.tuned.exact_match
    if figures.preferred is not None:
        told = f"Of the held-out pairs {figures.preferred:.1%} have a better answer that gained more"
        return [f"{told} than the worse one."]
    if before is None or after is None:
        return []
    words = f"Of {figures.rows:,} held-out questions"
    return [f"{words}, {before:.1%} were answered exactly right before, {after:.1%} after."]
