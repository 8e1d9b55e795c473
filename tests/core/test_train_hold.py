"""Waiting for room on a disk that is really full, and for a person who asked for a pause."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs import control
from ollama_tune.core.runs.folder import create_run
from ollama_tune.core.train import hold
from ollama_tune.core.train.hold import Hold
from ollama_tune.core.train.recipe import train
from ollama_tune.core.train.session import Session, Stopped, StopWish
from ollama_tune.core.train.shortage import device_failure, is_disk_full
from tests.core.train_parts import make_run, wait_for, write_rows
from tests.small_disk import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    monkeypatch.setattr(hold, "RETRY", 0.1)
    with small_disk(tmp_path / "disk", "20m") as disk:
        monkeypatch.setenv("OLLAMA_TUNE_HOME", str(disk.path))
        yield disk


@pytest.fixture
def session() -> Session:
    folder = create_run(Settings(), "hold")
    return Session(folder, StopWish(folder))


def once(condition: Callable[[], bool], act: Callable[[], object]) -> None:
    """Do it in a thread as soon as the condition holds."""

    def wait() -> None:
        wait_for(condition)
        act()

    threading.Thread(target=wait, daemon=True).start()


def told(session: Session) -> list[str]:
    return [event.kind for event in session.folder.events()]


def test_what_does_not_fit_is_written_when_there_is_room(disk: SmallDisk, session: Session) -> None:
    disk.fill()
    target = session.folder.path / "big"

    def work() -> int:
        return target.write_bytes(b"x" * (1 << 20))

    def free() -> None:
        wait_for(lambda: told(session) == ["paused"])
        assert session.waiting and session.folder.events()[0]["reason"] == "disk"
        disk.free()

    thread = threading.Thread(target=free)
    thread.start()
    assert Hold(session).write(1 << 20, work) == target.stat().st_size == 1 << 20
    thread.join()
    assert told(session) == ["paused", "continued"] and not session.waiting
    assert Hold(session).write(0, lambda: "at once") == "at once" and len(told(session)) == 2


def test_a_stop_ends_the_wait_and_the_last_words_are_in_the_log(disk: SmallDisk, session: Session) -> None:
    disk.fill()
    once(lambda: session.waiting, session.folder.stop_path.touch)
    with pytest.raises(Stopped):
        Hold(session).write(1, lambda: None)
    session.finish("stopped", stage="train", step=0, reason="as you asked", resumable=True)
    assert told(session) == ["paused", "stopped"]


def test_without_waiting_nothing_is_written_on_a_full_disk(disk: SmallDisk, session: Session) -> None:
    assert Hold(session).write_now(1, lambda: 7) == 7
    disk.fill()
    assert Hold(session).write_now(1, lambda: 7) is None


def test_room_that_is_used_up_while_writing_is_waited_for(disk: SmallDisk, session: Session) -> None:
    attempts: list[int] = []

    def work() -> str:
        attempts.append(len(told(session)))
        if len(attempts) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return "written"

    assert Hold(session).write(1, work) == "written"
    assert attempts == [0, 1, 1] and told(session) == ["paused", "continued"]
    with pytest.raises(KeyError):
        Hold(session).write(1, lambda: {}["other errors are not the disk's"])


def test_events_that_wait_for_room_let_the_run_wait(disk: SmallDisk, session: Session) -> None:
    waits = Hold(session)
    waits.until_logged()
    disk.fill()
    while session.writer.flush():
        session.emit("step", text="x" * 900)
    count = len(told(session))
    once(lambda: session.waiting, disk.free)
    waits.until_logged()
    assert told(session)[count:] == ["paused", "continued"]


def test_a_pause_lasts_until_it_is_taken_back(session: Session) -> None:
    waits = Hold(session)
    waits.until_continued()
    assert told(session) == []
    session.folder.pause_path.touch()
    once(lambda: session.waiting, lambda: control.continue_run(session.folder))
    waits.until_continued()
    assert not session.folder.pause_path.exists()
    paused, continued = session.folder.events()
    assert (paused.kind, paused["reason"], continued.kind) == ("paused", "request", "continued")
    assert "keeps its memory" in paused["fix"] and continued["seconds"] > 0


def test_a_full_disk_is_known_by_its_number_or_words() -> None:
    caused = TuneError("It cannot be written.", "Free some space.")
    caused.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    words = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    for error in (OSError(errno.ENOSPC, ""), caused, words):
        assert is_disk_full(error)
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("os error 281"), KeyError("disk")):
        assert not is_disk_full(error)


def test_a_broken_gpu_is_named_by_the_drivers_words_alone() -> None:
    text = (
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported at some other call."
    )
    assert device_failure(RuntimeError(text)) == "CUDA error: device-side assert triggered"
    launch = "CUDA error: unspecified launch failure. A secret row"
    assert device_failure(RuntimeError(launch)) == "CUDA error: unspecified launch failure"
    for text in ("CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "bug"):
        assert device_failure(RuntimeError(text)) is None


def test_a_run_that_finds_the_disk_full_waits_before_it_reads_its_data(
    disk: SmallDisk, model_folder: Path, tmp_path: Path
) -> None:
    settings = {"training": {"epochs": 0.1}, "evaluation": {"rows": 0}, "export": {"importance": False}}
    folder = make_run(model_folder, write_rows(tmp_path / "rows.jsonl"), **settings)
    session = Session(folder, StopWish(folder))
    disk.fill()

    def free() -> None:
        wait_for(lambda: session.waiting)
        assert not folder.chat_template_path.exists() and not list(folder.checkpoints.glob("*"))
        disk.free()

    thread = threading.Thread(target=free)
    thread.start()
    ended = train(session, ("train",))
    thread.join()
    kinds = told(session)
    assert kinds.index("paused") < kinds.index("continued") < kinds.index("data") < kinds.index("step")
    assert ended["steps"] == kinds.count("step") > 0
