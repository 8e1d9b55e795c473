"""An export that is killed or stopped, as a real process: nothing half done, and the next one succeeds."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from ollama_tune.core.export import structure
from ollama_tune.core.export.values import ExportStopped
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.folder import RunFolder, State, create_run
from tests.core.export_parts import build_adapter, build_llama
from tests.core.train_parts import quiet_environment, wait_for, work
from tests.ollama_double import OllamaDouble
from tests.ollama_state import Faults

WHOLE = ["Modelfile", "birds-q6_k.gguf", "verification.json"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that takes a while to be written in a 6-bit type."""
    folder = tmp_path_factory.mktemp("parts")
    wide = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 3, "head_dim": 64}
    base = build_llama(folder / "base", **wide, num_attention_heads=8, initializer_range=0.02)
    return base, shutil.copytree(build_adapter(base, folder / "made", size=0.01), folder / "adapter")


@pytest.fixture
def folder(parts: tuple[Path, Path]) -> RunFolder:
    values: dict[str, Any] = {
        "model.source": str(parts[0]),
        "data.path": str(parts[0] / "none.jsonl"),
        "evaluation.max_new_tokens": 8,
        "export.name": "birds",
        "export.type": "q6_k",
    }
    made = create_run(Settings().with_values(values), "birds")
    shutil.copytree(parts[1], made.adapter)
    return made


def names(folder: RunFolder) -> list[str]:
    """What lies in the export folder under a final name."""
    unfinished = (".unverified.gguf", ".part")
    return sorted(path.name for path in folder.export.iterdir() if not path.name.endswith(unfinished))


def killed(folder: RunFolder, phase: str, wait: float) -> None:
    """Start an export and kill it `wait` seconds into a phase, if it has not ended by then."""
    command = [sys.executable, "-m", "ollama_tune.core.train.worker", str(folder.path), "--stage", "export"]
    seen = len(folder.events()) if folder.events_path.exists() else 0
    with subprocess.Popen(command, env=quiet_environment(), stderr=subprocess.DEVNULL) as worker:
        wait_for(lambda: any(event.get("name") == phase for event in folder.events()[seen:]))
        time.sleep(wait)
        worker.kill()


SIGNALLED = """
import os, signal, sys
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.train import worker
write = EventWriter.write
def telling(self, kind, **data):
    event = write(self, kind, **data)
    if (kind, data.get("name")) == ("phase", sys.argv[1]):
        os.kill(os.getpid(), signal.SIGTERM)
    return event
EventWriter.write = telling
sys.exit(worker.main([sys.argv[2], "--stage", "export"]))
"""
"""An export that gets a signal at the moment in which a phase begins, however busy the box is."""


def finished(folder: RunFolder) -> None:
    """The next export succeeds and leaves nothing of the one before."""
    done = work(folder, "export")
    assert done.returncode == 0, done.stderr[-2000:]
    assert folder.status().state is State.FINISHED
    assert sorted(path.name for path in folder.export.iterdir()) == WHOLE


def test_kills_at_random_moments_leave_no_file_under_a_final_name(folder: RunFolder) -> None:
    chance = random.Random()
    for phase, longest in (("writing", 0.5), ("asking_tuned", 0.3), ("verifying", 1.5)):
        killed(folder, phase, chance.random() * longest)
        whole = folder.status().state is State.FINISHED  # sooner than the kill: a moment like any other
        assert whole or folder.status().state is State.CRASHED
        assert names(folder) == (WHOLE if whole else [])
        shutil.rmtree(folder.export)
    finished(folder)


@pytest.mark.parametrize("phase", ["probing", "writing", "verifying"])
def test_a_stop_ends_the_process_and_leaves_nothing(folder: RunFolder, phase: str) -> None:
    command = [sys.executable, "-c", SIGNALLED, phase, str(folder.path)]
    subprocess.run(command, env=quiet_environment(), stderr=subprocess.DEVNULL, timeout=300)
    last = folder.events()[-1]
    assert (last.kind, last["reason"]) == ("stopped", "the signal SIGTERM")
    assert list(folder.export.iterdir()) == []


def test_what_a_stop_leaves_at_work_is_cleared_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tiny twin is built in a thread that a stop does not wait for, and that goes on writing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    over = threading.Event()

    def build(_base: Path, _adapter: Path | None, folder: Path) -> list[dict[int, float]]:
        for number in itertools.count():
            with contextlib.suppress(OSError):
                (folder / str(number)).write_text("")
            if over.is_set():
                break
        folder.mkdir(exist_ok=True)
        return []

    monkeypatch.setattr(structure, "_build", build)
    with pytest.raises(ExportStopped):
        structure.check_structure(tmp_path, None, cast(Any, None), lambda: True)
    over.set()
    wait_for(lambda: not list(tmp_path.iterdir()))


def test_a_kill_while_sending_keeps_the_proved_file_and_no_model(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OllamaDouble(faults=Faults(stall_mid_upload=True)) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        killed(folder, "uploading", 0.2)
        assert server.state.models == {}
    assert names(folder) == WHOLE
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    finished(folder)
