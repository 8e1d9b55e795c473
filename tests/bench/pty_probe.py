"""A program on a pty with every byte it paints and when: what the bench of the interface measures with."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import statistics
import struct
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil

SIZE = 40, 120
QUIET = 0.4
"""Seconds without a byte after which the screen counts as settled."""
IDLE = 4.0
BUSY = 2.0
"""Percent of a core that a program at rest stays below."""
PRESSES = 40
LIMIT = 30.0
ANSWERS = (
    (re.compile(rb"\x1b\[\?2026\$p"), b"\x1b[?2026;2$y"),
    (re.compile(rb"\x1b\[\?2048\$p"), b"\x1b[?2048;0$y"),
    (re.compile(rb"\x1b\[0?c"), b"\x1b[?62;22c"),
)
NOT_TEXT = re.compile(rb"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]")
KEYS = {
    "tab": b"\t",
    "shift+tab": b"\x1b[Z",
    "enter": b"\r",
    "up": b"\x1b[A",
    "down": b"\x1b[B",
    "pagedown": b"\x1b[6~",
    "escape": b"\x1b",
    "ctrl+p": b"\x10",
    "f1": b"\x1bOP",
}


@dataclass(frozen=True)
class Figures:
    """One start: milliseconds from the start of the process, CPU seconds of the tree until settled, bytes
    painted until then; CPU seconds until nothing is done any more; then rest, memory and keys."""

    text_ms: float
    settled_ms: float
    cpu: float
    bytes: int
    rest_cpu: float
    idle_cpu: float
    idle_bytes: float
    uss: float
    key_p50: float
    key_p95: float
    cpu_per_key: float


class Probe:
    """Starts a command on its own pty; reads, types, and looks at the process tree."""

    def __init__(self, command: Sequence[str], home: str) -> None:
        place = {"OLLAMA_TUNE_HOME": home, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home}
        env = {**os.environ, **place, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
        for name in ("TMUX", "STY", "NO_COLOR"):
            env.pop(name, None)
        self._began = time.perf_counter()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
            os.execvpe(command[0], list(command), env)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
        self._process = psutil.Process(self.pid)
        self.painted = 0
        self.tail = b""

    def now(self) -> float:
        """Milliseconds since the start."""
        return 1e3 * (time.perf_counter() - self._began)

    def read(self, seconds: float) -> bool:
        """One read of what comes within the time; False for silence."""
        if not select.select([self._fd], [], [], max(seconds, 0.0))[0]:
            return False
        with contextlib.suppress(OSError):
            data = os.read(self._fd, 1 << 16)
            for query, answer in ANSWERS:
                for _ in query.findall(data):
                    os.write(self._fd, answer)
            self.painted += len(data)
            self.tail = (self.tail + data)[-400_000:]
            return bool(data)
        raise RuntimeError(f"The program ended: {self.text()[-600:]}")

    def text(self) -> str:
        """What was painted lately, without its control sequences."""
        return NOT_TEXT.sub(b"", self.tail).decode("utf-8", "replace")

    def until(self, text: str) -> float:
        """Milliseconds until a text was painted."""
        wanted = text.replace(" ", "")
        while self.now() < 1e3 * LIMIT:
            if self.read(0.05) and wanted in self.text().replace(" ", ""):
                return self.now()
        raise RuntimeError(f"{text!r} was not painted: {self.text()[-600:]}")

    def settle(self) -> float:
        """Milliseconds until the last byte before a silence."""
        last = self.now()
        while self.read(QUIET):
            last = self.now()
        return last

    def press(self, key: str, limit: float = 2.0) -> float:
        """Milliseconds from a key to the first byte of its answer; all of the answer is read."""
        began = self.now()
        os.write(self._fd, KEYS.get(key, key.encode()))
        answered = self.read(limit)
        took = self.now() - began
        while answered and self.read(0.06):
            pass
        return took if answered else 1e3 * limit

    def echo(self, letter: str, limit: float = 2.0) -> float:
        """Milliseconds from a letter to its own repaint."""
        began, self.tail = self.now(), b""
        os.write(self._fd, letter.encode())
        while self.now() - began < 1e3 * limit:
            if self.read(0.1) and letter.encode() in self.tail:
                return self.now() - began
        return 1e3 * limit

    def watch(self, seconds: float) -> tuple[float, float]:
        """CPU percent and painted bytes a second over a time without keys."""
        spent, painted, began = self.cpu(), self.painted, time.perf_counter()
        while (left := began + seconds - time.perf_counter()) > 0:
            self.read(left)
        return 100 * (self.cpu() - spent) / seconds, (self.painted - painted) / seconds

    def rest(self) -> float:
        """CPU seconds until two seconds pass in which hardly anything is done: what was put off counts."""
        while self.now() < 1e3 * LIMIT and self.watch(2.0)[0] > BUSY:
            pass
        return self.cpu()

    def tree(self) -> list[psutil.Process]:
        """The program and its descendants, without a training worker that was warmed."""
        found = [self._process, *self._process.children(recursive=True)]
        return [process for process in found if not _is_worker(process)]

    def cpu(self) -> float:
        """CPU seconds of the tree."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def own(self) -> float:
        """CPU seconds of the program alone: what its children read meanwhile is no part of a key."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def uss(self) -> float:
        """Memory that only the tree holds, MiB."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().uss
        return total / 2**20

    def close(self) -> None:
        """End it and everything that it started."""
        for process in [self._process, *self._process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        os.close(self._fd)
        os.waitpid(self.pid, 0)


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any("core.train" in part for part in process.cmdline())
    return True


@contextlib.contextmanager
def started(command: Sequence[str], home: str) -> Iterator[Probe]:
    """A program on a pty, ended afterwards."""
    probe = Probe(command, home)
    try:
        yield probe
    finally:
        probe.close()


def percentile(values: Sequence[float], share: float) -> float:
    """The value at that share of the sorted ones."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def measure(command: Sequence[str], text: str, keys: Sequence[str], home: str) -> Figures:
    """One start with all figures."""
    with started(command, home) as probe:
        text_ms = probe.until(text)
        settled = probe.settle()
        cpu, painted = probe.cpu(), probe.painted
        rest = probe.rest()
        idle_cpu, idle_bytes = probe.watch(IDLE)
        uss, before = probe.uss(), probe.cpu()
        times = [probe.press(keys[number % len(keys)]) for number in range(PRESSES)]
        spent = 1e3 * (probe.cpu() - before) / PRESSES
        return Figures(
            text_ms,
            settled,
            cpu,
            painted,
            rest,
            idle_cpu,
            idle_bytes,
            uss,
            statistics.median(times),
            percentile(times, 0.95),
            spent,
        )
