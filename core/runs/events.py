"""The event log of a run: one JSON object a line, numbered without gaps, appended by one worker.

Kinds and their fields (units: bytes, seconds, tokens; every event also has `n`, `t`, `kind`):

    start         stage ("train" | "export"), stages[] (all that this worker does), run (its name), pid,
                  device, versions{}, model, total_steps, resumed_from (step or null), train_rows,
                  validation_rows, left_out, path, path_reason. Written at once; what is known only after
                  reading the data is null here and follows in `data`. Steps after `resumed_from` are done
                  again and come again: `effective` leaves out what they were before.
    data          total_steps, train_rows, validation_rows, left_out, tokens (one epoch), longest (row),
                  predicted{name: bytes} (the peak of memory, by part), path, path_reason, and where the
                  card's rate is known: flops_per_token, peak_flops (a second), card
    phase         name, text (one sentence for a person)
    progress      name, done, total, unit ("B", "rows", "tokens")
    step          step, total_steps, epoch, loss (a supervised token), learning_rate, gradient_norm,
                  useful_tokens (without padding), supervised_tokens, seconds, cpu_seconds, and mfu where
                  the card's rate is known: useful_tokens x flops_per_token / seconds / peak_flops. loss
                  or gradient_norm is null where it was not finite: such a step changed no weight. With
                  training.objective dpo loss is that of a pair, and there are reward_margin (beta x how
                  much more the better answer gained in log-likelihood than the worse one, against the
                  model without adapter; the mean) and reward_accuracy (share of pairs above 0)
    evaluation    step, loss, exact_match (0..1 or null), rows, model ("base" | "tuned"); `rows` is what
                  exact_match was measured on, else what the loss was. In between also best_step,
                  best_loss, without_better (evaluations since the loss had clearly fallen; early
                  stopping counts them), patience (how many of them end the run; 0 never), and where
                  another metric than the loss decides: metric (its name), score (shares from 0 to 1,
                  bleu and chrf to 100), best_score, score_rows (questions answered). With dpo also
                  reward_margin and reward_accuracy of the held-out pairs; exact_match is against the
                  better answer, which dpo does not teach to copy
    sample        prompt, reference, base, tuned (each text; base or tuned may be null); in between also
                  step and cut (the answer was not ended by the model)
    memory        device, used, peak, free, total, and parts{name: bytes} of the peak where known (weights,
                  adapter, gradients, optimizer, libraries, activations, cache); once before the
                  first step also probe{predicted, measured, ratio, limit, on a GPU allocated and
                  reserved}: the peak of the worst micro-batch against what may be used. Of several
                  processes these are rank 0's, with its host, and ranks[] has the others': rank, host,
                  device, used, peak, free, total
    checkpoint    step, folder (relative), bytes, best (bool), reason
    out_of_memory step (the one being computed, from 1), change (one sentence: what is done about it; null
                  where the run ends), and but for an unforeseen end: work ("probe" | "training" |
                  "evaluation" | "answers" | "checkpoint" | "reference"), batch_before and batch_after
                  (rows at once, or null), kept (whether for good), allocated and free (bytes at that
                  moment, or null), wish (what the allocator was asked for, as text, or null)
    paused        step, reason ("request" | "disk"), what, fix: the worker waits, with its memory held
    continued     step, seconds (how long it waited)
    warning       what, fix, and back_to where the run went back to that step: later ones come again
    error         what, fix, details (technical text for the log view)
    verification  the Verification of an export as a dictionary
    stopped       stage, step, reason, resumable (bool)
    done          stage, and for train: steps, best_step, best_loss, base_exact_match,
                  tuned_exact_match, early (why the run ended before its last step, one sentence, or
                  null), and imported (the folder an adapter of another program was taken
                  from); for export: files{}, ollama_name (or null), commands[]
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.files import DISK_FULL

MAX_LINE = 60_000
CHUNK = 1 << 20
TOGETHER = 200
"""So many lines are parsed at once."""
NO_EVENT = (ValueError, KeyError, TypeError, AttributeError)
RESERVE = 1 << 17
"""Bytes of disk kept for the log's next lines: the last words of a run on a full disk."""
KEEP_SIZE = 1


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
        return _event(json.loads(line))
    except NO_EVENT:
        return None


def _event(data: Any) -> Event:
    return Event(int(data.pop("n")), float(data.pop("t")), str(data.pop("kind")), data)


def parse_lines(lines: list[bytes]) -> list[Event]:
    """The events of many lines. Read as one list they cost half as much as one by one; lines that are no
    events are then looked for one by one."""
    events: list[Event] = []
    for start in range(0, len(lines), TOGETHER):
        part = lines[start : start + TOGETHER]
        try:
            found = [_event(data) for data in json.loads(b"[" + b",".join(part) + b"]")]
        except NO_EVENT:
            found = []
        if len(found) != len(part):
            found = [event for line in part if (event := parse_line(line)) is not None]
        events += found
    return events


class EventWriter:
    """Appends events; each is one `os.write` on an `O_APPEND` descriptor, from any thread.

    Opening cuts a torn last line that a killed worker left, and goes on counting after the last one. On a
    full disk no line is torn or lost: what does not fit waits in memory, in order, for the next call.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._next = _repair(path)
        self._waiting: deque[bytes] = deque()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._reserved, self._low = 0, False
        self._reserve()

    def write(self, kind: str, **data: Any) -> Event:
        """Append one event and return it; it waits in memory while the disk is full."""
        with self._lock:
            event = Event(self._next, time.time(), kind, data)
            self._next += 1
            self._waiting.append(_encode(event))
            self._write_waiting()
            return event

    def flush(self) -> bool:
        """Write what waits for room; False while the disk is full or has none to keep for last words."""
        with self._lock:
            self._write_waiting()
            return not (self._waiting or self._low)

    def sync(self) -> None:
        """Force the log to disk; called before checkpoints and at the end."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Sync, give back the room that was kept, and close."""
        self.flush()
        os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size)
        self.sync()
        os.close(self._descriptor)

    def _write_waiting(self) -> None:
        while self._waiting and self._append(self._waiting[0]):
            self._waiting.popleft()
        self._reserve()

    def _append(self, line: bytes) -> bool:
        """True when the line is in the log whole; False on a full disk, then the log is as it was before."""
        written = 0
        try:
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            if written:
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            if error.errno not in DISK_FULL:
                raise
        return written == len(line)

    def _reserve(self) -> None:
        """Have the file system keep room behind the log's end, where it can."""
        end = os.fstat(self._descriptor).st_size
        start = max(end, self._reserved)
        if start - end < RESERVE // 2:
            self._low = not allocate(self._descriptor, start, RESERVE)
            self._reserved = start if self._low else start + RESERVE


def allocate(descriptor: int, start: int, length: int) -> bool:
    """Let Linux' `fallocate` keep room for an open file without changing its size; False on a full disk.

    True too where the system or the file system cannot do that: then nothing is known.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return True
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    failed = libc.fallocate(descriptor, KEEP_SIZE, start, length) != 0
    return not (failed and ctypes.get_errno() in DISK_FULL)


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
    """Follows a log from any process; keeps a byte offset and never blocks the writer.

    `behind` is True where the last call left some of the log for the next one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.behind = False

    def poll(self, most: int | None = None) -> list[Event]:
        """Every event completed since the last call, or those of the next `most` bytes (at least a line)."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return []
        self.behind = most is not None and size > self._offset + most
        if size <= self._offset:
            return []
        return self._read(self._offset + most if self.behind and most else size)

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
                events += parse_lines(block[:end].split(b"\n")[:-1])
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


def back_to(event: Event) -> int | None:
    """The step that a run was at again with this event: what it told of later ones counts no more.

    None where it went on as it was. A resume goes back to its checkpoint, and so does a run whose loss
    became infinite.
    """
    if event.kind == "start" and event.get("stage") == "train":
        return int(event.get("resumed_from") or 0)
    found = event.get("back_to") if event.kind == "warning" else None
    return None if found is None else int(found)


def effective(events: Iterable[Event]) -> list[Event]:
    """The log of a run as if nothing had interrupted it: each step, evaluation, checkpoint and sample once.

    Steps that were done again count as they were done last, and so does what was measured or written twice
    because the worker ended before the next checkpoint. All other events stay, in order.
    """
    kept: dict[tuple[Any, ...], Event] = {}
    for event in events:
        step = back_to(event)
        if step is not None:
            kept = {
                key: old
                for key, old in kept.items()
                if key[0] not in _STEPS or (old.get("step") or 0) <= step
            }
        key = (event.kind, *_SAME.get(event.kind, _number)(event))
        kept.pop(key, None)
        kept[key] = event
    return list(kept.values())


def _number(event: Event) -> tuple[Any, ...]:
    return (event.n,)


_STEPS = frozenset({"step", "evaluation", "checkpoint", "sample"})
_SAME: dict[str, Callable[[Event], tuple[Any, ...]]] = {
    "step": lambda event: (event["step"],),
    "checkpoint": lambda event: (event["step"],),
    "evaluation": lambda event: (event["model"], event["step"], event.get("exact_match") is None),
    "sample": lambda event: (event["prompt"], event.get("step"), event.get("tuned") is None),
}
"""What two events of a kind have in common when the later one takes the place of the earlier."""
