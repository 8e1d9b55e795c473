"""The last resort against a lack of memory: a fresh process that goes on from a checkpoint."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ollama_tune.core.runs import control
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.train.checkpoint import newest
from ollama_tune.core.train.recovery import OutOfMemory, Restart
from tests.core.loop_parts import Run, finished_run
from tests.core.memory_limit import Fault
from tests.core.recovery_parts import (
    SETTINGS,
    TOLERANCE,
    assert_same_run,
    in_forward,
    shortages,
)
from tests.core.train_parts import curve, make_run, quiet_environment, wait_for, work, write_rows


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(model_folder, tmp_path_factory.mktemp("home"), **SETTINGS)


def test_when_nothing_helps_the_run_asks_for_a_fresh_process_once(
    model_folder: Path, undisturbed: Run
) -> None:
    run = Run(model_folder, **SETTINGS)
    in_forward(run, Fault(*range(5, 1000)))
    with pytest.raises(Restart):
        run.trainer.run()
    found, _ = newest(run.folder)
    assert found is not None and found.state.step == 2
    assert (found.state.micro_batch, found.state.recompute, found.state.restarted_at) == (1, "layers", 2)
    changes = [event["change"] for event in shortages(run)]
    assert [event["step"] for event in shortages(run)] == [3, 3, 3, 3, 3]
    assert "begins again from a checkpoint" in changes[-1]

    again = Run(model_folder, run.folder, **SETTINGS)
    again.resume()
    in_forward(again, Fault(*range(1, 1000)))
    with pytest.raises(OutOfMemory, match="does not suffice for one row in step 3"):
        again.trainer.run()
    assert shortages(again)[-1]["change"] is None

    last = Run(model_folder, run.folder, **SETTINGS)
    last.resume()
    last.trainer.run()
    assert_same_run(last, undisturbed)


def test_a_restart_before_the_first_step_has_a_checkpoint_too(model_folder: Path, undisturbed: Run) -> None:
    run = Run(model_folder, **SETTINGS)
    in_forward(run, Fault(*range(1, 1000)))
    with pytest.raises(Restart):
        run.trainer.run()
    again = Run(model_folder, run.folder, **SETTINGS)
    again.resume()
    assert again.trainer.state.step == 0 and again.trainer.state.micro_batch == 1
    again.trainer.run()
    assert_same_run(again, undisturbed)


FAILING_WORKER = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from ollama_tune.core.train import loop, worker
compute, failed = loop.Trainer.compute, []

def failing(self, window, step):
    if self.state.step == 3 and ({always} or not failed):
        failed.append(True)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    if failed and {pause}:
        Path("recovering").touch()
        time.sleep(60)
    return compute(self, window, step)

loop.Trainer.compute = failing
sys.exit(worker.main(sys.argv[1:]))
"""


def failing_worker(folder: RunFolder, *, always: bool, pause: bool) -> subprocess.Popen[bytes]:
    """A worker that runs out of memory in the fourth step: once, or always in this process."""
    code = FAILING_WORKER.format(always=always, pause=pause)
    with (folder.path / "stderr.log").open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder.path), "--stage", "train"],
            cwd=folder.path,
            env=quiet_environment(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def finished(model_folder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_TUNE_HOME", str(tmp_path_factory.mktemp("home")))
        folder = make_run(model_folder, rows, training={"epochs": 1.0, "evaluation_interval": 2})
        assert work(folder).returncode == 0
    return folder


def assert_same_curve(folder: RunFolder, finished: RunFolder) -> None:
    wanted, found = curve(finished.events()), curve(folder.events())
    assert list(found) == list(wanted)
    for step, figures in wanted.items():
        assert found[step] == pytest.approx(figures, rel=TOLERANCE), step
    assert folder.status().state is State.FINISHED


def test_a_kill_in_the_middle_of_a_recovery_goes_on_from_the_checkpoint(
    model_folder: Path, rows: Path, finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = make_run(model_folder, rows, training={"epochs": 1.0, "evaluation_interval": 2})
    worker = failing_worker(folder, always=False, pause=True)
    wait_for(lambda: (folder.path / "recovering").exists())
    assert [e["step"] for e in folder.events() if e.kind == "out_of_memory"] == [4]
    worker.kill()
    worker.wait()
    assert folder.status().state is State.CRASHED
    control.resume(folder)
    wait_for(lambda: not folder.alive())
    assert [e["resumed_from"] for e in folder.events() if e.kind == "start"] == [None, 2]
    assert_same_curve(folder, finished)


def test_the_last_resort_is_a_fresh_process_that_keeps_the_pid_and_the_lock(
    model_folder: Path, rows: Path, finished: RunFolder
) -> None:
    folder = make_run(model_folder, rows, training={"epochs": 1.0, "evaluation_interval": 2})
    worker = failing_worker(folder, always=True, pause=False)
    held: list[bool] = []

    def watch() -> None:
        while worker.poll() is None:
            held.append(folder.alive() or folder.events()[-1].kind == "done")
            time.sleep(0.002)

    wait_for(folder.alive)
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert worker.wait(300) == 0, (folder.path / "stderr.log").read_text()
    watcher.join()
    events = folder.events()
    assert len(held) > 100 and all(held)
    assert [event.n for event in events] == list(range(len(events)))
    starts = [event for event in events if event.kind == "start"]
    assert [event["resumed_from"] for event in starts] == [None, 3]
    assert {event["pid"] for event in starts} == {worker.pid} == {folder.worker()["pid"]}
    changes = [event["change"] for event in events if event.kind == "out_of_memory"]
    words = ["1 row", "feed-forward", "activations are recomputed", "begins again"]
    assert all(word in change for word, change in zip(words, changes, strict=True)), changes
    assert_same_curve(folder, finished)
    saved, _ = newest(folder)
    assert saved is not None and (saved.state.micro_batch, saved.state.recompute) == (1, "layers")
