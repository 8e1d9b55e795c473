"""The question whether a lock file is held, for the interface's first frame too: it imports nothing."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


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
