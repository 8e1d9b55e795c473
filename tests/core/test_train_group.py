"""Two processes train what one trains, through torch's own launcher and without it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_tune.core.runs import launch
from ollama_tune.core.runs.events import effective
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.train.checkpoint import newest
from tests.core.group_parts import Ranks
from tests.core.train_parts import curve, make_run, wait_for, write_rows
from tests.train_faults import stop_at

TOLERANCE = 1e-5
"""Of losses in float32, whose sums are taken in another order; measured: 1e-6 after 60 steps."""
NORM = 1e-4
"""The same of gradient norms, in which the differences grow; measured: 1e-5 after 140 steps."""

HOME = "OLLAMA_TUNE_HOME"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


def run_of(model: Path, rows: Path, **training: Any) -> RunFolder:
    long = {"epochs": 8.0, "evaluation_interval": 20, "early_stopping": 0}
    return make_run(model, rows, training=long | training)


@pytest.fixture(scope="module")
def alone(model_folder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """What one process makes of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME, str(tmp_path_factory.mktemp("home")))
        folder = run_of(model_folder, rows)
        assert Ranks(folder, 1).wait() == [0]
    return folder


def assert_same_run(folder: RunFolder, wanted: RunFolder) -> None:
    """The same losses, measurements and answers up to rounding, in a log without gaps."""
    assert folder.status().state is State.FINISHED, folder.log_tail()
    events = folder.events()
    assert [event.n for event in events] == list(range(len(events)))
    found, right = curve(effective(events)), curve(wanted.events())
    assert list(found) == list(right)
    for step, (loss, norm) in right.items():
        assert found[step][0] == pytest.approx(loss, rel=TOLERANCE), step
        assert found[step][1] == pytest.approx(norm, rel=NORM), step
    measured, expected = (
        [
            (e["model"], e["step"], e["loss"], e["exact_match"])
            for e in effective(each)
            if e.kind == "evaluation"
        ]
        for each in (events, wanted.events())
    )
    assert [each[:2] for each in measured] == [each[:2] for each in expected]
    for one, other in zip(measured, expected, strict=True):
        assert one[2:] == pytest.approx(other[2:], rel=TOLERANCE)
    for kind in ("start", "done"):
        pids = {event.get("pid") for event in events if event.kind == kind}
        assert len(pids) == sum(event.kind == kind for event in events)


def ranks_of(folder: RunFolder) -> dict[int, psutil.Process]:
    """The processes of a run by rank; under -1 what launched them."""
    launcher = psutil.Process(folder.worker()["launcher"])
    found = {int(child.environ().get("RANK", "-2")): child for child in launcher.children()}
    return found | {-1: launcher}


def steps_of(folder: RunFolder) -> int:
    return sum(event.kind == "step" for event in folder.events())


def wait_until_gone(processes: dict[int, psutil.Process]) -> None:
    _, left = psutil.wait_procs(list(processes.values()), timeout=300)
    assert not left


def test_a_killed_rank_ends_the_run_with_its_name_and_one_process_goes_on(
    model_folder: Path, rows: Path, alone: RunFolder
) -> None:
    folder = run_of(model_folder, rows, gpus=2)
    launch.start(folder)
    assert folder.alive() and folder.process() is not None
    wait_for(lambda: steps_of(folder) > 3)
    processes = ranks_of(folder)
    assert {0, 1} < set(processes) and processes[0].pid == folder.worker()["pid"]
    for process in processes.values():
        process.send_signal(signal.SIGHUP)
    before = steps_of(folder)
    wait_for(lambda: steps_of(folder) > before + 3)
    processes[1].kill()
    wait_for(lambda: not folder.alive())
    wait_until_gone(processes)
    error, saved = folder.events()[-1], newest(folder)[0]
    assert (
        error.kind == "error" and f"Rank 1 of 2 (counted from 0, process {processes[1].pid}" in error["what"]
    )
    assert "Resume the run" in error["fix"] and folder.status().state is State.FAILED
    last = max(event["step"] for event in folder.events() if event.kind == "step")
    assert saved is not None and saved.state.step == last
    assert any(event["reason"] == "lost" for event in folder.events() if event.kind == "checkpoint")
    memory = [event for event in folder.events() if event.kind == "memory" and event.get("ranks")]
    assert all(rank["rank"] == 1 and rank["used"] > 0 for event in memory for rank in event["ranks"])
    assert memory
    assert Ranks(folder, 1).wait() == [0]
    assert_same_run(folder, alone)


def test_a_run_that_four_two_one_and_three_processes_work_on_is_the_run_of_one(
    model_folder: Path, rows: Path, alone: RunFolder
) -> None:
    folder = run_of(model_folder, rows)
    for size in (4, 2, 1):
        stop_at(folder.path, steps_of(folder) + 3)
        assert Ranks(folder, size).wait() == [0] * size, folder.log_tail()
        assert folder.events()[-1].kind == "stopped" and folder.status().state is State.STOPPED
        folder.stop_path.unlink()
    before = steps_of(folder)
    assert before < 60
    assert Ranks(folder, 3, fault="short").wait() == [0, 0, 0], folder.log_tail()
    shortages = [(e["work"], e["step"]) for e in folder.events() if e.kind == "out_of_memory"]
    assert shortages == [("training", before + 2)]
    assert_same_run(folder, alone)


def test_a_rank_that_fails_ends_the_run_without_a_row_of_the_data(model_folder: Path, rows: Path) -> None:
    folder = run_of(model_folder, rows)
    assert Ranks(folder, 2, fault="broken").wait() == [1, 1]
    error = folder.events()[-1]
    assert error.kind == "error" and "Rank 1 of 2" in error["what"] and "ValueError" in error["what"]
    assert "row of the data" not in folder.events_path.read_text()
    saved, _ = newest(folder)
    assert saved is not None and saved.state.step == 1


def test_a_model_that_is_shared_out_trains_and_answers_as_a_whole_one_although_memory_ran_out(
    model_folder: Path, rows: Path
) -> None:
    wanted = run_of(model_folder, rows, path="general", epochs=1.0)
    assert Ranks(wanted, 1).wait() == [0]
    folder = run_of(model_folder, rows, path="general", epochs=1.0, sharding="fsdp", dropout=0.0)
    assert Ranks(folder, 2, fault="short").wait() == [1, 1]
    error = folder.events()[-1]
    assert error.kind == "error" and "Rank 1 of 2" in error["what"] and "memory was used up" in error["what"]
    assert error["fix"].startswith("Resume the run: 1 row at once are computed instead of 2")
    assert Ranks(folder, 2).wait() == [0, 0], folder.log_tail()
    assert_same_run(folder, wanted)
    answers, right = (
        [(e["prompt"], e["tuned"]) for e in each.events() if e.kind == "sample" and e["tuned"]]
        for each in (folder, wanted)
    )
    assert answers == right
