"""Runs a command and tells what it cost: CPU seconds, wall seconds, and the most memory of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

EVERY = 0.02


@dataclass(frozen=True)
class Cost:
    """Seconds of CPU and of the clock; `anonymous` and `resident` are the peaks in bytes, children included.

    Anonymous memory is what no file backs: pages of a mapped file can be dropped at any time, these cannot.
    """

    cpu: float
    wall: float
    anonymous: int
    resident: int

    def __add__(self, other: Cost) -> Cost:
        """One command after the other."""
        return Cost(
            self.cpu + other.cpu,
            self.wall + other.wall,
            max(self.anonymous, other.anonymous),
            max(self.resident, other.resident),
        )


def measured(command: Sequence[str], environment: dict[str, str] | None = None) -> Cost:
    """The cost of a command that must succeed; `RuntimeError` with its last words when it does not."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdout=said, stderr=subprocess.STDOUT
        )
        usage, anonymous, resident = _watch(process)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)[:200]}\n{said.read()[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began, anonymous, resident)


def _watch(process: subprocess.Popen[bytes]) -> tuple[resource.struct_rusage, int, int]:
    """Wait for the end; what it used in all, and the peaks of its memory."""
    anonymous = resident = 0
    tree = psutil.Process(process.pid)
    while True:
        found = _memory(tree)
        anonymous, resident = max(anonymous, found[0]), max(resident, found[1])
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(EVERY)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage, anonymous, resident


def _memory(tree: psutil.Process) -> tuple[int, int]:
    """Anonymous and resident bytes of a process and all it started."""
    anonymous = resident = 0
    try:
        processes = [tree, *tree.children(recursive=True)]
    except psutil.Error:
        return 0, 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
        anonymous += _kilobytes(fields.get("RssAnon", "0"))
        resident += sum(map(_kilobytes, fields.values()))
    return anonymous, resident


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) * 1024 if text.strip() else 0
