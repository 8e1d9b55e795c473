"""The run folder: what is in it, who holds it, and what state that means."""

from __future__ import annotations

import datetime
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
from ollama_tune.core.files import DISK_FULL, disk_full, not_made, require_room, write_atomic
from ollama_tune.core.paths import runs_dir
from ollama_tune.core.plan.settings import ExportSettings, Settings, load, parse
from ollama_tune.core.plan.yaml_lines import read_marked
from ollama_tune.core.runs.events import Event, effective, last_event, read_events
from ollama_tune.core.runs.identity import boot_id, myself, same_process
from ollama_tune.core.runs.lock import is_held, seize
from ollama_tune.core.runs.ready import ready

SILENCE = 60.0
TAIL = 20


class State(str, Enum):
    """What a run is doing; the value is the word shown to people."""

    NEW = "not started"
    RUNNING = "running"
    PAUSED = "paused"
    SILENT = "no sign of life"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    CRASHED = "crashed"


ALIVE = (State.RUNNING, State.PAUSED, State.SILENT)
"""The states in which a worker holds the run."""


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
        return self.state in ALIVE


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
    def pause_path(self) -> Path:
        """Its existence is the wish to wait."""
        return self.path / "pause"

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
    def model(self) -> Path:
        """The tuned model itself, a folder that transformers loads, where its own weights were trained."""
        return self.path / "model"

    @property
    def tuned(self) -> Path | None:
        """What was trained, once it is finished: the adapter's folder, or the model's."""
        return next((folder for folder in (self.adapter, self.model) if folder.is_dir()), None)

    @property
    def importance_path(self) -> Path:
        """`importance.safetensors`: what fed the best checkpoint's layers; absent if not gathered."""
        return self.path / "importance.safetensors"

    @property
    def export(self) -> Path:
        """GGUF, Modelfile, verification.json."""
        return self.path / "export"

    @property
    def export_request_path(self) -> Path:
        """`export.yaml`: the export asked for after training; `run.yaml` itself is never rewritten."""
        return self.path / "export.yaml"

    @property
    def chat_template_path(self) -> Path:
        """`chat_template.jinja`: the template of the training with everything pinned that could change."""
        return self.path / "chat_template.jinja"

    def settings(self) -> Settings:
        """The run's settings."""
        return load(self.settings_path)

    def export_settings(self) -> ExportSettings:
        """The export asked for last, else the one in `run.yaml`."""
        if self.export_request_path.exists():
            return parse({"export": read_marked(self.export_request_path).tree}).export
        return self.settings().export

    def events(self) -> list[Event]:
        """The whole log so far."""
        return read_events(self.events_path)

    def alive(self) -> bool:
        """True while a worker holds the lock."""
        return is_held(self.lock_path)

    def status(self, events: list[Event] | None = None) -> RunStatus:
        """State = lock + last event. Pass the events when a reader has them already."""
        alive = self.alive()
        known = self.events() if events is None else events
        newest = None if alive else last_event(self.events_path)
        if newest is not None and (not known or newest.n > known[-1].n):
            known = self.events()  # the worker wrote its last words after the reader's last poll
        return _status(alive, known, self)

    def state(self, end: Event | None, *, paused: bool = False) -> State:
        """The state alone, for a reader that knows the log's last event and whether the run waits."""
        return _state(self.alive(), [end] if end else [], self, paused=paused)

    def log_tail(self, lines: int = TAIL) -> str:
        """The last lines that libraries printed in the worker."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 16384, 0))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def worker(self) -> dict[str, Any]:
        """What `worker.json` says (pid, create_time, boot_id, host), empty where there is none."""
        try:
            who = json.loads(self.worker_path.read_text())
        except (OSError, ValueError):
            return {}
        return who if isinstance(who, dict) else {}

    def process(self) -> psutil.Process | None:
        """The worker's process, or None where it is gone, on another host, or its pid was reused."""
        who = self.worker()
        try:
            if who["boot_id"] != boot_id():
                return None
            process = psutil.Process(int(who["pid"]))
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return process if same_process(process, float(who["create_time"])) else None
        except (ValueError, KeyError, TypeError, psutil.Error):
            return None


class RunLock:
    """The lock a worker holds for its whole life; released by the kernel when the process ends.

    `held` is the descriptor of a worker that became this program (`launch.become`) and holds it already.
    One that does not `sign` leaves `worker.json` alone, so that it needs no room on the disk.
    """

    def __init__(self, folder: RunFolder, held: int | None = None, *, sign: bool = True) -> None:
        self._descriptor = os.open(folder.lock_path, os.O_RDWR | os.O_CREAT, 0o600) if held is None else held
        try:
            taken = seize(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            raise TuneError(
                f"The disk of {folder.path} cannot lock files: {error.strerror}.",
                "Set OLLAMA_TUNE_HOME to a folder on a local disk.",
            ) from error
        if not taken:
            os.close(self._descriptor)
            raise BusyError(
                f"The run {folder.name} is already going.",
                f"Watch it with `ollama-tune attach {folder.name}`.",
            )
        if sign:
            self._sign(folder)

    def _sign(self, folder: RunFolder) -> None:
        try:
            write_atomic(folder.worker_path, json.dumps(myself()))
        except OSError as error:
            self.release()
            raise disk_full(folder.path) if error.errno in DISK_FULL else error from error

    @property
    def descriptor(self) -> int:
        """The open file that holds the lock."""
        return self._descriptor

    def release(self) -> None:
        """Give the run back."""
        os.close(self._descriptor)


def create_run(settings: Settings, label: str, home: Path | None = None) -> RunFolder:
    """Make a new run folder (mode 0700) with its `run.yaml`; `label` ends its name, e.g. the model's.

    It lies among all runs, or in a folder `home` of somebody who keeps runs for himself. Errors as `ready`.
    """
    settings = ready(settings)
    require_room(home or runs_dir())
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M")
    base = f"{stamp}-{re.sub(r'[^a-z0-9.]+', '-', label.lower()).strip('-.')[:40] or 'run'}"
    for number in range(1, 1000):
        path = (home or runs_dir()) / (base if number == 1 else f"{base}-{number}")
        folder = RunFolder(path)
        try:
            path.mkdir(mode=0o700)
            settings.save(folder.settings_path)
        except FileExistsError:
            continue
        except OSError as error:
            if path.is_dir():
                path.rmdir()
            raise not_made(path, error) from error
        return folder
    raise TuneError(f"There are a thousand runs called {base}.", "Wait a minute or delete some.")


def list_runs() -> list[RunFolder]:
    """Every run, newest first."""
    found: list[tuple[float, str]] = []
    for path in runs_dir().glob("*/run.yaml"):
        try:
            found.append((path.stat().st_mtime, str(path.parent)))
        except FileNotFoundError:
            continue
    return [RunFolder(Path(name)) for _, name in sorted(found, reverse=True)]


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


_ENDS = {"done": State.FINISHED, "stopped": State.STOPPED, "error": State.FAILED}


def _last(events: list[Event], *kinds: str) -> Event | None:
    return next((event for event in reversed(events) if event.kind in kinds), None)


def _status(alive: bool, log: list[Event], folder: RunFolder) -> RunStatus:
    events = effective(log)
    start, step = _last(events, "start"), _last(events, "step")
    evaluation = _last([e for e in events if e.get("model") == "tuned"], "evaluation")
    turn = _last(events, "paused", "continued", "start")
    state = _state(alive, log, folder, paused=turn is not None and turn.kind == "paused")
    return RunStatus(
        state=state,
        stage=str(start["stage"]) if start else "",
        step=int(step["step"]) if step else 0,
        total_steps=next((int(e["total_steps"]) for e in reversed(events) if e.get("total_steps")), 0),
        loss=step["loss"] if step else None,
        validation_loss=evaluation["loss"] if evaluation else None,
        message=_message(state, events, folder),
        updated=events[-1].t if events else 0.0,
    )


def _state(alive: bool, events: list[Event], folder: RunFolder, *, paused: bool) -> State:
    if alive and paused:
        return State.PAUSED
    if alive:
        return State.SILENT if time.time() - _sign_of_life(events, folder) > SILENCE else State.RUNNING
    if not events:
        return State.CRASHED if folder.worker_path.exists() else State.NEW
    return _ENDS.get(events[-1].kind, State.CRASHED)


def _sign_of_life(events: list[Event], folder: RunFolder) -> float:
    """When the worker last wrote an event or, before its first one, took the run."""
    try:
        taken = folder.worker_path.stat().st_mtime
    except FileNotFoundError:
        taken = time.time()
    return max(taken, events[-1].t) if events else taken


def _message(state: State, events: list[Event], folder: RunFolder) -> str:
    if state is State.FAILED:
        return f"{events[-1]['what']} {events[-1]['fix']}"
    if state is State.CRASHED:
        printed = folder.log_tail()
        gone = "The worker ended without a word: it was killed, or no memory was left for it."
        return f"{gone} Its last lines:\n{printed}" if printed else gone
    said = _last(events, "phase", "paused") if state is State.PAUSED else _last(events, "phase")
    if said is None:
        return ""
    return str(said["text"]) if said.kind == "phase" else f"{said['what']} {said['fix']}"


def write_export_request(folder: RunFolder, values: dict[str, Any]) -> ExportSettings:
    """Store the export asked for, as changes to the last one; checked before it is written."""
    wanted = folder.export_settings().model_dump() | values
    export = parse({"export": wanted}).export
    write_atomic(folder.export_request_path, yaml.safe_dump(export.model_dump(), sort_keys=False))
    return export
