from __future__ import annotations

import json

import pytest

from ollama_tune.core.paths import cache_dir
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.tui import run_summary
from ollama_tune.tui.printing import run_rows
from ollama_tune.tui.run_summary import Summaries, folder_size, read_runs

from .run_logs import Log, alive, make_run


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[RunFolder]:
    """The runs whose logs were read."""
    folders: list[RunFolder] = []

    class Counting(run_summary.RunFollower):
        def __init__(self, folder: RunFolder) -> None:
            folders.append(folder)
            super().__init__(folder)

    monkeypatch.setattr(run_summary, "RunFollower", Counting)
    return folders


def finished(label: str = "demo") -> RunFolder:
    folder = make_run(label)
    Log(folder).trained().exported()
    return folder


def test_a_summary_tells_the_best_held_out_loss_and_what_was_exported() -> None:
    finished()
    [run] = read_runs()
    summary = run.summary
    assert (run.state, summary.step, summary.best_step) == (State.FINISHED, 200, 200)
    assert summary.best_loss == summary.shown_loss == pytest.approx(0.41)
    assert (summary.before, summary.after, summary.name) == (0.02, 0.958, "kitchen")
    assert summary.advice is not None and summary.advice.kind == "finished"


def test_a_log_is_read_once_and_its_summary_is_the_same_the_second_time(reads: list[RunFolder]) -> None:
    folders = {finished(label).path for label in ("one", "two")}
    first = {run.name: run.summary for run in read_runs()}
    assert {folder.path for folder in reads} == folders
    reads.clear()
    assert {run.name: run.summary for run in read_runs()} == first
    assert reads == []


def test_a_run_that_went_on_is_read_again(reads: list[RunFolder]) -> None:
    folder = make_run()
    Log(folder).training(30)("stopped", stage="train", step=30, reason="x", resumable=True)
    assert [run.state for run in read_runs()] == [State.STOPPED]
    Log(folder)("error", what="Broken.", fix="Mend it.", details="")
    reads.clear()
    [run] = read_runs()
    assert (run.state, run.summary.problem) == (State.FAILED, "Broken.")
    assert reads == [folder]


def test_a_live_run_is_never_taken_from_the_cache(reads: list[RunFolder]) -> None:
    folder = finished()
    list(read_runs())
    reads.clear()
    with alive(folder):
        [run] = read_runs()
        assert run.alive and reads == [folder]
    assert run.poll() and run.state is State.FINISHED


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"version": 1, "runs": []}', '{"version": 0, "runs": {"x": 1}}']
)
def test_a_damaged_cache_is_made_again(content: str, reads: list[RunFolder]) -> None:
    folder = finished()
    (cache_dir() / "runs.json").write_text(content)
    assert [run.name for run in read_runs()] == [folder.name]
    assert reads == [folder]
    assert set(json.loads((cache_dir() / "runs.json").read_text())["runs"]) == {str(folder.path)}


def test_an_entry_of_another_shape_is_passed_over(reads: list[RunFolder]) -> None:
    folder = finished()
    list(read_runs())
    path = cache_dir() / "runs.json"
    stored = json.loads(path.read_text())
    stored["runs"][str(folder.path)]["summary"] = {"steps": "many"}
    path.write_text(json.dumps(stored))
    reads.clear()
    assert [run.summary.step for run in read_runs()] == [200]
    assert reads == [folder]


def test_what_is_gone_drops_out_and_nothing_half_written_stays() -> None:
    folder, gone = finished("one"), finished("two")
    list(read_runs())
    gone.settings_path.unlink()
    list(read_runs())
    assert set(json.loads((cache_dir() / "runs.json").read_text())["runs"]) == {str(folder.path)}
    assert [path.name for path in cache_dir().iterdir()] == ["runs.json"]


def test_a_cache_that_cannot_be_written_is_no_obstacle() -> None:
    finished()
    summaries = Summaries(cache_dir() / "missing" / "runs.json")
    run = run_summary.ListedRun(next(run.folder for run in read_runs()), summaries)
    summaries.save()
    assert run.summary.step == 200


def test_a_size_counts_every_file_once_and_no_link() -> None:
    folder = make_run()
    (folder.path / "checkpoints" / "5").mkdir(parents=True)
    (folder.path / "checkpoints" / "5" / "weights").write_bytes(bytes(1000))
    before = folder_size(folder.path)
    (folder.path / "loop").symlink_to("/usr")
    assert folder_size(folder.path) - before < 100
    assert before == 1000 + folder.settings_path.stat().st_size
    assert folder_size(folder.path / "gone") == 0


def test_the_rows_for_programs_carry_size_and_verdict() -> None:
    folder = finished()
    [row] = run_rows()
    assert row["size_bytes"] == folder_size(folder.path)
    assert row["advice"]["kind"] == "finished" and row["best_step"] == 200
    assert row["model"] == "bundled" and row["ollama_name"] == "kitchen"
