"""Event logs as a worker writes them, and a clock that makes them the same on every day."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot

from ollama_tune.core.machine.live import BoxNow
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs import events as events_module
from ollama_tune.core.runs import folder as folder_module
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder, RunLock, create_run
from ollama_tune.tui.app import Start, TuneApp
from ollama_tune.tui.screens import export, run_screen, runs_lines, training
from ollama_tune.tui.state import WizardState

NASTY = "[/foo] [bold]x\x1b[2J\x1b]52;c;aGk=\x07 \u202eabc\u202c [red"
BEGIN = 1_795_260_600.0  # 2026-11-21 11:30:00 UTC

CHECKS = [
    {"name": name, "verdict": verdict, "figure": figure, "text": text}
    for name, verdict, figure, text in (
        ("tokenizer", "pass", "74 of 74", "llama.cpp reads prompts as the training did, token by token."),
        ("metadata", "pass", "28 of 28", "Type, name, tokenizer, chat template and numbers are the model's."),
        ("tensors", "pass", "20 of 20, error 0.53%", "Rows of every tensor equal base + adapter."),
        ("adapter", "pass", "0.999 to 1.001", "All 14 adapted tensors hold the adapter once and whole."),
        ("tokens", "pass", "74 of 74", "llama.cpp, transformers and the training see the same tokens."),
        ("chat", "pass", "11 of 11", "Conversations become the text and tokens of the training."),
        ("probabilities", "pass", "KL 0.0009, first token 99%", "Next-token probabilities are the model's."),
        (
            "answers",
            "warn",
            "7 of 8 equal",
            "Greedy answers of llama.cpp against those of the tuned model, token by token. With few bits a "
            "close choice tips over; compare some answers by hand.",
        ),
        ("ending", "pass", "8 of 8", "Answers end by themselves with an end-of-generation token."),
        ("ollama", "skipped", "no answer", "No Ollama answered."),
    )
]


class Clock:
    """A clock that only moves when told; it stands in for `time` where runs are written and shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = BEGIN
        shown = {name: getattr(time, name) for name in ("sleep", "monotonic")}
        double = SimpleNamespace(time=lambda: self.now, **shown)
        for module in (events_module, folder_module, run_screen, training, export, runs_lines):
            monkeypatch.setattr(module, "time", double)
        monkeypatch.setattr(training, "watch_box", lambda *_: SteadyBox())

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class SteadyBox:
    """What a box does, the same at every look."""

    latest = BoxNow(43.0, 1.9, 2, 3000 << 20, 4096 << 20, 60 << 30)

    def close(self) -> None:
        """Nothing was opened."""


def steady_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    """The same time, home and colours on every machine: what a fixture of pictures yields from."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield Clock(monkeypatch)
    monkeypatch.undo()
    time.tzset()


def make_run(label: str = "demo", **export: Any) -> RunFolder:
    settings = Settings()
    return create_run(
        settings.model_copy(update={"export": settings.export.model_copy(update=export)}), label
    )


@contextmanager
def alive(folder: RunFolder) -> Iterator[None]:
    """Hold the run as a worker does."""
    lock = RunLock(folder)
    try:
        yield
    finally:
        lock.release()


class Log:
    """Writes a run's events; the clock, where there is one, moves with them."""

    def __init__(self, folder: RunFolder, clock: Clock | None = None) -> None:
        self.writer = EventWriter(folder.events_path)
        self.clock = clock

    def __call__(self, kind: str, after: float = 0.0, /, **data: Any) -> None:
        """Append an event `after` seconds later."""
        if self.clock is not None:
            self.clock.pass_by(after)
        self.writer.write(kind, **data)

    def start(self, total: int = 200, stage: str = "train", resumed_from: int | None = None) -> Log:
        self(
            "start",
            0.0 if stage == "train" else 1.0,
            stage=stage,
            pid=os.getpid(),
            device="cpu",
            versions={},
            model="bundled",
            total_steps=None,
            resumed_from=resumed_from,
            train_rows=None,
            validation_rows=None,
            left_out=None,
            path="fast",
            path_reason="This project knows the family.",
        )
        if stage == "train":
            self("data", total_steps=total, train_rows=432, validation_rows=48, left_out=2)
        return self

    def phase(self, text: str, name: str = "load", seconds: float = 1.0) -> Log:
        self("phase", seconds, name=name, text=text)
        return self

    def step(self, step: int, total: int, loss: float | None, seconds: float = 0.5) -> Log:
        self(
            "step",
            seconds,
            step=step,
            total_steps=total,
            epoch=step / 54,
            loss=loss,
            learning_rate=2e-4,
            gradient_norm=0.8,
            useful_tokens=410,
            supervised_tokens=120,
            seconds=0.5,
            cpu_seconds=0.9,
        )
        return self

    def evaluation(
        self,
        step: int,
        loss: float | None,
        exact: float | None = None,
        model: str = "tuned",
        waited: int | None = None,
    ) -> Log:
        told = {} if waited is None else {"without_better": waited, "patience": 3}
        self("evaluation", 0.4, step=step, loss=loss, exact_match=exact, rows=48, model=model, **told)
        return self

    def memory(self, used: int = 612, peak: int = 790) -> Log:
        mib = 1 << 20
        parts = {
            "weights": 420 * mib,
            "adapter": 40 * mib,
            "optimizer": 80 * mib,
            "activations": 250 * mib,
        }
        self(
            "memory",
            device="cpu",
            used=used * mib,
            peak=peak * mib,
            free=3000 * mib,
            total=4096 * mib,
            parts=parts,
        )
        return self

    def checkpoint(self, step: int, *, best: bool = True, reason: str = "evaluation") -> Log:
        self("checkpoint", step=step, folder=f"checkpoints/{step}", bytes=3 << 20, best=best, reason=reason)
        return self

    def samples(self, tuned: bool = True, step: int | None = None) -> Log:
        pairs = (
            ("Two teas and a bun.", "T2 B1"),
            ("One soup, no salt.", "S1 -salt"),
            ("A coffee to go.", "C1 !"),
        )
        for prompt, reference in pairs:
            self(
                "sample",
                prompt=prompt,
                reference=reference,
                base="I am happy to help you with that.",
                tuned=reference[:step] if tuned else None,
                **({"step": step, "cut": False} if step else {}),
            )
        return self

    def training(self, until: int, total: int = 200) -> Log:
        """From the start to step `until`, with evaluations and checkpoints as a worker has them."""
        self.start(total).phase("Loading the model.").phase("Measuring the base model.", "evaluate")
        self.evaluation(0, 3.1, 0.02, "base").phase("Training.", "train").memory()
        for step in range(1, until + 1):
            wave = 0.12 * math.sin(step * 1.7) + 0.05 * math.sin(step * 0.37)
            self.step(step, total, 0.25 + 2.8 * math.exp(-step / 60) + wave)
            if step % 25 == 0:
                self.evaluation(step, 0.3 + 2.7 * math.exp(-step / 60), waited=0).checkpoint(step)
        return self

    def trained(self, total: int = 200) -> Log:
        self.training(total, total).evaluation(total, 0.41, 0.958).samples()
        self(
            "done",
            stage="train",
            steps=total,
            best_step=total,
            best_loss=0.41,
            base_exact_match=0.02,
            tuned_exact_match=0.958,
        )
        return self

    def exported(self, name: str | None = "kitchen", verdict: str = "warn") -> Log:
        self.start(stage="export").phase("Writing the GGUF file.", "gguf")
        self("progress", name="GGUF", done=5 << 20, total=5 << 20, unit="B")
        self(
            "verification",
            verdict=verdict,
            checks=CHECKS,
            file="kitchen-q8_0.gguf",
            sha256="0123456789abcdef" * 4,
            bytes=5 << 20,
            type="q8_0",
            ollama_name=name,
        )
        commands = (
            [f"ollama run {name}"]
            if name
            else ["ollama create kitchen -f export/Modelfile", "ollama run kitchen"]
        )
        self(
            "done",
            stage="export",
            files={"gguf": "export/kitchen-q8_0.gguf"},
            ollama_name=name,
            commands=commands,
        )
        return self

    def refuted(self) -> Log:
        """An export whose file failed its proof."""
        what = (
            "At 19 places of 4 answers llama.cpp's next-token probabilities are not those of the tuned model."
        )
        failed = {"name": "probabilities", "verdict": "fail", "figure": "KL 0.49, first token 35%"}
        failed["text"] = (
            f"{what} Do not use the file; export with more bits, and report it if that fails too."
        )
        checks = [check if check["name"] != "probabilities" else failed for check in CHECKS[:-1]]
        self.start(stage="export").phase("Writing the GGUF file.", "gguf")
        self(
            "verification",
            verdict="fail",
            checks=checks,
            file="kitchen-q4_k_m.failed.gguf",
            sha256="0123456789abcdef" * 4,
            bytes=5 << 20,
            type="q4_k_m",
        )
        self("error", what="The exported file failed its proof (probabilities).", fix="Do not use it.")
        return self


def open_app(folder: RunFolder, step: int = 6, probe: Callable[[], Machine] | None = None) -> TuneApp:
    """The application at a step of a run, without the wizard's own reading of model and data."""
    app = TuneApp(Start(WizardState(step=step, run=folder.name)), probe=probe, warm=False)
    app.read_everything = lambda: None  # type: ignore[method-assign]
    return app


def screen_text(app: App[Any]) -> str:
    """What is on the screen, as lines."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def until(pilot: Pilot[Any], condition: Callable[[], object], seconds: float = 300.0) -> None:
    """Wait for something that slow work brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, screen_text(pilot.app)
        await pilot.pause(0.02)


async def until_text(pilot: Pilot[Any], *texts: str, seconds: float = 300.0) -> None:
    """Wait until all of the texts are on the screen."""
    await until(pilot, lambda: all(text in screen_text(pilot.app) for text in texts), seconds)


async def at_rest(pilot: Pilot[Any]) -> None:
    """Wait until the screen has stayed the same for a fifth of a second."""
    before, same = "", 0
    while same < 4:
        await pilot.pause(0.05)
        now = screen_text(pilot.app)
        before, same = now, same + 1 if now == before else 0
