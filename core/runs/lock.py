"""Locks by files: held as long as the file is open. The interface's first frame asks too: nothing heavy."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

TRIES = 100


@contextlib.contextmanager
def open_lock(lock: Path) -> Iterator[int]:
    """The descriptor of a lock file, which is made where there is none; a lock on it ends with the block."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def seize(descriptor: int, tries: int = TRIES) -> bool:
    """Take the lock of an open file; False where another process holds it.

    A viewer's question (`is_held`) can refuse it for an instant, so it is tried for a second.
    """
    for attempt in range(tries):
        if attempt:
            time.sleep(0.01)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def is_held(lock: Path) -> bool:
    """True while another process holds the lock; asked with `LOCK_SH`, so that two viewers do not see
    each other. A lock that does not exist is not held."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
