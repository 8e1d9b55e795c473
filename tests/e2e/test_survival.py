"""Training survives its interface and its own death: real processes, killed at random moments."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ollama_tune.core.runs import control
from ollama_tune.core.runs.folder import RunFolder, State
from tests.core.train_parts import curve, kinds, make_run, wait_for, work, write_rows
from tests.tiny import build_model

INTERFACE = """
import sys, time
from pathlib import Path
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.launch import start
start(RunFolder(Path(sys.argv[1])))
print("started", flush=True)
time.sleep(60)
"""

TRAINING = {"epochs": 12.0, "dropout": 0.1, "evaluation_interval": 5, "early_stopping": 0}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return build_model(folder / "model"), write_rows(folder / "rows.jsonl", 60)


@pytest.fixture(scope="module")
def undisturbed(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose interface was killed and whose terminal was closed, which must not disturb it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("OMP_NUM_THREADS", "1")
        folder = make_run(*parts, training=TRAINING)
        command = [sys.executable, "-c", INTERFACE, str(folder.path)]
        interface = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert interface.stdout is not None
        assert interface.stdout.readline() == b"started\n"
        interface.stdout.close()
        os.killpg(interface.pid, signal.SIGKILL)
        interface.wait()
        worker = folder.process()
        assert worker is not None
        worker.send_signal(signal.SIGHUP)
        assert work(folder).returncode == 75
        wait_for(lambda: not folder.alive())
    return folder


def steps_done(folder: RunFolder) -> int:
    return folder.status().step


def kill(folder: RunFolder) -> None:
    worker = folder.process()
    assert worker is not None
    worker.kill()
    wait_for(lambda: not folder.alive())
    assert folder.status().state is State.CRASHED


def test_a_run_outlives_its_interface_and_its_terminal(undisturbed: RunFolder) -> None:
    assert undisturbed.status().state is State.FINISHED
    events = undisturbed.events()
    assert [event.n for event in events] == list(range(len(events)))
    assert kinds(events)[0] == "start" and kinds(events)[-1] == "done"
    assert sum(event.kind == "start" for event in events) == 1
    assert max(b.t - a.t for a, b in itertools.pairwise(events)) < 120
    assert (undisturbed.adapter / "adapter_model.safetensors").is_file()


def test_kills_at_random_moments_a_stop_and_a_damaged_checkpoint_change_nothing(
    parts: tuple[Path, Path], undisturbed: RunFolder
) -> None:
    folder = make_run(*parts, training=TRAINING)
    chance = random.Random()
    control.resume(folder)
    wait_for(lambda: steps_done(folder) >= chance.randrange(8, 14))
    kill(folder)
    with folder.events_path.open("ab") as file:
        file.write(b'{"n": 99999, "t": 17952607')

    control.resume(folder)
    first = steps_done(folder)
    wait_for(lambda: kinds(folder.events()).count("start") == 2 and steps_done(folder) > first)
    time.sleep(chance.random() * 0.1)
    control.request_stop(folder)
    assert control.wait_until_free(folder, 300)
    stopped = folder.events()[-1]
    assert stopped.kind == "stopped" and stopped["resumable"]
    assert folder.status().state is State.STOPPED
    assert f"step-{stopped['step']:06d}" in {path.name for path in folder.checkpoints.iterdir()}

    newest = max(folder.checkpoints.glob("step-*"))
    (newest / "optimizer.safetensors").write_bytes(b"damaged")
    control.resume(folder)
    wait_for(lambda: not folder.alive())

    events = folder.events()
    assert [event.n for event in events] == list(range(len(events)))
    assert folder.status().state is State.FINISHED
    assert any(newest.name in event["what"] for event in events if event.kind == "warning")
    starts = [event["resumed_from"] for event in events if event.kind == "start"]
    assert starts[0] is None and starts[1] >= 5 and starts[2] < stopped["step"]
    assert sum(event.kind == "evaluation" and event["model"] == "base" for event in events) == 1
    assert curve(events) == curve(undisturbed.events())
    figures = ("best_loss", "best_step", "base_exact_match", "tuned_exact_match")
    done, wanted = events[-1], undisturbed.events()[-1]
    assert [done[name] for name in figures] == [wanted[name] for name in figures]
    weights = "adapter/adapter_model.safetensors"
    assert (folder.path / weights).read_bytes() == (undisturbed.path / weights).read_bytes()


def test_signals_checkpoint_and_end_even_while_libraries_are_loading(parts: tuple[Path, Path]) -> None:
    folder = make_run(*parts, training=TRAINING)
    control.resume(folder)
    worker = folder.process()
    assert worker is not None and worker.nice() >= 10
    wait_for(lambda: any(event.get("name") == "loading_model" for event in folder.events()))
    time.sleep(0.5)
    assert control.terminate(folder)
    wait_for(lambda: not folder.alive())
    last = folder.events()[-1]
    assert (last.kind, last["step"], last["reason"]) == ("stopped", 0, "the signal SIGTERM")
    assert not psutil.pid_exists(worker.pid)
