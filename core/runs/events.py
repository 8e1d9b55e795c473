"""The event log of a run: one JSON object a line, numbered without gaps, appended by one worker.

Kinds and their fields (units: bytes, seconds, tokens; every event also has `n`, `t`, `kind`):

    start         stage ("train" | "export"), stages[] (all that this worker does), pid, device, versions{},
                  model, total_steps, resumed_from (step or null), train_rows, validation_rows, left_out,
                  path, path_reason. Written at once; what is known only after reading the data is null
                  here and follows in `data`. Steps after `resumed_from` are done again and come again:
                  the last `step` event of a step counts.
    data          total_steps, train_rows, validation_rows, left_out, tokens (one epoch), longest (row),
                  predicted{name: bytes} (the peak of memory, by part)
    phase         name, text (one sentence for a person)
    progress      name, done, total, unit ("B", "rows", "tokens")
    step          step, total_steps, epoch, loss (a supervised token), learning_rate, gradient_norm,
                  useful_tokens (without padding), supervised_tokens, seconds, cpu_seconds
    evaluation    step, loss, exact_match (0..1 or null), rows, model ("base" | "tuned"); `rows` is what
                  exact_match was measured on, else what the loss was
    sample        prompt, reference, base, tuned (each text; base or tuned may be null)
    memory        device, used, peak, free, total, and parts{name: bytes} where known; once before the
                  first step also probe{predicted, measured, ratio, limit, on a GPU allocated and
                  reserved}: the peak of the worst micro-batch against what may be used
    checkpoint    step, folder (relative), bytes, best (bool), reason
    out_of_memory step (the one being computed, from 1), change (one sentence: what is done about it; null
                  where the run ends), and but for an unforeseen end: work ("probe" | "training" |
                  "evaluation" | "answers" | "checkpoint" | "reference"), batch_before and batch_after
                  (rows at once, or null), kept (whether for good), allocated and free (bytes at that
                  moment, or null), wish (what the allocator was asked for, as text, or null)
    warning       what, fix
    error         what, fix, details (technical text for the log view)
    verification  the Verification of an export as a dictionary
    stopped       stage, step, reason, resumable (bool)
    done          stage, and for train: steps, best_step, best_loss, base_exact_match,
                  tuned_exact_match, and imported (the folder an adapter of another program was taken
                  from); for export: files{}, ollama_name (or null), commands[]
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_LINE = 60_000
CHUNK = 1 << 20


@dataclass(frozen=True)
class Event:
    """One line of the log. `n` counts from 0 without gaps, `t` is Unix time."""

    n: int
    t: float
    kind: str
    data: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or the default where the event lacks it."""
        return self.data.get(name, default)


def parse_line(line: bytes) -> Event | None:
    """An event, or None where the line is not one (torn or foreign)."""
    try:
        data = json.loads(line)
        return Event(int(data.pop("n")), float(data.pop("t")), str(data.pop("kind")), data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class EventWriter:
    """Appends events; each is one `os.write` on an `O_APPEND` descriptor, from any thread.

    Opening cuts a torn last line that a killed worker left, and goes on counting after the last one.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._next = _repair(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, kind: str, **data: Any) -> Event:
        """Append one event and return it; on a full disk `OSError`, and the log is as it was before."""
        with self._lock:
            event = Event(self._next, time.time(), kind, data)
            line = _encode(event)
            written = os.write(self._descriptor, line)
            if written < len(line):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._next += 1
            return event

    def sync(self) -> None:
        """Force the log to disk; called at checkpoints and at the end."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self._descriptor)


def _encode(event: Event) -> bytes:
    head = {"n": event.n, "t": round(event.t, 3), "kind": event.kind}
    line = _json(head | event.data)
    if len(line) > MAX_LINE:
        line = _json(head | _shorten(event.data))
    if len(line) > MAX_LINE:
        line = _json(head | {"cut": len(line)})
    return line + b"\n"


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(_finite(data), allow_nan=False).encode()


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON; they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shorten(value: Any) -> Any:
    """Cut long texts and lists so that a line stays below the size that tail readers look back."""
    if isinstance(value, str) and len(value) > 2000:
        return value[:2000] + "…"
    if isinstance(value, dict):
        return {name: _shorten(item) for name, item in list(value.items())[:50]}
    return [_shorten(item) for item in value[:50]] if isinstance(value, (list, tuple)) else value


def _repair(path: Path) -> int:
    """Cut the log after its last whole event and return the next number."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        while size:
            start = max(size - MAX_LINE - 4096, 0)
            file.seek(start)
            block = file.read(size - start)
            end = block.rfind(b"\n") + 1
            line_start = block.rfind(b"\n", 0, max(end - 1, 0)) + 1
            event = parse_line(block[line_start:end])
            if event is not None:
                file.truncate(start + end)
                return event.n + 1
            size = start + line_start
        file.truncate(0)
    return 0


class EventReader:
    """Follows a log from any process; keeps a byte offset and never blocks the writer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def poll(self) -> list[Event]:
        """Every event completed since the last call."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return []
        if size <= self._offset:
            return []
        return self._read(size)

    def _read(self, size: int) -> list[Event]:
        events: list[Event] = []
        with self._path.open("rb") as file:
            while self._offset < size:
                file.seek(self._offset)
                block = file.read(min(CHUNK, size - self._offset))
                end = block.rfind(b"\n") + 1
                if not end:
                    break
                self._offset += end
                events += [e for line in block[:end].split(b"\n") if (e := parse_line(line)) is not None]
        return events


def last_event(path: Path) -> Event | None:
    """The newest whole event, without reading the rest of the log."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - MAX_LINE - 4096, 0))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return next((event for line in reversed(lines) if (event := parse_line(line)) is not None), None)


def read_events(path: Path) -> list[Event]:
    """The whole log."""
    return EventReader(path).poll()
