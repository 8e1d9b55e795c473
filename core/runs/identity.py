"""Which process and which boot of a machine somebody was: a process id alone comes again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

SAME_PROCESS = 1.5
"""Seconds by which two looks at a process' start may differ."""


def same_process(process: psutil.Process, create_time: float) -> bool:
    """True when a process is the one started then; the clock's correction can shift what the system says."""
    return abs(process.create_time() - create_time) < SAME_PROCESS


def boot_id() -> str:
    """Names this boot of this machine and, on Linux, what its process ids count in.

    So a pid of an earlier boot, of another machine that shares the disk, or of another container of the same
    one is never taken for a live process of ours.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return str(psutil.boot_time())


def myself() -> dict[str, Any]:
    """Who this process is, as `worker.json` says it; `launcher` where another process started it for us."""
    process = psutil.Process()
    who = {
        "pid": process.pid,
        "create_time": process.create_time(),
        "boot_id": boot_id(),
        "host": os.uname().nodename,
    }
    return who | ({"launcher": os.getppid()} if "TORCHELASTIC_RUN_ID" in os.environ else {})
