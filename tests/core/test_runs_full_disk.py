"""A run on a disk without any room: said in a sentence, and deleting still works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs import control
from ollama_tune.core.runs.folder import RunFolder, RunLock, create_run, list_runs
from tests.small_disk import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "1m") as disk:
        monkeypatch.setenv("OLLAMA_TUNE_HOME", str(disk.path))
        yield disk


@pytest.fixture
def run(disk: SmallDisk) -> RunFolder:
    folder = create_run(Settings(), "kitchen")
    disk.fill()
    return folder


def test_resuming_says_that_the_disk_is_full_and_what_makes_room(run: RunFolder) -> None:
    with pytest.raises(TuneError, match="is full") as caught:
        control.resume(run)
    assert "ollama-tune delete" in caught.value.fix
    assert not run.log_path.exists(), "no worker was started for nothing"


def test_a_worker_that_cannot_sign_says_so_and_gives_the_run_back(run: RunFolder, disk: SmallDisk) -> None:
    run.lock_path.touch()
    with pytest.raises(TuneError, match=r"The disk of .* is full"):
        RunLock(run)
    assert not run.alive()
    disk.free()
    RunLock(run).release()


def test_a_run_is_deleted_where_nothing_can_be_written(run: RunFolder) -> None:
    control.delete(run)
    assert not run.path.exists()


def test_a_run_that_cannot_be_made_leaves_no_folder(run: RunFolder) -> None:
    with pytest.raises(TuneError, match=r"The disk of .* is full"):
        create_run(Settings(), "another")
    assert [folder.path for folder in list_runs()] == [run.path]
    assert len(list(run.path.parent.iterdir())) == 1
