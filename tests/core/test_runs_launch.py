"""Workers as real processes: cold, warm, dying at once, and racing for one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ollama_tune.core.errors import BusyError, TuneError
from ollama_tune.core.paths import state_dir
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs import control, launch
from ollama_tune.core.runs.folder import RunFolder, RunLock, State, create_run
from tests.core.train_parts import kinds, make_run, wait_for


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that fails soon after its start: its model folder is empty."""
    (tmp_path / "model").mkdir()
    return create_run(Settings().with_value("model.source", str(tmp_path / "model")), "empty")


def test_start_returns_once_the_worker_holds_the_run_and_leaves_no_zombie(folder: RunFolder) -> None:
    launch.start(folder)
    process = folder.process()
    assert process is not None
    assert folder.alive()
    assert os.getsid(process.pid) == process.pid
    with pytest.raises(BusyError, match="already going"):
        launch.start(folder)
    assert control.terminate(folder)
    wait_for(lambda: not folder.alive())
    wait_for(lambda: not psutil.pid_exists(process.pid))
    assert folder.status().state in (State.STOPPED, State.FAILED)


def test_a_worker_that_dies_at_once_is_told_with_its_last_lines(folder: RunFolder) -> None:
    folder.lock_path.mkdir()
    with pytest.raises(TuneError, match="did not start") as caught:
        launch.start(folder)
    assert "IsADirectoryError" in caught.value.details


def test_an_old_worker_file_is_not_taken_for_the_new_worker(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunLock(folder).release()
    folder.lock_path.unlink()
    folder.lock_path.mkdir()
    with pytest.raises(TuneError, match="did not start"):
        launch.start(folder)


def test_of_two_starts_at_once_one_wins_and_the_other_says_busy(folder: RunFolder) -> None:
    outcomes: list[str] = []

    def begin() -> None:
        try:
            launch.start(folder)
            outcomes.append("started")
        except BusyError:
            outcomes.append("busy")

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    control.terminate(folder)
    assert sorted(outcomes) in (["busy", "started"], ["started", "started"])
    wait_for(lambda: not folder.alive())
    assert kinds(folder.events()).count("start") == outcomes.count("started")


def test_a_warm_worker_takes_the_run_even_while_it_is_still_importing(folder: RunFolder) -> None:
    warm = launch.WarmWorker()
    assert not warm.ready
    launch.start(folder, "train", warm)
    process = folder.process()
    assert process is not None and process.pid == warm.pid
    assert process.cwd() == str(folder.path)
    warm.close()
    assert process.is_running()
    wait_for(lambda: not folder.alive())
    assert folder.status().state is State.FAILED
    assert "error" in kinds(folder.events())
    wait_for(lambda: not list(state_dir().glob("warm-*")))
    assert not warm.hand_over(folder, "train")


def test_a_dead_warm_worker_is_replaced_by_a_cold_one(folder: RunFolder) -> None:
    warm = launch.WarmWorker()
    os.kill(warm.pid, signal.SIGKILL)
    launch.start(folder, "train", warm)
    process = folder.process()
    assert process is not None and process.pid != warm.pid
    control.terminate(folder)
    warm.close()
    assert list(state_dir().glob("warm-*")) == []
    wait_for(lambda: not folder.alive())


def test_a_warm_worker_that_does_not_answer_never_takes_the_run_later(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0.3)
    warm = launch.WarmWorker()
    os.kill(warm.pid, signal.SIGSTOP)
    assert not warm.hand_over(folder, "train")
    assert not psutil.pid_exists(warm.pid)
    assert not folder.alive()


def test_a_draft_is_told_to_a_warm_worker_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_spawn", lambda arguments, log: subprocess.Popen(["sleep", "60"]))
    warm = launch.WarmWorker()
    try:
        (place,) = state_dir().glob("warm-*")
        told = place / "prepare"
        warm.prepare(None)
        assert not told.exists(), "nothing was likely before"
        drafts = [Settings(), Settings().with_value("training.rank", 4), None]
        for draft in drafts:
            warm.prepare(draft)
            found = json.loads(told.read_text())
            assert found == (None if draft is None else draft.model_dump(mode="json"))
            told.unlink()
            warm.prepare(draft)
            assert not told.exists()
    finally:
        warm.close()


def test_a_start_that_is_interrupted_leaves_a_run_that_stops_by_itself(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(model_folder, tmp_path / "absent.jsonl")

    def interrupted(folder: RunFolder, process: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch.start(folder)
    wait_for(lambda: folder.status().state is State.STOPPED)
    assert folder.events()[-1]["resumable"]


def test_a_warm_worker_interrupted_at_the_hand_over_is_given_or_ended(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = launch.WarmWorker()
    os.kill(warm.pid, signal.SIGSTOP)
    monkeypatch.setattr(launch, "PATIENCE", 60.0)

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launch.start(folder, "train", warm)
    warm.close()
    assert not psutil.pid_exists(warm.pid) and list(state_dir().glob("warm-*")) == []
    assert not folder.alive() and folder.events() == []


INTERFACE = """
import time
from ollama_tune.core.runs.launch import WarmWorker
warm = WarmWorker()
print(warm.pid, flush=True)
time.sleep(60)
"""


def test_a_warm_worker_ends_when_its_interface_is_killed() -> None:
    interface = subprocess.Popen([sys.executable, "-c", INTERFACE], stdout=subprocess.PIPE)
    assert interface.stdout is not None
    warm = psutil.Process(int(interface.stdout.readline()))
    interface.stdout.close()
    (warm_folder,) = state_dir().glob("warm-*")
    wait_for((warm_folder / "ready").exists)
    interface.kill()
    interface.wait()
    wait_for(lambda: not warm.is_running() or warm.status() == psutil.STATUS_ZOMBIE)
    assert not warm_folder.exists()


def test_a_warm_worker_ends_when_its_parents_pid_belongs_to_another(tmp_path: Path) -> None:
    warm = tmp_path / "warm"
    warm.mkdir()
    command = [sys.executable, "-m", launch.WORKER, "--warm", str(warm), str(os.getpid()), "12345.0"]
    assert subprocess.run(command, timeout=300, check=False, capture_output=True).returncode == 0


def test_an_order_is_taken_by_its_worker_or_withdrawn_never_both(tmp_path: Path) -> None:
    from ollama_tune.core.train.warm import _claim

    for _ in range(200):
        order = tmp_path / "order"
        order.write_text(json.dumps({}))
        claims: list[bool] = []
        thread = threading.Thread(target=lambda found=claims: found.append(_claim(tmp_path, "order")))
        thread.start()
        time.sleep(0)
        try:
            order.unlink()
            withdrawn = True
        except FileNotFoundError:
            withdrawn = False
        thread.join()
        assert claims == [not withdrawn]
