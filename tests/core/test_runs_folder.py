from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_tune.core.errors import BusyError, TuneError, UsageError
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs import control
from ollama_tune.core.runs.events import EventWriter
from ollama_tune.core.runs.folder import RunFolder, RunLock, State, create_run, find_run, list_runs
from tests.core.train_parts import wait_for

HOLDER = """
import sys, time
from pathlib import Path
from ollama_tune.core.runs.folder import RunFolder, RunLock
RunLock(RunFolder(Path(sys.argv[1])))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder() -> RunFolder:
    return create_run(Settings(), "some model")


def write(folder: RunFolder, *events: tuple[str, dict[str, Any]]) -> None:
    writer = EventWriter(folder.events_path)
    for kind, data in events:
        writer.write(kind, **data)
    writer.close()


def holder(folder: RunFolder) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder.path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.stdout.close()
    return process


@pytest.mark.parametrize(
    ("last", "state"),
    [("done", State.FINISHED), ("stopped", State.STOPPED), ("error", State.FAILED), ("step", State.CRASHED)],
)
def test_without_a_worker_the_last_event_decides_the_state(
    folder: RunFolder, last: str, state: State
) -> None:
    data: dict[str, Any] = {"stage": "train", "what": "It broke.", "fix": "Mend it.", "step": 3, "loss": 1.0}
    write(folder, ("start", {"stage": "train", "total_steps": None}), ("data", {"total_steps": 9}))
    write(folder, (last, data))
    folder.log_path.write_text("last words of a library")
    status = folder.status()
    assert status.state is state
    assert not status.alive
    assert (status.stage, status.total_steps) == ("train", 9)
    expected = {State.FAILED: "It broke. Mend it.", State.CRASHED: "last words"}.get(state, "")
    assert expected in status.message


def test_a_new_run_is_not_started_and_one_whose_worker_died_before_its_first_event_crashed(
    folder: RunFolder,
) -> None:
    assert folder.status().state is State.NEW
    RunLock(folder).release()
    assert folder.status().state is State.CRASHED


def test_a_held_run_is_running_and_silent_after_a_minute(folder: RunFolder) -> None:
    write(folder, ("step", {"step": 1, "loss": 2.0}))
    lock = RunLock(folder)
    assert folder.status().state is State.RUNNING
    old = folder.events()[0].t - 61
    line = json.dumps({"n": 0, "t": old, "kind": "step", "step": 1, "loss": 2.0})
    folder.events_path.write_text(line + "\n")
    assert folder.status().state is State.RUNNING
    os.utime(folder.worker_path, (old, old))
    assert folder.status().state is State.SILENT
    lock.release()
    assert folder.status().state is State.CRASHED


def test_a_reader_that_missed_the_last_event_does_not_see_a_crash(folder: RunFolder) -> None:
    write(folder, ("step", {"step": 1, "loss": 2.0}))
    known = folder.events()
    write(folder, ("done", {"stage": "train"}))
    assert folder.status(known).state is State.FINISHED


def test_two_viewers_never_take_each_other_for_a_worker(folder: RunFolder) -> None:
    RunLock(folder).release()
    with folder.lock_path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not folder.alive()


def test_a_viewers_probe_does_not_keep_a_worker_from_starting(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunLock(folder).release()
    with folder.lock_path.open() as viewer:
        fcntl.flock(viewer, fcntl.LOCK_SH)
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 40:
                fcntl.flock(viewer, fcntl.LOCK_UN)

        monkeypatch.setattr(time, "sleep", sleep)
        RunLock(folder).release()
    assert len(waited) == 40


def test_the_lock_is_exclusive_and_free_once_its_process_is_killed(folder: RunFolder) -> None:
    process = holder(folder)
    try:
        assert folder.alive()
        found = folder.process()
        assert found is not None and found.pid == process.pid
        with pytest.raises(BusyError, match="already going"):
            RunLock(folder)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not folder.alive())
    assert folder.process() is None


def test_a_reused_pid_is_not_the_worker_and_gets_no_signal(folder: RunFolder) -> None:
    RunLock(folder).release()
    mine = json.loads(folder.worker_path.read_text())
    assert mine["pid"] == os.getpid()
    assert folder.process() is not None
    container = f"{mine['boot_id'].split()[0]} pid:[1]"
    for changed in (
        {"create_time": mine["create_time"] - 100},
        {"boot_id": "another boot"},
        {"boot_id": container},
    ):
        folder.worker_path.write_text(json.dumps(mine | changed))
        assert folder.process() is None
        assert not control.terminate(folder)
    for damaged in ("", "[]", "{}", '{"pid": "x"}', json.dumps(mine | {"create_time": None})):
        folder.worker_path.write_text(damaged)
        assert folder.process() is None


def test_a_zombie_is_no_worker(folder: RunFolder) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    watched = psutil.Process(process.pid)
    created = watched.create_time()
    wait_for(lambda: watched.status() == psutil.STATUS_ZOMBIE)
    RunLock(folder).release()
    mine = json.loads(folder.worker_path.read_text())
    folder.worker_path.write_text(json.dumps(mine | {"pid": process.pid, "create_time": created}))
    assert folder.process() is None
    process.wait()


def test_runs_of_one_minute_get_names_of_their_own_and_private_folders() -> None:
    folders = [create_run(Settings(), "Org/Model 4B!") for _ in range(3)]
    assert len({folder.name for folder in folders}) == 3
    assert folders[0].name.endswith("-org-model-4b")
    assert folders[0].path.stat().st_mode & 0o777 == 0o700
    assert folders[0].settings() == Settings()


def test_relative_paths_become_whole_because_the_worker_works_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}")
    wanted = {"data.path": "rows.jsonl", "model.source": "org/name"}
    settings = create_run(Settings().with_values(wanted), "x").settings()
    assert settings.data.path == str(tmp_path / "rows.jsonl")
    assert settings.model.source == "org/name"


def test_a_run_is_found_by_name_by_path_and_by_life(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no run yet"):
        find_run(None)
    folders = [create_run(Settings(), f"m{i}") for i in range(3)]
    for age, made in enumerate(folders):
        os.utime(made.settings_path, (1000 - age, 1000 - age))
    assert [made.name for made in list_runs()] == [made.name for made in folders]
    assert find_run(None).name == folders[0].name
    lock = RunLock(folders[2])
    assert find_run(None).name == folders[2].name
    lock.release()
    assert find_run(folders[1].name).path == folders[1].path
    assert find_run(str(folders[1].path)).path == folders[1].path
    monkeypatch.chdir(folders[1].path.parent)
    assert find_run(folders[1].name).path.is_absolute()
    with pytest.raises(UsageError, match="no run called 'nothing'"):
        find_run("nothing")


def test_a_run_that_is_going_is_not_removed(folder: RunFolder) -> None:
    lock = RunLock(folder)
    with pytest.raises(BusyError, match="ollama-tune stop"):
        control.delete(folder)
    assert folder.settings_path.exists()
    lock.release()
    control.delete(folder)
    assert not folder.path.exists()


def test_a_removal_that_is_cut_short_leaves_the_run_in_the_list(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.path / "a-log").write_text("x")

    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(control.shutil, "rmtree", refuse)
    with pytest.raises(TuneError, match="cannot be removed"):
        control.delete(folder)
    assert sorted(path.name for path in folder.path.iterdir()) == ["run.yaml"]
    assert folder.path in [run.path for run in list_runs()]


def test_only_a_run_that_is_going_can_be_asked_to_stop(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="is not going"):
        control.request_stop(folder)
    lock = RunLock(folder)
    control.request_stop(folder)
    assert folder.stop_path.exists()
    assert not control.wait_until_free(folder, 0.1)
    lock.release()
    assert control.wait_until_free(folder, 0.1)


def test_a_run_that_waits_is_paused_and_says_why(folder: RunFolder) -> None:
    waits = {"step": 3, "reason": "disk", "what": "The disk is full.", "fix": "Free some space."}
    write(folder, ("start", {"stage": "train"}), ("step", {"step": 3, "loss": 1.0}), ("paused", waits))
    lock = RunLock(folder)
    status = folder.status()
    assert status.alive and (status.state, status.message) == (
        State.PAUSED,
        "The disk is full. Free some space.",
    )
    last = folder.events()[-1]
    assert folder.state(last, paused=True) is State.PAUSED and folder.state(last) is State.RUNNING
    write(folder, ("continued", {"step": 3, "seconds": 1.0}))
    assert folder.status().state is State.RUNNING
    write(folder, ("paused", waits))
    lock.release()
    assert folder.status().state is State.CRASHED


def test_only_training_that_is_going_can_be_asked_to_pause_and_resume_takes_it_back(
    folder: RunFolder,
) -> None:
    with pytest.raises(UsageError, match="is not going"):
        control.request_pause(folder)
    lock = RunLock(folder)
    write(folder, ("start", {"stage": "train"}))
    control.request_pause(folder)
    assert folder.pause_path.exists()
    control.resume(folder)
    assert not folder.pause_path.exists() and not control.continue_run(folder)
    write(folder, ("start", {"stage": "export"}))
    with pytest.raises(UsageError, match="does not pause"):
        control.request_pause(folder)
    lock.release()


def test_the_figures_are_those_of_the_steps_that_count(folder: RunFolder) -> None:
    step = [("step", {"step": number, "loss": 4.0 - number, "total_steps": 9}) for number in (1, 2, 3)]
    write(folder, ("start", {"stage": "train", "resumed_from": None}), *step)
    assert folder.status().step == 3
    write(folder, ("start", {"stage": "train", "resumed_from": 1}))
    assert (folder.status().step, folder.status().loss) == (1, 3.0)


def start(stage: str, *stages: str) -> tuple[str, dict[str, Any]]:
    return "start", {"stage": stage, "stages": list(stages or (stage,))}


def done(stage: str) -> tuple[str, dict[str, Any]]:
    return "done", {"stage": stage}


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([], ["train"]),
        ([start("train")], ["train"]),
        ([start("train", "train", "export")], ["train", "export"]),
        ([start("train", "train", "export"), done("train")], ["export"]),
        ([start("train", "train", "export"), done("train"), start("export", "train", "export")], ["export"]),
        ([start("train"), done("train")], []),
        ([start("train"), done("train"), start("export")], ["export"]),
        ([start("train"), done("train"), start("export"), done("export")], []),
        ([start("train"), done("train"), start("export"), done("export"), start("export")], ["export"]),
        ([start("train"), start("export"), ("error", {"what": "", "fix": ""})], ["train", "export"]),
    ],
)
def test_a_resume_does_what_is_left(
    folder: RunFolder, events: list[tuple[str, dict[str, Any]]], left: list[str]
) -> None:
    write(folder, *events)
    assert control.stages_left(folder.events()) == left


def test_a_finished_run_is_not_resumed(folder: RunFolder) -> None:
    start = {"stage": "train", "stages": ["train"]}
    write(folder, ("start", start), ("done", {"stage": "train"}))
    folder.checkpoints.mkdir()
    with pytest.raises(UsageError, match="is finished"):
        control.resume(folder)
