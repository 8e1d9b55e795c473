"""The run folder: what is in it, who holds it, and what state that means."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import psutil
import yaml

from ollama_tune.core.errors import BusyError, TuneError, UsageError
from ollama_tune.core.files import write_atomic
from ollama_tune.core.paths import runs_dir
from ollama_tune.core.plan.settings import ExportSettings, Settings, load, parse, read_yaml
from ollama_tune.core.runs.events import Event, read_events

SILENCE = 60.0
TAIL = 20


class State(str, Enum):
    """What a run is doing; the value is the word shown to people."""

    NEW = "not started"
    RUNNING = "running"
    SILENT = "no sign of life"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    CRASHED = "crashed"


@dataclass(frozen=True)
class RunStatus:
    """State of a run with the figures of its last events; losses None before the first."""

    state: State
    stage: str
    step: int
    total_steps: int
    loss: float | None
    validation_loss: float | None
    message: str
    updated: float

    @property
    def alive(self) -> bool:
        """True while a worker holds the run."""
        return self.state in (State.RUNNING, State.SILENT)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by their names."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: its folder's name."""
        return self.path.name

    @property
    def settings_path(self) -> Path:
        """`run.yaml`, written once before the start."""
        return self.path / "run.yaml"

    @property
    def events_path(self) -> Path:
        """The append-only event log."""
        return self.path / "events.jsonl"

    @property
    def lock_path(self) -> Path:
        """Locked by the worker for its whole life."""
        return self.path / "lock"

    @property
    def worker_path(self) -> Path:
        """Who the worker is, so that it can be signalled."""
        return self.path / "worker.json"

    @property
    def stop_path(self) -> Path:
        """Its existence is the wish to stop."""
        return self.path / "stop"

    @property
    def log_path(self) -> Path:
        """Everything libraries print in the worker."""
        return self.path / "stdout.log"

    @property
    def checkpoints(self) -> Path:
        """Resumable states, newest kept."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The finished adapter in PEFT's format (the best checkpoint's)."""
        return self.path / "adapter"

    @property
    def export(self) -> Path:
        """GGUF, Modelfile, verification.json."""
        return self.path / "export"

    @property
    def export_request_path(self) -> Path:
        """`export.yaml`: the export asked for after training; `run.yaml` itself is never rewritten."""
        return self.path / "export.yaml"

    def settings(self) -> Settings:
        """The run's settings."""
        return load(self.settings_path)

    def export_settings(self) -> ExportSettings:
        """The export asked for last, else the one in `run.yaml`."""
        if self.export_request_path.exists():
            return parse({"export": read_yaml(self.export_request_path)}).export
        return self.settings().export

    def events(self) -> list[Event]:
        """The whole log so far."""
        return read_events(self.events_path)

    def alive(self) -> bool:
        """True while a worker holds the lock; `LOCK_SH`, so that two viewers do not see each other."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def status(self, events: list[Event] | None = None) -> RunStatus:
        """State = lock + last event. Pass the events when a reader has them already."""
        alive = self.alive()
        return _status(alive, self.events() if events is None else events, self.log_tail)

    def log_tail(self, lines: int = TAIL) -> str:
        """The last lines that libraries printed in the worker."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 16384, 0))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def process(self) -> psutil.Process | None:
        """The worker's process, or None where it is gone, on another host, or its pid was reused."""
        try:
            who = json.loads(self.worker_path.read_text())
            if who["boot_id"] != boot_id():
                return None
            process = psutil.Process(int(who["pid"]))
            same = abs(process.create_time() - float(who["create_time"])) < 0.05
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, KeyError, psutil.Error):
            return None


class RunLock:
    """The lock a worker holds for its whole life; released by the kernel when the process ends."""

    def __init__(self, folder: RunFolder) -> None:
        self._descriptor = os.open(folder.lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        if not self._take():
            os.close(self._descriptor)
            raise BusyError(f"The run {folder.name} is already going.", "Watch it with `ollama-tune attach`.")
        process = psutil.Process()
        who = {
            "pid": process.pid,
            "create_time": process.create_time(),
            "boot_id": boot_id(),
            "host": os.uname().nodename,
        }
        write_atomic(folder.worker_path, json.dumps(who))

    def _take(self) -> bool:
        """A viewer's probe can refuse a starting worker for an instant, so try for a second."""
        for _ in range(100):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(0.01)
        return False

    def release(self) -> None:
        """Give the run back."""
        os.close(self._descriptor)


def boot_id() -> str:
    """Names this boot of this machine, so that a pid of an earlier boot is never taken for a live one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(psutil.boot_time())


def create_run(settings: Settings, label: str) -> RunFolder:
    """Make a new run folder (mode 0700) with its `run.yaml`; `label` ends its name, e.g. the model's."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M")
    base = f"{stamp}-{re.sub(r'[^a-z0-9.]+', '-', label.lower()).strip('-.')[:40] or 'run'}"
    for number in range(1, 1000):
        path = runs_dir() / (base if number == 1 else f"{base}-{number}")
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise TuneError(
                f"The run folder {path} cannot be made: {error.strerror}.",
                "Free some space or set OLLAMA_TUNE_HOME to another folder.",
            ) from error
        folder = RunFolder(path)
        settings.save(folder.settings_path)
        return folder
    raise TuneError(f"There are a thousand runs called {base}.", "Wait a minute or delete some.")


def list_runs() -> list[RunFolder]:
    """Every run, newest first."""
    found = [RunFolder(path.parent) for path in runs_dir().glob("*/run.yaml")]
    return sorted(found, key=lambda folder: folder.settings_path.stat().st_mtime, reverse=True)


def find_run(name: str | None) -> RunFolder:
    """The run with that name or folder; without a name the newest, preferring one that is alive."""
    if name is None:
        runs = list_runs()
        if not runs:
            raise UsageError("There is no run yet.", "Start one with `ollama-tune`.")
        return next((folder for folder in runs if folder.alive()), runs[0])
    for path in (Path(name), runs_dir() / name):
        if (path / "run.yaml").is_file():
            return RunFolder(path.absolute())
    raise UsageError(f"There is no run called {name!r}.", "See the names with `ollama-tune runs`.")


def _last(events: list[Event], *kinds: str) -> Event | None:
    return next((event for event in reversed(events) if event.kind in kinds), None)


def _status(alive: bool, events: list[Event], tail: Any) -> RunStatus:
    start, step = _last(events, "start"), _last(events, "step")
    evaluation = _last([e for e in events if e.get("model") == "tuned"], "evaluation")
    end = events[-1] if events else None
    state = _state(alive, end)
    return RunStatus(
        state=state,
        stage=str(start["stage"]) if start else "",
        step=int(step["step"]) if step else 0,
        total_steps=int(_last_total(events)),
        loss=step["loss"] if step else None,
        validation_loss=evaluation["loss"] if evaluation else None,
        message=_message(state, events, tail),
        updated=end.t if end else 0.0,
    )


def _last_total(events: list[Event]) -> int:
    return next((int(e["total_steps"]) for e in reversed(events) if e.get("total_steps")), 0)


def _state(alive: bool, end: Event | None) -> State:
    if alive:
        silent = end is not None and time.time() - end.t > SILENCE
        return State.SILENT if silent else State.RUNNING
    if end is None:
        return State.NEW
    return {"done": State.FINISHED, "stopped": State.STOPPED, "error": State.FAILED}.get(
        end.kind, State.CRASHED
    )


def _message(state: State, events: list[Event], tail: Any) -> str:
    if state is State.FAILED:
        return f"{events[-1]['what']} {events[-1]['fix']}"
    if state is State.CRASHED:
        return f"The worker ended without a word. Its last lines:\n{tail()}"
    phase = _last(events, "phase")
    return str(phase["text"]) if phase else ""


def write_export_request(folder: RunFolder, values: dict[str, Any]) -> ExportSettings:
    """Store the export asked for, as changes to the last one; checked before it is written."""
    wanted = folder.export_settings().model_dump() | values
    export = parse({"export": wanted}).export
    write_atomic(folder.export_request_path, yaml.safe_dump(export.model_dump(), sort_keys=False))
    return export
