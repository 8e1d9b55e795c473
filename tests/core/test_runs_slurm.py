"""The script for SLURM, run with doubles of srun and scontrol: two machines, a time limit, and what fails."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.runs import cluster
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.slurm import slurm
from tests import slurm_double
from tests.core.cluster_parts import file, home, job, write
from tests.core.train_parts import wait_for

__all__ = ["file", "home"]


def script(file: Path, folder: Path) -> Path:
    slurm_double.install(folder)
    made = slurm(job(file, nodes=2, gpus=0, cpus=1))
    path = folder / "job.sh"
    path.write_text(made.text)
    return path


def submitted(path: Path, **more: Any) -> subprocess.Popen[bytes]:
    known = slurm_double.environment(4711, 2, path.parent)
    there = {**os.environ, **known, "PATH": f"{path.parent}:{os.environ['PATH']}"}
    with (path.parent / "log").open("ab") as log:
        return subprocess.Popen(["bash", path], env=there, stdout=log, stderr=subprocess.STDOUT)


def test_a_job_of_two_machines_out_of_time_writes_a_checkpoint_and_comes_back(
    file: Path, home: Path, tmp_path: Path
) -> None:
    path = script(file, tmp_path)
    process = submitted(path)
    folder = RunFolder(home / "data/runs/bundled-slurm-4711")
    wait_for(lambda: process.poll() is not None or any(e.kind == "step" for e in folder.events()))
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    events = folder.events()
    assert events[-1].kind == "stopped" and events[-1]["resumable"]
    assert list(folder.checkpoints.iterdir())
    assert any(event.get("ranks") for event in events if event.kind == "memory"), "two processes trained"
    assert (tmp_path / "requeued").read_text() == "4711\n"
    assert folder.log_path.exists() and folder.stop_path.exists()
    assert cluster.begin(file, folder.name, {})[1] == "train" and not folder.stop_path.exists()
    write(folder, ("start", {"stage": "train", "stages": ["train"]}), ("done", {"stage": "train"}))
    assert submitted(path).wait(300) == 0, "a job that is done ends at once"
    assert folder.events()[-1].kind == "done"


def quick(tmp_path: Path, worker: str) -> tuple[Path, Path]:
    """The script with a Python that answers for the run and is the worker itself: a line of shell."""
    run = tmp_path / "run folder"
    run.mkdir()
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        f'case "$3" in begin) echo all {shlex.quote(str(run))};;\n'
        'again) if [ "${5-}" = --asked ]; then exit "${AGAIN:-0}"; else exit "${WANTED:-1}"; fi;;\n'
        f"*) {worker};; esac\n"
    )
    python.chmod(0o755)
    slurm_double.install(tmp_path)
    text = slurm(job(tmp_path / "run.yaml", nodes=2, gpus=0, cpus=1, python=str(python))).text
    (tmp_path / "job.sh").write_text(text)
    return tmp_path / "job.sh", run


UNTIL_STOP = 'touch "$RUN/$SLURM_PROCID"; while [ ! -e "$RUN/stop" ]; do sleep 0.05; done'


@pytest.mark.parametrize(
    ("state", "again", "requeued"),
    [("RUNNING", "0", True), ("CANCELLED", "0", False), ("RUNNING", "1", False)],
)
def test_only_a_job_that_is_still_wanted_and_got_further_is_requeued(
    state: str, again: str, requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = quick(tmp_path, UNTIL_STOP)
    monkeypatch.setenv("RUN", str(folder))
    monkeypatch.setenv("AGAIN", again)
    (tmp_path / "state").write_text(state)
    process = submitted(path)
    wait_for(lambda: (folder / "0").exists() and (folder / "1").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0
    assert (folder / "stop").exists()
    assert (tmp_path / "requeued").exists() is requeued


def test_a_worker_that_fails_on_one_machine_ends_the_job_with_its_status(tmp_path: Path) -> None:
    path, _ = quick(tmp_path, 'if [ "$SLURM_PROCID" = 1 ]; then exit 75; fi; exec sleep 600')
    assert submitted(path).wait(300) == 75, "and it does not wait for the other machine's end"
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(("wanted", "status", "requeued"), [("0", 0, True), ("1", 1, False)])
def test_machines_that_another_job_takes_are_asked_for_again(
    wanted: str, status: int, requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal to the processes alone ends them, and torchrun with 1."""
    path, _ = quick(tmp_path, "exit 1")
    monkeypatch.setenv("WANTED", wanted)
    assert submitted(path).wait(300) == status
    assert (tmp_path / "requeued").exists() is requeued


@pytest.mark.parametrize(
    ("kind", "reason", "left"),
    [("stopped", "the signal SIGTERM", "all"), ("stopped", "as you asked", "none"), ("error", "", "none")],
)
def test_a_job_that_was_not_out_of_time_comes_back_only_if_a_signal_stopped_it(
    file: Path, kind: str, reason: str, left: str
) -> None:
    folder, _ = cluster.begin(file, "name", {})
    write(
        folder,
        ("start", {"stage": "train", "stages": ["train", "export"]}),
        ("step", {"step": 1}),
        (kind, {"stage": "train", "reason": reason}),
    )
    assert cluster.again("name", asked=False) == left


def test_a_second_signal_does_not_hide_the_status_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = quick(tmp_path, f"{UNTIL_STOP}; sleep 0.5; exit 3")
    monkeypatch.setenv("RUN", str(folder))
    monkeypatch.setenv("AGAIN", "1")
    process = submitted(path)
    wait_for(lambda: (folder / "0").exists() and (folder / "1").exists())
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.wait(300) == 3


def test_the_doubles_refuse_what_slurm_refuses(tmp_path: Path) -> None:
    slurm_double.install(tmp_path)
    known = os.environ | slurm_double.environment(1, 2, tmp_path)

    def status(*words: str) -> int:
        program: Sequence[str] = [str(tmp_path / words[0]), *words[1:]]
        return subprocess.run(program, env=known, capture_output=True).returncode

    assert status("scontrol", "requeue", "2") == 1
    assert status("srun", "--nodez=2", "true") == 2
    assert status("srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--cpus-per-task=1", "true") == 2
