"""Waits where a run was asked to pause or the disk is full, so that neither ends it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ollama_tune.core.files import SPARE
from ollama_tune.core.text import human_bytes
from ollama_tune.core.train.session import Session
from ollama_tune.core.train.shortage import is_disk_full

T = TypeVar("T")

LOOK = 0.1
RETRY = 1.0
"""Seconds between two looks at the wishes to stop and to go on, and at the disk."""
LONGEST = 60.0
"""Seconds between two attempts to write what did not fit although the disk seemed to have room."""


class Hold:
    """A run's waiting: it holds its lock and memory, says why it waits, and can be stopped meanwhile."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._folder = session.folder
        self._pause = str(session.folder.pause_path)

    @property
    def asked(self) -> bool:
        """True while the run is asked to pause."""
        return os.path.exists(self._pause)  # noqa: PTH110

    def until_continued(self) -> None:
        """Wait while the run is asked to pause; returns at once if it is not. `Stopped` ends the wait."""
        if self.asked:
            fix = f"It keeps its memory; `ollama-tune resume {self._folder.name}` lets it go on."
            self._wait("request", "The run waits, as it was asked to.", fix, lambda: not self.asked, LOOK)

    def until_logged(self) -> None:
        """Wait while the disk has no room for the event log."""
        if not self._session.writer.flush():
            self.write(0, lambda: None)

    def write(self, size: int, work: Callable[[], T], place: Path | None = None) -> T:
        """Let `work` write about so many bytes, once the disk has room for them and the log is written.

        `place` is where it writes, if not in the run's folder. It is done again when the disk was full after
        all, with longer and longer pauses, so it must leave nothing half-made behind.
        """
        place = place or self._folder.path
        done: list[T] = []
        due, pause = 0.0, RETRY

        def tried() -> bool:
            nonlocal due, pause
            if time.monotonic() >= due and self._has_room(size, place):
                done.extend(_attempt(work))
                due, pause = time.monotonic() + pause, min(2 * pause, LONGEST)
            return bool(done)

        if not tried():
            free, need = human_bytes(_free(place)), human_bytes(size + SPARE)
            what = f"The disk of {place} is full: {free} are free, {need} are needed."
            fix = "Free some space: the run waits, and goes on by itself when there is room."
            self._wait("disk", what, fix, tried, RETRY)
        return done[0]

    def write_now(self, size: int, work: Callable[[], T]) -> T | None:
        """The same without waiting; None where the disk is full, which is told."""
        done = _attempt(work) if self._has_room(size, self._folder.path) else []
        if not done:
            self._session.warn(
                f"The disk of {self._folder.path} is full, so step {self._session.step} has no checkpoint.",
                "Free some space and resume the run: it goes on from the checkpoint before.",
            )
        return next(iter(done), None)

    def _has_room(self, size: int, place: Path) -> bool:
        return self._session.writer.flush() and _free(place) >= size + SPARE

    def _wait(self, reason: str, what: str, fix: str, over: Callable[[], bool], every: float) -> None:
        session, since = self._session, time.monotonic()
        session.emit("paused", step=session.step, reason=reason, what=what, fix=fix)
        session.waiting = True
        try:
            while not over():
                for _ in range(round(every / LOOK)):
                    session.check_stop()
                    time.sleep(LOOK)
        finally:
            session.waiting = False
        session.emit("continued", step=session.step, seconds=round(time.monotonic() - since, 3))


def _free(place: Path) -> int:
    """Bytes that may be written there; a file system that does not know its size is believed to have room."""
    usage = shutil.disk_usage(place)
    return usage.free if usage.total else 1 << 62


def _attempt(work: Callable[[], T]) -> list[T]:
    """What the work gives; nothing where the disk was full."""
    try:
        return [work()]
    except Exception as error:
        if not is_disk_full(error):
            raise
        return []
