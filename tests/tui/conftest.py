"""A fixed box, a tiny real model and a few rows, so that a wizard shows the same on every machine."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.worker import WorkerCancelled

from ollama_tune.core.machine import processes
from ollama_tune.core.machine.values import (
    Disk,
    Gpu,
    GpuProcess,
    GpuReport,
    Host,
    Machine,
    OllamaModel,
    OllamaStatus,
)
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.tui.app import Start, TuneApp
from ollama_tune.tui.look import Look
from ollama_tune.tui.state import WizardState
from tests.tiny import build_model
from tests.tui.run_logs import Log, make_run
from tests.tui.small_ollama import answering

GIB = 1 << 30
NO_GPU = "There is no NVIDIA driver here, so no GPU can be used; training works on the CPU."


def cpu_machine(free: int = 24 * GIB) -> Machine:
    """A box without a GPU and without Ollama."""
    url = "http://127.0.0.1:11434"
    return Machine(
        gpu=GpuReport((), None, NO_GPU),
        host=Host("Example CPU 2.6 GHz", 4, 32 * GIB, free, "Linux"),
        disk=Disk("/data", 200 * GIB, 500 * GIB),
        ollama=OllamaStatus(url, None, f"No Ollama answers at {url}.", True),
    )


def gpu_machine() -> Machine:
    """A box with one GPU, a process that holds memory on it, and Ollama with a model loaded."""
    holder = GpuProcess(4711, "/usr/bin/ollama", 3 * GIB)
    gpu = Gpu(0, "GPU-0", "Example RTX 24 GB", 24 * GIB, 20 * GIB, (8, 9), (holder,), display=True)
    loaded = (OllamaModel("llama3:8b", 3 * GIB, 3 * GIB),)
    return Machine(
        gpu=GpuReport((gpu,), "560.35", ""),
        host=Host("Example CPU 2.6 GHz", 16, 64 * GIB, 48 * GIB, "Linux"),
        disk=Disk("/data", 200 * GIB, 500 * GIB),
        ollama=OllamaStatus("http://127.0.0.1:11434", "0.12.3", "", True, loaded),
    )


def write_rows(path: Path, count: int = 40) -> Path:
    """A JSON Lines file of short conversations."""
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"What is the colour of bird {number}?"},
                    {"role": "assistant", "content": f"Bird {number} is blue."},
                ]
            }
        )
        for number in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_base(folder: Path, end: str = "<|endoftext|>") -> None:
    """Turn a model into a base model: nothing says how people talk to it."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (folder / "generation_config.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class Corner:
    """A home folder with a model and rows in it, and wizards that live there."""

    home: Path
    model: Path
    rows: Path

    def answers(self, step: int = 1, **values: object) -> WizardState:
        """The answers of someone who chose the model and the rows of this corner."""
        return WizardState(**{"step": step, "model": str(self.model), "data": str(self.rows)} | values)

    def app(
        self,
        step: int = 1,
        machine: Callable[[], Machine] = cpu_machine,
        *,
        simulate: bool = False,
        look: Look | None = None,
        **values: object,
    ) -> TuneApp:
        """A wizard at a step, on a fixed box, without a warm worker, and quick: without simulation."""
        start = Start(self.answers(step, **values))
        return TuneApp(start, probe=machine, look=look, warm=False, simulate=simulate)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few hundred kB."""
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def corner(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Corner:
    """Everything below one folder, which is also HOME and the current folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(processes, "ram_holders", lambda: ["editor (process 99) holds 1.5 GiB of RAM."])
    model = tmp_path / "tiny"
    shutil.copytree(tiny_model, model)
    return Corner(tmp_path, model, write_rows(tmp_path / "rows.jsonl"))


@pytest.fixture
def trained() -> tuple[RunFolder, Log]:
    """A run whose training is over, and the pen that its log is written with."""
    folder = make_run()
    return folder, Log(folder).trained()


@pytest.fixture
def version() -> str:
    """Of the Ollama that answers; a test may set another one by `parametrize`."""
    return "0.34.4"


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch, version: str) -> Iterator[None]:
    """An Ollama answers, as far as it is asked before an export."""
    with answering(version) as host:
        monkeypatch.setenv("OLLAMA_HOST", host)
        yield


async def settled(pilot: Pilot[int]) -> TuneApp:
    """Wait until all slow work is done and shown; returns the application."""
    app = pilot.app
    assert isinstance(app, TuneApp)
    for _ in range(200):
        with contextlib.suppress(WorkerCancelled):
            await app.workers.wait_for_complete()
        await pilot.pause()
        waiting = getattr(app.screen, "waiting", False)
        if not (app.facts.busy or waiting or any(worker.is_running for worker in app.workers)):
            break
    await pilot.pause()
    return app


def shown(app: TuneApp) -> str:
    """The characters on the screen now."""
    return "\n".join(
        "".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()
    )
