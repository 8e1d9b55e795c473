"""Step 5 in plain lines: the whole run in sentences; Enter starts it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.machine.logout import logout_remark
from ollama_tune.core.paths import state_dir
from ollama_tune.core.text import human_bytes, visible
from ollama_tune.tui import review_words
from ollama_tune.tui.plain.settings import memory_line
from ollama_tune.tui.plain.talk import Back
from ollama_tune.tui.run_file import free_place, started_with
from ollama_tune.tui.tasks import require_there
from ollama_tune.tui.text import tilde

if TYPE_CHECKING:
    from ollama_tune.core.plan.settings import Settings
    from ollama_tune.core.plan.values import Plan
    from ollama_tune.core.runs.folder import RunFolder
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "review")
START = "start"


def ask_review(wizard: Wizard) -> None:
    """Say what will be done and what it costs; start it when that is agreed to."""
    while True:
        plan = wizard.rooms.confirmed()
        started = started_with(wizard.rooms.answers.run, plan.settings)
        _tell(wizard, plan, started)
        if _answered(wizard, plan, started):
            return


def _answered(wizard: Wizard, plan: Plan, started: RunFolder | None) -> bool:
    """One answer: True when a run is going or shown, False when the page has to be read again."""
    talk = wizard.talk
    while True:
        talk.hint(_ways(plan, started))
        answer = talk.ask("Start the run", _default(plan, started), TOPIC).lower()
        if answer == "w":
            _write(wizard, plan.settings)
        elif answer.isdecimal() and 1 <= int(answer) <= len(plan.offers):
            _take(wizard, plan, int(answer))
            return False
        elif not answer and started is not None:
            wizard.folder = started
            return True
        elif (answer in ("", "y", "yes") and plan.memory.fits) or (answer == "n" and started is not None):
            return _start(wizard, plan)
        elif answer in ("y", "yes", START) and not plan.memory.fits:
            return _doubted(wizard, plan)
        else:
            talk.say("✗ That is not among the answers.")


def _ways(plan: Plan, started: RunFolder | None) -> str:
    if started is not None:
        words = "Enter shows the run that was started with these answers, n starts another one"
    elif plan.memory.fits:
        words = "Enter starts the run"
    else:
        offers = ", or the number of a plan that would fit" if plan.offers else ""
        words = f"This plan does not fit. Type b to change it, start to start it all the same{offers}"
    return f"{words}; w writes run.yaml into this folder."


def _default(plan: Plan, started: RunFolder | None) -> str:
    if started is not None:
        return "show it"
    return "yes" if plan.memory.fits else ""


def _doubted(wizard: Wizard, plan: Plan) -> bool:
    """A plan that does not fit needs a typed word."""
    needed, free = human_bytes(plan.memory.needed), human_bytes(plan.memory.free)
    wizard.talk.say(
        f"! It needs about {needed} and {free} are free. The run will most likely end with an out-of-memory "
        "error after some minutes; nothing else on this machine is harmed."
    )
    try:
        typed = wizard.talk.ask(f"Type {START} once more to start it", "do not start", TOPIC).lower()
    except Back:
        return False
    return typed == START and _start(wizard, plan)


def _start(wizard: Wizard, plan: Plan) -> bool:
    """Make the run folder and start its worker; False where that failed, after saying why."""
    from ollama_tune.core.plan.stopping import require_measurable
    from ollama_tune.core.runs.folder import create_run
    from ollama_tune.core.runs.launch import start

    settings, talk = plan.settings, wizard.talk
    lack = wizard.rooms.shortage(plan) if plan.memory.fits else ""
    if lack:
        talk.say(f"✗ {visible(lack)} The plan is made anew for what is free now.")
        return False
    talk.say("Starting the run ...")
    try:
        kind = wizard.rooms.counted().lengths.kind
        require_measurable(settings.training.early_stopping_metric, kind)
        require_there(settings)
        folder = create_run(settings, settings.export.name or Path(settings.model.source).name)
        start(folder, "train", wizard.take_warm())
    except TuneError as error:
        talk.error(error)
        return False
    wizard.folder = folder
    wizard.rooms.set(run=folder.name)
    talk.say(f"The run is called {visible(folder.name)}.")
    return True


def _take(wizard: Wizard, plan: Plan, number: int) -> None:
    """Set an offer's values as if by hand."""
    rooms, changes = wizard.rooms, dict(plan.offers[number - 1].changes)
    model = changes.pop("model.source", None)
    changed = dict(rooms.answers.changed)
    rooms.set(changed=changed | {path: value for path, value in changes.items() if path[:6] != "model."})
    if model is not None:
        rooms.set(model=str(model), revision=None, template=None)
    wizard.keep()


def _write(wizard: Wizard, settings: Settings) -> None:
    """Write run.yaml into the current folder, beside one that is there already."""
    path = free_place()
    try:
        settings.save(path)
    except OSError as error:
        wizard.talk.say(f"✗ {path} cannot be written: {error.strerror}.")
    else:
        wizard.talk.say(f"✓ Written: {path}")


# What is said


def _tell(wizard: Wizard, plan: Plan, started: RunFolder | None) -> None:
    talk, rooms = wizard.talk, wizard.rooms
    machine = rooms.machine()
    talk.say(
        *what_lines(wizard, plan), memory_line(plan.memory), *_sentences(review_words.cost(plan, machine))
    )
    talk.say(*(f"! {words}" for words in review_words.doubts(plan, logout_remark())))
    talk.say(*_sentences([*review_words.place(plan, machine), *review_words.more(plan)]))
    command = _command(plan.settings)
    if command:
        talk.say("The same without questions:", f"  {command}")
    if plan.offers:
        talk.say("Plans that would fit:")
    for number, offer in enumerate(plan.offers, 1):
        talk.say(f"{number}. {visible(offer.text)}, {human_bytes(offer.memory.needed)}.")
    if started is not None:
        talk.say(f"Started already as {visible(started.name)}.")


def what_lines(wizard: Wizard, plan: Plan) -> list[str]:
    """Model, data, training and result."""
    return _sentences(review_words.what(plan, wizard.rooms.spec(), wizard.rooms.counted().lengths))


def _sentences(said: Iterable[review_words.Said]) -> list[str]:
    """Each label with its text; a line that goes on with the one before has no label."""
    return [f"{label}: {text}." if label else f"{text[:1].upper()}{text[1:]}." for label, text in said]


def _command(settings: Settings) -> str:
    """The command that does the same; empty where its run.yaml could not be written."""
    path = state_dir() / "run.yaml"
    try:
        settings.save(path)
    except OSError:
        return ""
    safe = tilde(path).removeprefix("~/")
    return f"ollama-tune run {tilde(path) if shlex.quote(safe) == safe else shlex.quote(str(path))}"
