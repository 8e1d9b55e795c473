"""The two models of an evaluation; a run's is measured in a process of its own, others in Ollama."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.evaluate.figures import Kind
from ollama_tune.core.evaluate.kept import Kept, key_of, mark_of
from ollama_tune.core.evaluate.material import Model, Rows, Task, Tasks
from ollama_tune.core.evaluate.ollama_side import AGAIN, ask, known_model, tasks_for, turns
from ollama_tune.core.files import sha256_of
from ollama_tune.core.models.locate import resolve
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.runs.chat import run_chat
from ollama_tune.core.runs.folder import RunFolder, find_run
from ollama_tune.core.text import human_seconds, one_line

MODULE = "ollama_tune.core.evaluate.measuring"
LOG = "measuring.log"
OLLAMA = "ollama:"
PROGRESS_SECONDS = 2.0
WORDS: Mapping[Kind, str] = {"loss": "losses", "labels": "labels", "answers": "answers"}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Side:
    """A model that is measured: `title` is a word for tables, `name` says which it is.

    `folder` is its run, with the adapter (`tuned`) or without; without a folder it is `name` in Ollama.
    """

    title: str
    name: str
    folder: RunFolder | None = None
    tuned: bool = True

    @property
    def kinds(self) -> frozenset[Kind]:
        """What can be measured: Ollama tells answers only."""
        return frozenset({"loss", "labels", "answers"}) if self.folder else frozenset({"answers"})


@dataclass
class Measured:
    """A side with its tasks and what came out, by kind and row."""

    side: Side
    rows: Rows
    tasks: Tasks
    keys: dict[tuple[Kind, int], str]
    kept: Kept
    marks: Mapping[Kind, str]

    def used(self) -> dict[str, str]:
        """The keys of all tasks, each with the mark that it is kept under."""
        return {key: self.marks[kind] for (kind, _), key in self.keys.items()}

    def record(self, kind: Kind, row: int) -> dict[str, Any] | None:
        """What was measured of a row, None where it was left out."""
        key = self.keys.get((kind, row))
        return self.kept.get(key) if key else None

    def waiting(self) -> int:
        """How many tasks are still to be done."""
        return sum(key not in self.kept for key in self.keys.values())


def sides_of(folder: RunFolder, against: str) -> tuple[Side, Side]:
    """The other model and the tuned one of a run; raises `UsageError` for what names no model."""
    if folder.tuned is None:
        what = f"The run {folder.name} has no tuned model yet."
        raise UsageError(what, "Wait until its training is done.")
    tuned = Side("tuned", folder.name, folder)
    if against == "base":
        return Side("base", folder.settings().model.source, folder, tuned=False), tuned
    if against.startswith(OLLAMA):
        return Side("ollama", against.removeprefix(OLLAMA)), tuned
    other = find_run(against)
    if other.tuned is None:
        what = f"The run {other.name} has no tuned model yet."
        raise UsageError(what, "Wait until its training is done, or name another.")
    return Side("other", other.name, other), tuned


def prepare(
    side: Side, rows: Rows, kinds: set[Kind], longest: int, kept: Kept, tasks: Tasks | None = None
) -> Measured:
    """The tasks of a side, each named by all that decides its outcome.

    `tasks` are those of another side of the same run, which are the same.
    """
    if side.folder is None:
        tasks, model = tasks_for(rows, kinds, longest), known_model(side.name)
        keys = {(t.kind, t.row): key_of(model, turns(rows, t.row), t.content()) for t in tasks.tasks}
        return Measured(
            side, rows, tasks, keys, kept, {"answers": _mark(side, rows, "answers", model, longest)}
        )
    settings = side.folder.settings()
    base = resolve(settings.model.source, settings.model.revision)
    if tasks is None:
        context = (read_json(base / "config.json") or {}).get("max_position_embeddings")
        chat = run_chat(side.folder, base)
        tasks = Model(chat, context, settings.training.sequence_length, longest).tasks(rows, kinds)
    weights = _fingerprint(side, base)
    keys = {(t.kind, t.row): key_of(weights, t.content()) for t in tasks.tasks}
    lengths: dict[Kind, int] = {"answers": longest, "loss": settings.training.sequence_length}
    marks = {kind: _mark(side, rows, kind, weights, lengths.get(kind, 0)) for kind in kinds}
    return Measured(side, rows, tasks, keys, kept, marks)


def _mark(side: Side, rows: Rows, kind: Kind, model: Sequence[Any], longest: int) -> str:
    """Measurements of one kind, side and data; they are of no more use with another model, length or file."""
    state: list[int] = []
    with contextlib.suppress(OSError):
        about = Path(rows.source).stat()
        state = [about.st_size, about.st_mtime_ns]
    return mark_of([side.title, side.name, side.tuned, rows.source, kind], model, longest, state)


def _fingerprint(side: Side, base: Path) -> list[Any]:
    """Names a run's model: its base's files by size and time, what was trained by content, its arithmetic."""
    assert side.folder is not None and side.folder.tuned is not None
    training = side.folder.settings().training
    files = [(file.name, file.stat()) for file in sorted(base.glob("*.safetensors"))]
    named: list[Any] = [(name, about.st_size, about.st_mtime_ns) for name, about in files]
    named.append(sha256_of(base / "config.json"))
    if side.tuned:
        named += [(file.name, sha256_of(file)) for file in sorted(side.folder.tuned.glob("*.*"))]
    return [*named, training.device, training.compute_dtype, training.quantization, training.path]


def measure(sides: Sequence[Measured], kept: Kept, tell: Tell) -> None:
    """Do all tasks that are not kept yet; sides of one run share a process. What is done is kept at once."""
    known = sum(len(side.keys) - side.waiting() for side in sides)
    if known:
        tell(f"{known:,} of {sum(len(side.keys) for side in sides):,} measurements are there already.")
    folders = list(dict.fromkeys(side.side.folder for side in sides))
    for folder in folders:
        waiting = [side for side in sides if side.side.folder == folder and side.waiting()]
        if folder is not None and waiting:
            _in_process(folder, waiting, kept, tell)
        elif waiting:
            _in_ollama(waiting[0], kept, tell)


class Progress:
    """Tells every few seconds how much is done of something, and how long the rest takes."""

    def __init__(self, what: str, tell: Tell) -> None:
        self._what, self._tell = what, tell
        self._began = self._last = 0.0
        self._first = self._told = -1

    def at(self, done: int, total: int) -> None:
        """So many of so many are done."""
        now = time.monotonic()
        if self._first < 0:
            self._first, self._began, self._last = done, now, now
        if done == self._told or (done < total and now - self._last < PROGRESS_SECONDS):
            return
        self._last, self._told = now, done
        left = ""
        if self._first < done < total:
            left = f", {human_seconds((now - self._began) / (done - self._first) * (total - done))} left"
        self._tell(f"  {self._what}: {done:,} of {total:,}{left}")


def _in_ollama(side: Measured, kept: Kept, tell: Tell) -> None:
    """Ask Ollama, a few questions at a time; what it answers is kept in the order of the rows."""
    waiting = [task for task in side.tasks.tasks if side.keys[task.kind, task.row] not in kept]
    progress = Progress(f"{one_line(side.side.name, 40)} in Ollama, answers", tell)
    for record in ask(side.side.name, side.rows, waiting):
        row = int(record.pop("row"))
        kept.add([record | {"key": side.keys["answers", row]}], side.marks["answers"])
        progress.at(len(side.keys) - side.waiting(), len(side.keys))


def _in_process(folder: RunFolder, sides: Sequence[Measured], kept: Kept, tell: Tell) -> None:
    """Let a child process measure; it is ended with this function, however that ends."""
    groups = [(side, kind) for side in sides for kind in WORDS if any(k == kind for k, _ in side.keys)]
    asked = {"groups": [_group(side, kind, kept) for side, kind in groups]}
    tell(f"Loading the model of {folder.name}.")
    progress = [Progress(f"{side.side.title} model, {WORDS[kind]}", tell) for side, kind in groups]
    for message in _child(folder, asked, kept.folder / LOG):
        if "error" in message:
            raise TuneError(message["error"]["what"], f"{message['error']['fix']} {AGAIN}")
        if "records" in message:
            side, kind = groups[message["group"]]
            kept.add(message["records"], side.marks[kind])
        else:
            progress[message["group"]].at(message["done"], message["total"])
    if any(side.waiting() for side in sides):
        what = "The process that measures has ended before its time."
        raise TuneError(what, f"{kept.folder / LOG} may say why. {AGAIN}")


def _group(side: Measured, kind: Kind, kept: Kept) -> dict[str, Any]:
    tasks = [_asked(task, side.keys[kind, task.row], kept) for task in side.tasks.tasks if task.kind == kind]
    return {"kind": kind, "tuned": side.side.tuned, "tasks": tasks}


def _asked(task: Task, key: str, kept: Kept) -> dict[str, Any]:
    request = task.request(key)
    if key not in kept:
        return request
    return {name: request[name] for name in ("key", "size", "longest")} | {"done": True}


def _child(folder: RunFolder, asked: Mapping[str, Any], log_path: Path) -> Iterator[dict[str, Any]]:
    """Every message of the process; it hears nothing of this terminal's Ctrl+C and is killed at the end."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(folder.path.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        with process.stdin as pipe:
            pipe.write(json.dumps(asked).encode())
        for line in process.stdout:
            yield json.loads(line)
    except (BrokenPipeError, ValueError):
        return  # it was killed; what is missing is found out by who asked
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
