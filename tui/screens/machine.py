"""Step 1: what this machine is, and what is free on it now."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from ollama_tune.core.text import human_bytes, one_line, visible
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import Facts
from ollama_tune.tui.text import tilde
from ollama_tune.tui.widgets.bar import level
from ollama_tune.tui.widgets.page import BLANK, Line, Page, heading, row, sign

if TYPE_CHECKING:
    from ollama_tune.core.machine.values import Gpu, GpuProcess, GpuReport, Host, Machine, OllamaStatus

BAR = 24
LABEL = 9
HOLDERS = 3


class MachineScreen(StepScreen):
    """GPUs, CPU, memory, disk and Ollama, and in words what that means for a training run."""

    STEP = 1
    CSS_PATH = "machine.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "probe", "Look again"),
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
            page.show(describe(facts.machine))
            self.say(looking)
        else:
            page.show([Line(Content(looking or "Looking at this machine …"))])

    def action_probe(self) -> None:
        """Look at the box again."""
        self.tune.probe_again()

    def action_runs(self) -> None:
        """Show the runs made so far."""
        self.app.push_screen(self.tune.runs_screen())


def describe(machine: Machine) -> list[Line]:
    """Everything about the box."""
    disk = machine.disk
    return [
        heading("Graphics card"),
        *_gpu_lines(machine.gpu),
        BLANK,
        heading("This computer"),
        *_host_lines(machine.host),
        _room("Disk", disk.free, disk.total),
        row("", Content.styled(tilde(disk.path), "dim"), LABEL),
        BLANK,
        heading("Ollama"),
        *_ollama_lines(machine.ollama),
    ]


def _room(label: str, free: int, total: int, after: str = "") -> Line:
    """How much is free: a bar of what is taken, then words."""
    words = f"  {human_bytes(free)} free of {human_bytes(total)}"
    bar = level(1 - free / total if total else 1.0, BAR)
    return row(label, Content.assemble(bar, words, (after, "dim")), LABEL)


def _gpu_lines(report: GpuReport) -> list[Line]:
    if not report.gpus:
        return [
            sign("!", visible(report.reason)),
            sign(" ", "Training on the CPU is fine for small models."),
        ]
    return [line for gpu in report.gpus for line in _one_gpu(gpu, report.driver)]


def _one_gpu(gpu: Gpu, driver: str | None) -> list[Line]:
    about = f"  driver {visible(driver)}" if driver else ""
    shared = ", shared with the computer" if gpu.unified else ""
    lines = [
        row(f"GPU {gpu.index}", Content.assemble((visible(gpu.name), "bold"), (about, "dim")), LABEL),
        _room("Memory", gpu.free, gpu.total, shared),
    ]
    held = ", ".join(_holder(p) for p in gpu.processes[:HOLDERS])
    more = f" and {len(gpu.processes) - HOLDERS} more" if len(gpu.processes) > HOLDERS else ""
    return lines + ([row("Held by", held + more, LABEL)] if held else [])


def _holder(process: GpuProcess) -> str:
    size = f" {human_bytes(process.memory)}" if process.memory else ""
    return f"{one_line(process.name or 'a program out of sight', 24)}{size} (process {process.pid})"


def _host_lines(host: Host) -> list[Line]:
    cores = f"{host.cores} core" + ("" if host.cores == 1 else "s")
    return [
        row("CPU", f"{one_line(host.cpu, 48)}, {cores}", LABEL),
        _room("Memory", host.ram_available, host.ram_total),
    ]


def _ollama_lines(ollama: OllamaStatus) -> list[Line]:
    if not ollama.reachable:
        return [
            sign("!", visible(ollama.reason)),
            sign(" ", "The export then leaves the model file and the commands for later."),
        ]
    version = f"Ollama {visible(str(ollama.version))} answers at {visible(ollama.url)}."
    held = ", ".join(f"{one_line(m.name, 30)} {human_bytes(m.size)}" for m in ollama.loaded)
    lines = [sign("✓", version, "$text-success")]
    return lines + ([row("Holds", held, LABEL)] if held else [])
