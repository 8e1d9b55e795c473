"""Step 1: what this machine is, and what is free on it now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from ollama_tune.core.plan.gpus import together_words
from ollama_tune.core.text import human_bytes, one_line, visible
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import Facts
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.bar import level
from ollama_tune.tui.widgets.page import BLANK, Line, Page, heading, row, sign

if TYPE_CHECKING:
    from ollama_tune.core.machine.values import Gpu, Host, Machine, OllamaStatus

BAR = 16
LABEL = 9
WELCOME = "Enter goes on in every step; every value is suggested."
HOLDERS = 6


class MachineScreen(StepScreen):
    """GPUs, CPU, memory, disk and Ollama, and in words what that means for a training run."""

    STEP = 1
    CSS_PATH = "machine.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "probe", "Look again"),
        Binding("u", "unload", "Unload Ollama's models"),
        Binding("l", "runs", "Runs"),
    ]

    def body(self) -> ComposeResult:
        """One text, scrolled where the window is low."""
        with VerticalScroll(id="machine"):
            yield Page(id="found")

    def facts_changed(self, facts: Facts) -> None:
        """Show the box, or that it is being looked at."""
        page = self.query_one("#found", Page)
        looking = facts.busy.get("machine", "")
        if facts.machine is not None:
            page.show(describe(facts.machine, facts.in_use))
            self.say(facts.busy.get("unload") or looking or facts.unloaded)
        else:
            page.show([Line(Content(looking or "Looking at this machine …"))])

    def action_probe(self) -> None:
        """Look at the box again."""
        self.tune.probe_again()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only a server on this box that holds models can give memory back here."""
        if action == "unload":
            return self.tune.facts.machine is not None and unloadable(self.tune.facts.machine.ollama)
        return super().check_action(action, parameters)

    def action_unload(self) -> None:
        """Let Ollama give back the memory of its models."""
        self.tune.unload_ollama()

    def action_runs(self) -> None:
        """Show the runs made so far."""
        self.app.push_screen(self.tune.runs_screen())


def unloadable(ollama: OllamaStatus) -> bool:
    """Whether there is a server on this box that holds models."""
    return ollama.reachable and ollama.local and bool(ollama.loaded)


def describe(machine: Machine, in_use: Sequence[str]) -> list[Line]:
    """Everything about the box; `in_use` are sentences about who holds memory."""
    disk = machine.disk
    return [
        Line(Content.styled(WELCOME, "dim")),
        BLANK,
        heading("Graphics card"),
        *_gpu_lines(machine),
        BLANK,
        heading("This computer"),
        *_host_lines(machine.host),
        _room("Disk", disk.free, disk.total),
        row("", Content.styled(tilde(disk.path), "dim"), LABEL),
        BLANK,
        *_holder_lines(in_use),
        heading("Ollama"),
        *_ollama_lines(machine.ollama),
    ]


def _room(label: str, free: int, total: int, after: str = "") -> Line:
    """How much is free: a bar of what is taken, then words."""
    words = f"  {human_bytes(free)} free of {human_bytes(total)}"
    bar = level(1 - free / total if total else 1.0, BAR)
    return row(label, Content.assemble(bar, words, (after, "dim")), LABEL)


def _gpu_lines(machine: Machine) -> list[Line]:
    """The GPUs of NVIDIA, what is to be known of them, and the others with why they are not used."""
    report = machine.gpu
    lines = [line for gpu in report.gpus for line in _one_gpu(gpu, report.driver)]
    reasons = [report.reason] if report.reason else []
    lines += [sign("!", visible(text)) for text in (*reasons, *(gpu.why for gpu in report.others))]
    lines += [sign(" ", visible(text)) for text in report.notes]
    if together := together_words(machine):
        lines.append(sign(" ", together))
    if machine.device == "cpu":
        lines.append(sign(" ", "Training on the CPU is fine for small models."))
    return lines


def _one_gpu(gpu: Gpu, driver: str | None) -> list[Line]:
    kinds = {
        f"driver {visible(driver)}" if driver else "": True,
        "a MIG instance": gpu.mig,
        "a part of a virtual GPU": gpu.virtual,
        "drives a display": gpu.display,
    }
    about = ", ".join(words for words, true in kinds.items() if words and true)
    shared = ", shared with the computer" if gpu.unified else ""
    name = Content.assemble((visible(gpu.name), "bold"), (f"  {about}" if about else "", "dim"))
    return [row(f"GPU {gpu.index}", name, LABEL), _room("Memory", gpu.free, gpu.total, shared)]


def _host_lines(host: Host) -> list[Line]:
    cores = f"{host.cores} core" + ("" if host.cores == 1 else "s")
    inside = f", in {'a container' if host.inside == 'container' else host.inside}" if host.inside else ""
    return [
        row("CPU", f"{one_line(host.cpu, 48)}, {cores}{inside}", LABEL),
        _room("Memory", host.ram_available, host.ram_total),
    ]


def _holder_lines(in_use: Sequence[str]) -> list[Line]:
    """Who holds memory; the section is left out where nobody does."""
    if not in_use:
        return []
    more = [sign(" ", f"and {len(in_use) - HOLDERS} more")] if len(in_use) > HOLDERS else []
    named = [sign("·", visible(text), "$text-accent") for text in in_use[:HOLDERS]]
    return [heading("In use"), *named, *more, BLANK]


def _ollama_lines(ollama: OllamaStatus) -> list[Line]:
    if not ollama.reachable:
        return [
            sign("!", visible(ollama.reason)),
            sign(" ", "The export then leaves the model file and the commands for later."),
        ]
    where = "" if ollama.local else ", on another machine"
    version = f"Ollama {visible(str(ollama.version))} answers at {visible(ollama.url)}{where}."
    lines = [sign("✓", version, "$text-success")]
    if unloadable(ollama):
        names = ", ".join(one_line(model.name, 30) for model in ollama.loaded)
        lines.append(sign(" ", Content.assemble(("u", "bold $text-accent"), f" lets it unload {names}.")))
    return lines
