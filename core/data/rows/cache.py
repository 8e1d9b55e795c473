"""Where rows that were read are kept: in the cache folder, under a name that changes when the file does."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ollama_tune.core.data.files.folder import parts_of
from ollama_tune.core.data.problems import ProblemLog
from ollama_tune.core.data.rows.store import Damaged, Store
from ollama_tune.core.data.values import Reading
from ollama_tune.core.errors import TuneError
from ollama_tune.core.paths import cache_dir

KEPT_DAYS = 30
KEPT_BYTES = 8 * 2**30
"""Rows are kept so long after they were last used, and so many bytes of them, the latest used first."""
DEAD_SECONDS = 3600
"""A file that is being written grows; one that did not for so long was left by a process that was killed."""
RACE_SECONDS = 0.1
"""Two changes of a file within this time can leave the same time of change (that of the kernel is coarse)."""

Identity = list[list[Any]]


def identity(path: Path) -> Identity:
    """Path, size, times of change and inode of a file, or of every file of a folder.

    Whoever changes a file changes one of them. Empty where there is none, which reading it tells in words.
    """
    try:
        files = [part.path for part in parts_of(path, ProblemLog())] if path.is_dir() else [path]
        return [_signature(file) for file in files]
    except (OSError, ValueError, TuneError):
        return []


def _signature(file: Path) -> list[Any]:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        return [os.fspath(file), 0, 0, 0, 0]
    return [os.fspath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def newest_change(files: Identity) -> float:
    """When the last of the files was changed, in seconds since 1970."""
    return max((max(file[2], file[3]) for file in files), default=0) / 1e9


@functools.cache
def _reader() -> list[list[Any]]:
    """The version of the code that reads: names, sizes and times of its files."""
    room = Path(__file__).parents[1]
    files = sorted(file for part in ("files", "schemas", "rows") for file in (room / part).glob("*.py"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def name_of(files: Identity, reading: Reading) -> str:
    """The name under which the rows are kept; what is left out of them afterwards does not change it."""
    plain = asdict(replace(reading, include=(), exclude=()))
    text = json.dumps([files, plain, _reader()], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def folder() -> Path:
    """The folder of the kept rows; one for this process alone where the cache folder cannot be written."""
    try:
        usual = cache_dir() / "rows"
        usual.mkdir(mode=0o700, exist_ok=True)
        if os.access(usual, os.W_OK | os.X_OK):
            return usual
    except (TuneError, OSError):
        pass
    return _own_folder()


@functools.cache
def _own_folder() -> Path:
    try:
        made = tempfile.mkdtemp(prefix="ollama-tune-rows-")
    except OSError as error:
        raise TuneError(
            "There is no folder to keep the rows in while they are used.",
            "Set OLLAMA_TUNE_HOME or TMPDIR to a folder you may write to.",
            details=repr(error),
        ) from error
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def find(files: Identity, reading: Reading, where: Path) -> Store | None:
    """The kept rows of these files in this state; None where there are none, or where they may be older."""
    path = where / f"{name_of(files, reading)}.rows"
    try:
        store = Store(path)
    except (OSError, Damaged, ValueError, KeyError):
        return None
    if store.header["began"] - newest_change(files) < RACE_SECONDS:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return store


def prune(where: Path, keep: Path) -> None:
    """Remove what was not used for long, what is too much, and what killed processes left; never `keep`."""
    now, total = time.time(), 0
    for path, status in sorted(_kept(where), key=lambda entry: -entry[1].st_mtime):
        total += status.st_size
        age = now - status.st_mtime
        part = path.suffix == ".part"
        old = age > DEAD_SECONDS if part else age > KEPT_DAYS * 86400 or total > KEPT_BYTES
        if old and path != keep:
            with contextlib.suppress(OSError):
                path.unlink()


def _kept(where: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in where.iterdir():
        if path.suffix in (".rows", ".part"):
            with contextlib.suppress(OSError):
                yield path, path.stat()
