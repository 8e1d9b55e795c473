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
from ollama_tune.core.train.alike import same_start
from ollama_tune.core.train.group import Group
from ollama_tune.core.train.prepared import Prepared
from ollama_tune.core.train.world import Alone, Lost, World

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
    def signal(self) -> str | None:
        """The signal that asked, in words, or None."""
        return None if self._signal is None else f"the signal {self._signal}"

    @property
    def reason(self) -> str | None:
        """Who asked, in words, or None."""
        if self._signal is not None:
            return self.signal
        return "as you asked" if os.path.exists(self._path) else None  # noqa: PTH110


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


class Muted:
    """The event log of a process that follows: only the leader writes."""

    def __init__(self) -> None:
        self._events = 0

    def write(self, kind: str, **data: Any) -> Event:
        """The event as it would be, written nowhere."""
        self._events += 1
        return Event(self._events - 1, time.time(), kind, data)

    def flush(self) -> bool:
        """Nothing ever waits."""
        return True

    def sync(self) -> None:
        """There is nothing to sync."""

    def close(self) -> None:
        """There is nothing to close."""


class Session:
    """One worker's work on one run.

    `prepared` is what was loaded before there was a run, `history` the log as it was before this worker.
    `gauge` gives the figures of the `memory` event that a thread writes every two seconds, so that loading
    shows life too; more rarely while the run is `waiting`. `takes_over` is True when this process has just
    replaced the worker before it. In a `world` of several processes only the leader's session writes, and
    decides when the run ends; `group` is what connects them.
    """

    def __init__(
        self,
        folder: RunFolder,
        stop: StopWish,
        prepared: Prepared | None = None,
        world: World | None = None,
    ) -> None:
        self.folder = folder
        self.prepared = prepared or Prepared()
        self.world = world
        self.group = Alone()
        self.leads = world is None or world.rank == 0
        self.writer = EventWriter(folder.events_path) if self.leads else Muted()
        self.history: list[Event] = folder.events() if self.leads else []
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

    def join(self) -> None:
        """Meet the other processes of the run, if there are any."""
        if self.world is None:
            return
        self.phase("joining", f"Waiting for the {self.world.size} processes of the run.")
        group = Group(self.world, lambda: self.gauge(), lambda: self._stop.signal)
        self.group, group.look, group.on_hang = group, self.check_stop, self._give_up
        group.join()
        same_start(group, self.settings)
        group.connect(self.settings.training.device)

    def part(self) -> None:
        """Let the other processes go: this one does the rest alone."""
        self.group.leave(whole=True)
        self.group = Alone()

    def _give_up(self, lost: Lost) -> None:
        self.finish("error", what=lost.what, fix=lost.fix, details=lost.details)

    def emit(self, kind: str, **data: Any) -> Event:
        """Append an event to the run's log."""
        return self.writer.write(kind, **data)

    def start(self, stage: str, stages: Sequence[str], **data: Any) -> None:
        """Write the `start` event of a stage: what runs, where, and on which versions."""
        self.emit(
            "start",
            stage=stage,
            stages=list(stages),
            run=self.folder.name,
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
        return self.leads and self._wish() is not None

    def _wish(self) -> str | None:
        return self._stop.reason or self.group.wish

    def check_stop(self) -> None:
        """Raise `Stopped` when the run was asked to end, `Lost` where one of its processes is lost."""
        self.group.check()
        reason = self._wish() if self.leads else None
        if reason is not None:
            self.group.confirm()
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
                self.emit("memory", **self.gauge(), **self.group.told())
            except (OSError, RuntimeError):  # a GPU that broke can no longer be asked
                continue
