"""Step 1 in plain lines: what this machine is, and what is free on it now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ollama_tune.core.plan.gpus import together_words
from ollama_tune.core.text import human_bytes, one_line, visible
from ollama_tune.tui import tasks
from ollama_tune.tui.text import tilde

if TYPE_CHECKING:
    from ollama_tune.core.machine.values import Gpu, Machine, OllamaStatus
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "machine")
HOLDERS = 6


def ask_machine(wizard: Wizard) -> None:
    """Say what there is; look again, unload Ollama's models or list the runs where that is wished."""
    talk, rooms = wizard.talk, wizard.rooms
    talk.say(*describe(rooms.machine(), rooms.in_use()))
    while True:
        ollama = rooms.machine().ollama
        can_unload = ollama.reachable and ollama.local and bool(ollama.loaded)
        unload = ", u lets Ollama unload its models" if can_unload else ""
        talk.hint(f"Enter goes on, r looks again, l lists the runs made so far{unload}.")
        answer = talk.ask("Machine", "go on", TOPIC).lower()
        if not answer:
            return
        if answer == "u" and can_unload:
            talk.say("Asking Ollama to unload its models ...", tasks.unloaded(ollama.url, lambda: False))
        if answer in ("r", "u"):
            rooms.machine(again=True)
            talk.say(*describe(rooms.machine(), rooms.in_use()))
        elif answer == "l":
            talk.say(*run_lines())
        else:
            talk.say("✗ Press Enter, or type r or l.")


def describe(machine: Machine, in_use: Sequence[str]) -> list[str]:
    """Everything about the box in sentences; `in_use` are those about who holds memory."""
    host, disk = machine.host, machine.disk
    held = [f"In use: {visible(text)}" for text in in_use[:HOLDERS]]
    more = [f"In use: and {len(in_use) - HOLDERS} more."] if len(in_use) > HOLDERS else []
    inside = f", in {'a container' if host.inside == 'container' else host.inside}" if host.inside else ""
    return [
        *_gpu_lines(machine),
        f"Processor: {one_line(host.cpu, 60)}, {host.cores} core{'s' * (host.cores != 1)}{inside}.",
        f"Memory: {_free(host.ram_available, host.ram_total)}.",
        f"Disk: {_free(disk.free, disk.total)}, at {tilde(disk.path)}.",
        *held,
        *more,
        *_ollama_lines(machine.ollama),
    ]


def _free(free: int, total: int) -> str:
    return f"{human_bytes(free)} free of {human_bytes(total)}"


def _gpu_lines(machine: Machine) -> list[str]:
    report = machine.gpu
    lines = [_one_gpu(gpu, report.driver) for gpu in report.gpus]
    reasons = [report.reason] if report.reason else []
    lines += [f"! {visible(text)}" for text in (*reasons, *(gpu.why for gpu in report.others))]
    lines += [visible(text) for text in report.notes]
    if together := together_words(machine):
        lines.append(together)
    if machine.device == "cpu":
        lines.append("Training on the CPU is fine for small models.")
    return lines


def _one_gpu(gpu: Gpu, driver: str | None) -> str:
    about = {
        f"driver {visible(driver)}" if driver else "": True,
        "a MIG instance": gpu.mig,
        "a part of a virtual GPU": gpu.virtual,
        "shares the computer's memory": gpu.unified,
        "drives a display": gpu.display,
    }
    words = [text for text, true in about.items() if text and true]
    return ", ".join([f"Graphics card: {visible(gpu.name)}", _free(gpu.free, gpu.total), *words]) + "."


def _ollama_lines(ollama: OllamaStatus) -> list[str]:
    if not ollama.reachable:
        later = "The export then leaves the model file and the commands for later."
        return [f"! {visible(ollama.reason)} {later}"]
    where = "" if ollama.local else ", on another machine"
    lines = [f"✓ Ollama {visible(str(ollama.version))} answers at {visible(ollama.url)}{where}."]
    if ollama.loaded:
        names = ", ".join(one_line(model.name, 40) for model in ollama.loaded)
        lines.append(f"Ollama has loaded {names}.")
    return lines


def run_lines() -> list[str]:
    """The runs made so far, the newest first, a sentence each."""
    from ollama_tune.tui.printing import run_rows

    rows = run_rows()
    lines = [
        f"{visible(row['name'])}: {row['state']}, step {row['step']:,} of {row['total_steps']:,}, "
        f"model {one_line(row['model'], 60)}."
        for row in rows
    ]
    if not lines:
        return ["There is no run yet."]
    return [
        *lines,
        "ollama-tune attach and a name shows a run, ollama-tune resume and a name goes on with it.",
    ]
