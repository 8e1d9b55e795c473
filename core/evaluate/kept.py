"""What models were already measured to say: kept in the run's folder, so that an evaluation can go on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import BusyError, TuneError
from ollama_tune.core.files import write_atomic

FILE = "answers.jsonl"
GROUPS = 24
"""Of so many models, data and kinds of measurement the newest are kept: of eight evaluations or more."""


def key_of(*parts: Any) -> str:
    """Names a measurement by all that decides it: the model, the prompt, how the tokens are chosen."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def mark_of(group: Sequence[Any], *decide: Any) -> str:
    """What measurements belong to: a group, such as a model and the data it is measured on, of which only the
    newest state is kept, and all that decides this state."""
    return f"{key_of(*group)[:12]}-{key_of(*decide)[:12]}"


class Kept:
    """Measurements by their keys, each a JSON object on a line of a file that grows until it is pruned.

    A line is written whole or, by a crash, torn; a torn last line is cut off when the file is opened.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self.folder = path.parent
        self._descriptor = descriptor
        self._known: dict[str, dict[str, Any]] = {}
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(descriptor, whole)
        for line in content[:whole].splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                self._known[record["key"]] = record

    def get(self, key: str) -> dict[str, Any] | None:
        """What was measured, or None."""
        return self._known.get(key)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def add(self, records: Sequence[Mapping[str, Any]], mark: str) -> None:
        """Keep some measurements that belong to a `mark_of`, all in one write."""
        records = [dict(record) | {"of": mark} for record in records]
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
        try:
            while lines:
                lines = lines[os.write(self._descriptor, lines) :]
        except OSError as error:
            what = f"The answers cannot be kept: {error.strerror}."
            raise TuneError(what, "Make room on the disk, then give the same command again.") from error
        self._known |= {str(record["key"]): dict(record) for record in records}

    def prune(self, now: Mapping[str, str]) -> None:
        """Drop what is of no more use once an evaluation is done; nothing can be added after that.

        `now` has the mark of each key that the evaluation used. Of every group only the newest state stays,
        and only the newest groups. The file is replaced in one piece, or left alone where nothing goes.
        """
        known = {key: record for key, record in self._known.items() if key not in now}
        used = {key: self._known[key] | {"of": mark} for key, mark in now.items() if key in self._known}
        states: dict[str, str] = {}
        for record in (*known.values(), *used.values()):
            group, _, state = str(record.get("of", "")).partition("-")
            states.pop(group, None)
            states[group] = state
        newest = dict(list(states.items())[-GROUPS:])
        stay = {key: record for key, record in known.items() if _belongs(record, newest)}
        if len(stay) == len(known):
            return
        self._known = stay | used
        with contextlib.suppress(OSError):  # a full disk: it is pruned another time
            write_atomic(self._path, "".join(json.dumps(record) + "\n" for record in self._known.values()))


def _belongs(record: Mapping[str, Any], newest: Mapping[str, str]) -> bool:
    group, _, state = str(record.get("of", "")).partition("-")
    return bool(state) and newest.get(group) == state


@contextlib.contextmanager
def open_kept(folder: Path) -> Iterator[Kept]:
    """What is kept in a folder, held for one evaluation at a time; raises `BusyError` for a second one."""
    descriptor = _locked(folder / FILE)
    try:
        yield Kept(folder / FILE, descriptor)
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    """The open file; one that was replaced by its pruned successor meanwhile is opened anew."""
    while True:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            what = f"{path.parent} cannot be written: {error.strerror}."
            raise TuneError(what, "Free some space, or look at the folder's permissions.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            raise BusyError(
                "This run is being evaluated already.", "Wait for the other evaluation to end."
            ) from error
        os.close(descriptor)
