"""What a worker has of its run: the settings, the event log, the wish to stop, and signs of life."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from ollama_tune.core.machine.host import read_memory
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.events import Event, EventWriter
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.launch import SIGNALS, environment
from ollama_tune.core.train.prepared import Prepared

HEARTBEAT = 2.0
WAITING = 10
PROGRESS_INTERVAL = 0.5

Progress = Callable[[int, int], None]
Gauge = Callable[[], dict[str, Any]]


class Stopped(Exception):
    """The run was asked to end; raised where nothing is half done."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopWish:
    """SIGTERM, SIGINT or the `stop` file ask for the end; SIGHUP (a closed terminal) is ignored."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = str(folder.stop_path)
        self._signal: str | None = None

    def listen(self) -> None:
        """Take over this process' signals."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _note(self, number: int, _frame: Any) -> None:
        self._signal = signal.Signals(number).name

    @property
    def reason(self) -> str | None:
        """Who asked, in words, or None."""
        if self._signal is not None:
            return f"the signal {self._signal}"
        return "the request to stop" if os.path.exists(self._path) else None  # noqa: PTH110


def peak_memory() -> int:
    """The most resident memory this program ever had, in bytes.

    Linux: `VmHWM`, because `getrusage` goes on counting from the process that forked this one. Elsewhere
    `getrusage`, which counts in KiB, on macOS in bytes.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def host_memory() -> dict[str, Any]:
    """Memory of this process and of the box, in bytes."""
    free, total = read_memory()
    return {
        "device": "cpu",
        "used": psutil.Process().memory_info().rss,
        "peak": peak_memory(),
        "free": free,
        "total": total,
    }


class Session:
    """One worker's work on one run.

    `prepared` is what was loaded before there was a run, `history` the log as it was before this worker.
    `gauge` gives the figures of the `memory` event that a thread writes every two seconds, so that loading
    shows life too; more rarely while the run is `waiting`. `takes_over` is True when this process has just
    replaced the worker before it.
    """

    def __init__(self, folder: RunFolder, stop: StopWish, prepared: Prepared | None = None) -> None:
        self.folder = folder
        self.prepared = prepared or Prepared()
        self.writer = EventWriter(folder.events_path)
        self.history: list[Event] = folder.events()
        self.gauge: Gauge = host_memory
        self.stage = "train"
        self.step = 0
        self.waiting = False
        self.takes_over = False
        self._stop = stop
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    @cached_property
    def settings(self) -> Settings:
        """The run's settings as written before its start."""
        return self.folder.settings()

    def live(self) -> None:
        """Begin with the signs of life."""
        self._heart.start()

    def emit(self, kind: str, **data: Any) -> Event:
        """Append an event to the run's log."""
        return self.writer.write(kind, **data)

    def start(self, stage: str, stages: Sequence[str], **data: Any) -> None:
        """Write the `start` event of a stage: what runs, where, and on which versions."""
        self.emit(
            "start",
            stage=stage,
            stages=list(stages),
            pid=os.getpid(),
            device=self.settings.training.device,
            versions=environment(),
            model=self.settings.model.source,
            **data,
        )

    def phase(self, name: str, text: str) -> None:
        """Say what is being done now; ends the run first if that was asked for."""
        self.check_stop()
        self.emit("phase", name=name, text=text)

    def warn(self, what: str, fix: str) -> None:
        """Tell a problem that does not end the run."""
        self.emit("warning", what=what, fix=fix)

    def progress(self, name: str, unit: str) -> Progress:
        """A callback that writes at most two `progress` events a second, and the last one always."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            self.check_stop()
            now = time.monotonic()
            if done >= total or now - last >= PROGRESS_INTERVAL:
                last = now
                self.emit("progress", name=name, done=done, total=total, unit=unit)

        return report

    def stopped(self) -> bool:
        """True when the run was asked to end."""
        return self._stop.reason is not None

    def check_stop(self) -> None:
        """Raise `Stopped` when the run was asked to end."""
        reason = self._stop.reason
        if reason is not None:
            raise Stopped(reason)

    def finish(self, kind: str, **data: Any) -> None:
        """Write the last event of this worker: nothing may follow it, for it decides the run's state."""
        self._end_signs()
        self.emit(kind, **data)
        self.writer.close()

    def rest(self) -> None:
        """Close the log without a last event: another program goes on with the run."""
        self._end_signs()
        self.writer.close()

    def _end_signs(self) -> None:
        self._over.set()
        if self._heart.is_alive():
            self._heart.join()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT * (WAITING if self.waiting else 1)):
            try:
                if not self.writer.flush():
                    continue  # the disk is full: its last room is for what matters
                self.emit("memory", **self.gauge())
            except (OSError, RuntimeError):  # a GPU that broke can no longer be asked
                continue
