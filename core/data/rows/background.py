"""Reads a data set in a process of its own, so that whoever waits for it stays free for other work.

What reading needs, numpy above all, is 15 MiB that the one who waits never holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from ollama_tune.core.data.child import NICE, News, run_in_child, say, work
from ollama_tune.core.data.files.hub import resolve_data
from ollama_tune.core.data.load import profile_of, stored
from ollama_tune.core.data.rows import cache
from ollama_tune.core.data.rows.scan import Progress
from ollama_tune.core.data.rows.store import Damaged, Store
from ollama_tune.core.data.values import DatasetProfile, Reading
from ollama_tune.core.errors import TuneError

SMALL = 4 * 2**20
"""Files up to so many bytes are read too soon to give way to others: somebody waits."""


def scan_in_child(
    path: str, reading: Reading, on_progress: Progress, cancelled: Callable[[], bool]
) -> DatasetProfile:
    """As `load_dataset`, in a child process, which gives way to others where the data set is large.

    `on_progress` is called with (bytes done, bytes in all) about every 100 ms and `cancelled` is asked as
    often. Raises `Cancelled`, and the child's `TuneError`; nothing half-written stays in either case.
    """
    files, where = cache.identity(resolve_data(path, reading, on_progress)), cache.folder()
    known = cache.find(files, reading, where)
    if known is not None:
        return profile_of(known, path, reading)
    nice = 0 if files and sum(file[1] for file in files) <= SMALL else NICE
    order = {"path": path, "reading": asdict(reading), "where": os.fspath(where)}
    stopped = "Reading the data stopped before its end; perhaps the memory was full."
    told = run_in_child(__name__, order, on_progress, cancelled, stopped, nice=nice)
    try:
        return profile_of(Store(Path(told["store"])), path, reading)
    except (OSError, Damaged) as error:
        raise TuneError(
            "The rows that were read are gone.", "Read the data again.", details=repr(error)
        ) from error


def _read(order: News) -> News:
    """The child: reads what the order names."""
    reading = replace(Reading.of(order["reading"]), include=(), exclude=())

    def progress(done: int, total: int) -> None:
        say({"progress": (done, total)})

    store = stored(order["path"], reading, Path(order["where"]), progress)
    return {"store": os.fspath(store.path)}


if __name__ == "__main__":
    work(_read)
