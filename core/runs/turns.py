"""Who goes first: the short runs of a search for the learning rate give way to the person's own runs.

Two trainings side by side take each other's cores and memory: both become slow, and neither has the memory
that was found free for it. So a search works while nothing else does; its short run ends with a checkpoint
when a run begins, and goes on there once that has ended. Of two searches the later one waits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ollama_tune.core.paths import data_dir, runs_dir
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.lock import is_held, open_lock, seize

ANNOUNCED = 60.0
"""Seconds for which a run that is about to start keeps searches away; once it is up, it does so itself."""
LEAVE = 30.0
"""Seconds that a run waits for the short run's checkpoint before it starts all the same."""
POLL = 0.2


def searches_dir() -> Path:
    """Where the searches are, each in a folder of its own."""
    return data_dir() / "rates"


def searching() -> bool:
    """Whether learning rates are being tried now."""
    return any(is_held(lock) for lock in searches_dir().glob("*/lock"))


def at_work() -> str:
    """The newest run that a worker trains or exports now; empty where there is none. One that is paused
    uses no cores, so it keeps nobody waiting."""
    for lock in sorted(runs_dir().glob("*/lock"), key=lambda path: path.parent.name, reverse=True):
        folder = RunFolder(lock.parent)
        if not folder.pause_path.exists() and is_held(lock):
            return folder.name
    return ""


def gone_before(search: Path) -> str:
    """What the search of that folder waits for, in words; empty where it is its turn."""
    if name := at_work():
        return name
    if time.time() - _changed(_announcement()) < ANNOUNCED:
        return "the run that is being started"
    turn = searches_dir() / "turn"
    other = is_held(turn) and turn.read_text(encoding="utf-8") != search.name
    return "another search for the learning rate" if other else ""


def step_aside() -> None:
    """Have searches give their memory back before a run is started; returns when they have, or after
    `LEAVE` seconds.

    Whoever looks at free memory before a start calls it first; every start calls it, and then finds nothing
    to wait for.
    """
    short = [RunFolder(lock.parent) for lock in searches_dir().glob("*/*/lock")]
    if not (searching() or any(folder.alive() for folder in short)):
        return
    _announcement().touch(mode=0o600)
    for folder in short:
        if folder.alive():
            folder.stop_path.touch(mode=0o600)
    deadline = time.monotonic() + LEAVE
    while any(folder.alive() for folder in short) and time.monotonic() < deadline:
        time.sleep(POLL)


@contextlib.contextmanager
def turn(search: Path, meanwhile: Callable[[], object]) -> Iterator[None]:
    """Work alone among the searches; until it is this one's turn, `meanwhile` is called, which may raise."""
    path = searches_dir() / "turn"
    with open_lock(path) as descriptor:
        while not seize(descriptor, tries=1):
            meanwhile()
            time.sleep(POLL)
        path.write_text(search.name, encoding="utf-8")
        yield


def _announcement() -> Path:
    return searches_dir() / "aside"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
