"""Short runs of a search for the learning rate give way to the person's own runs, and to another search."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ollama_tune.core.paths import runs_dir
from ollama_tune.core.runs import turns
from ollama_tune.core.runs.folder import RunFolder, RunLock
from ollama_tune.core.runs.sweep import Halted
from ollama_tune.core.runs.turns import at_work, gone_before, searches_dir, step_aside, turn


def run_in(home: Path, name: str) -> RunFolder:
    path = home / name
    path.mkdir(mode=0o700, parents=True)
    return RunFolder(path)


def search_folder(name: str) -> Path:
    folder = searches_dir() / name
    folder.mkdir(mode=0o700, parents=True)
    return folder


def test_the_newest_run_at_work_goes_first_and_a_paused_one_keeps_nobody_waiting() -> None:
    search, mine = search_folder("one"), run_in(runs_dir(), "2026-01-01-mine")
    assert at_work() == gone_before(search) == ""
    lock = RunLock(mine, sign=False)
    assert at_work() == gone_before(search) == mine.name
    mine.pause_path.touch()
    assert at_work() == ""
    mine.pause_path.unlink()
    older = RunLock(run_in(runs_dir(), "2025-12-31-older"), sign=False)
    assert at_work() == mine.name
    lock.release()
    assert at_work() == "2025-12-31-older"
    older.release()
    assert at_work() == ""


def test_a_run_that_is_to_start_has_short_runs_end_and_keeps_searches_away_for_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = search_folder("one")
    short = run_in(search, "rate-trial-1")
    step_aside()
    assert not (searches_dir() / "aside").exists(), "nothing is tried, so nothing is announced"
    lock = RunLock(short, sign=False)
    monkeypatch.setattr(turns, "LEAVE", 0.05)
    step_aside()
    assert short.stop_path.exists() and gone_before(search) == "the run that is being started"
    lock.release()
    announced = (searches_dir() / "aside").stat().st_mtime
    for seconds, waits in ((30, True), (61, False)):
        os.utime(searches_dir() / "aside", (announced - seconds,) * 2)
        assert bool(gone_before(search)) == waits


def test_a_run_that_is_to_start_waits_until_the_short_run_has_ended() -> None:
    lock = RunLock(run_in(search_folder("one"), "rate-trial-1"), sign=False)
    ended = threading.Event()
    threading.Timer(0.3, lambda: (ended.set(), lock.release())).start()
    step_aside()
    assert ended.is_set()


def test_a_search_between_two_short_runs_is_kept_away_too() -> None:
    search = search_folder("one")
    held = RunLock(RunFolder(search), sign=False)
    assert turns.searching()
    step_aside()
    assert gone_before(search) == "the run that is being started"
    held.release()


def test_of_two_searches_the_later_one_waits_and_can_be_ended_meanwhile() -> None:
    first, second = search_folder("one"), search_folder("two")

    def halt() -> None:
        raise Halted

    with turn(first, halt):
        assert gone_before(first) == "" and "another search" in gone_before(second)
        with pytest.raises(Halted), turn(second, halt):
            pass
    with turn(second, halt):
        assert "another search" in gone_before(first)
