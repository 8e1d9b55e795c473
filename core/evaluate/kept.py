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

FILE = "answers.jsonl"


def key_of(*parts: Any) -> str:
    """Names a measurement by all that decides it: the model, the prompt, how the tokens are chosen."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Kept:
    """Measurements by their keys, each a JSON object on a line of a file that only grows.

    A line is written whole or, by a crash, torn; a torn last line is cut off when the file is opened.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
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

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep some measurements, all in one write."""
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
        try:
            while lines:
                lines = lines[os.write(self._descriptor, lines) :]
        except OSError as error:
            what = f"The answers cannot be kept: {error.strerror}."
            raise TuneError(what, "Make room on the disk, then give the same command again.") from error
        self._known |= {str(record["key"]): dict(record) for record in records}


@contextlib.contextmanager
def open_kept(folder: Path) -> Iterator[Kept]:
    """What is kept in a folder, held for one evaluation at a time; raises `BusyError` for a second one."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror}."
        raise TuneError(what, "Free some space, or look at the folder's permissions.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(
                "This run is being evaluated already.", "Wait for the other evaluation to end."
            ) from error
        yield Kept(folder / FILE, descriptor)
    finally:
        os.close(descriptor)
