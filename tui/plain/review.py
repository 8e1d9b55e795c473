"""Step 5 in plain lines: the whole run in sentences; Enter starts it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_tune.core.errors import TuneError
from ollama_tune.core.paths import runs_dir, state_dir
from ollama_tune.core.text import human_bytes, human_count, human_estimate, one_line, visible
from ollama_tune.tui.plain.settings import memory_line, time_words
from ollama_tune.tui.plain.talk import Back
from ollama_tune.tui.run_file import free_place, started_with
from ollama_tune.tui.state import BUNDLED
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
    from ollama_tune.core.runs.folder import create_run
    from ollama_tune.core.runs.launch import start

    settings, talk = plan.settings, wizard.talk
    lack = wizard.rooms.shortage(plan) if plan.memory.fits else ""
    if lack:
        talk.say(f"✗ {visible(lack)} The plan is made anew for what is free now.")
        return False
    talk.say("Starting the run ...")
    try:
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
    talk = wizard.talk
    talk.say(*what_lines(wizard, plan), memory_line(plan.memory), *_cost_lines(wizard, plan))
    if plan.memory.remark:
        talk.say(f"The memory is {visible(plan.memory.method)}: {visible(plan.memory.remark)}.")
    talk.say(*(f"! {visible(warning)}" for warning in plan.warnings))
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
    settings, spec, lengths = plan.settings, wizard.rooms.spec(), wizard.rooms.counted().lengths
    training, data = settings.training, settings.data
    source = BUNDLED if data.path == BUNDLED else tilde(data.path)
    held = "4 bit" if training.quantization == "nf4" else "full precision"
    name, kind = settings.export.name, settings.export.type.upper()
    result = f"{visible(name)} in Ollama, as {kind}" if name else "an adapter; nothing is exported"
    a_step = training.batch_size * training.gradient_accumulation_steps
    rate, longest = f"{training.learning_rate:g}", f"{training.sequence_length:,}"
    return [
        f"Model: {one_line(spec.name, 80)}, {human_count(spec.parameters)} parameters, in {held}.",
        f"Data: {source}, {lengths.rows:,} rows, {data.validation_split:.0%} of them held out to measure on.",
        *_reading_lines(wizard),
        f"Training: {training.epochs:g} times over all rows, learning rate {rate}, {a_step} rows a step, "
        f"rows of up to {longest} tokens.",
        f"Result: {result}.",
    ]


def _reading_lines(wizard: Wizard) -> list[str]:
    """What the person said about how the data is read."""
    said = []
    for path, value in wizard.rooms.answers.reading_values().items():
        parts = [f"{name} = {text}" for name, text in value.items()] if isinstance(value, dict) else value
        words = ", ".join(map(str, parts)) if isinstance(parts, (list, tuple)) else str(parts)
        said.append(f"{path.removeprefix('data.')} {one_line(words, 200)}")
    return [f"Read as you said: {'; '.join(said)}."] if said else []


def _cost_lines(wizard: Wizard, plan: Plan) -> list[str]:
    """Time and how sure it is, energy, disk and place."""
    work = plan.work
    low, high = human_estimate(work.seconds / work.spread), human_estimate(work.seconds * work.spread)
    energy = "" if work.energy_kwh is None else f"; at most {work.energy_kwh:.2g} kWh on the GPU"
    written = (
        (work.checkpoint_bytes, "for checkpoints"),
        (work.export_bytes, "for the model file"),
        (work.download_bytes, "to download"),
        (work.ollama_bytes, "in Ollama"),
    )
    disk = ", ".join(f"{human_bytes(size)} {what}" for size, what in written if size)
    free = human_bytes(wizard.rooms.machine().disk.free)
    return [
        f"Time: {time_words(work)}, between {low} and {high}{energy}.",
        f"Disk: {disk}; {free} free.",
        f"Place: a new folder in {tilde(runs_dir())}.",
    ]


def _command(settings: Settings) -> str:
    """The command that does the same; empty where its run.yaml could not be written."""
    path = state_dir() / "run.yaml"
    try:
        settings.save(path)
    except OSError:
        return ""
    safe = tilde(path).removeprefix("~/")
    return f"ollama-tune run {tilde(path) if shlex.quote(safe) == safe else shlex.quote(str(path))}"
