"""Files and folders that are whole or absent: written beside, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import human_bytes

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says where a disk or a quota is used up."""
LEAST = 64 << 10
"""Bytes without which not even a run's small files can be written."""
SPARE = 16 << 20
"""Bytes that stay free behind something large: for the log, and for other programs."""
FREED = "`ollama-tune runs` shows what each run takes, and `ollama-tune delete RUN` removes one"
SMALLER = " or choose a smaller type"
PIECE = 1 << 22
"""Bytes that are read of a file at once."""


def disk_full(path: Path, need: int = LEAST, instead: str = "") -> TuneError:
    """The error of a disk with less room than the bytes needed; `instead` is what would need less."""
    free, needed = shutil.disk_usage(path).free, f"{human_bytes(need)} are needed"
    short = f"is full: {human_bytes(free)} are free, {needed}"
    return TuneError(
        f"The disk of {path} {short if free < need else f'takes no more, as by a quota: {needed}'}.",
        f"Make room{instead} and try again: {FREED}.",
    )


def not_made(path: Path, error: OSError) -> TuneError:
    """The error of a folder that cannot be made with what belongs into it."""
    if error.errno in DISK_FULL:
        return disk_full(path.parent)
    what = f"The folder {path} cannot be made: {error.strerror}."
    return TuneError(what, "Make its place writable, or set OLLAMA_TUNE_HOME to another folder.")


def require_room(path: Path, need: int = LEAST, instead: str = "") -> None:
    """Raise `TuneError` where the disk of a folder has less room; one that does not know its size has it."""
    usage = shutil.disk_usage(path)
    if usage.total and usage.free < need:
        raise disk_full(path, need, instead)


def sha256_of(*paths: Path, check: Callable[[], object] = bool) -> str:
    """SHA-256 of files, one after the other, as 64 hex digits; `check` is called before each piece, and may
    raise."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                check()
                digest.update(piece)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (or a closed file), so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that becomes `path` only if the block ends without an error."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a small file so that readers see the old content or the new, never half of it."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object in a file of figures that can be had again: a missing or damaged one is empty."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder (mode 0700) that becomes `path` only if the block ends without an error.

    A folder that had the name before goes when the new one is complete; leftovers of killed writers go first.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield part
        for file in part.iterdir():
            sync_folder(file)
        sync_folder(part)
        old = path.with_name(f".{path.name}.old.part")
        if path.exists():
            path.rename(old)
        part.rename(path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
