"""A real terminal for tests and pictures: a program on a pty, its screen read by pyte, keys typed into it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import pyte

KEYS = {
    "enter": "\r",
    "escape": "\x1b",
    "tab": "\t",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "backspace": "\x7f",
    "f1": "\x1bOP",
    "f5": "\x1b[15~",
    "ctrl+c": "\x03",
    "ctrl+q": "\x11",
    "ctrl+u": "\x15",
    "pagedown": "\x1b[6~",
}


class Terminal:
    """Runs a command as the leader of a session on its own pty and keeps the painted screen."""

    def __init__(
        self,
        command: list[str],
        env: Mapping[str, str],
        *,
        columns: int = 80,
        lines: int = 24,
        cwd: str | None = None,
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={"TERM": "xterm-256color", "LANG": "C.UTF-8", **env},
            cwd=cwd,
            preexec_fn=_own_terminal,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def lines(self) -> list[str]:
        """The painted screen, one string a line."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The painted screen."""
        return "\n".join(self.lines)

    def pump(self, seconds: float) -> None:
        """Read what the program paints for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._master], [], [], left)[0]:
                return
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            if not data:
                return
            self.raw += data
            self._stream.feed(data)

    def wait(self, wanted: str | Callable[[str], bool], seconds: float = 300.0) -> None:
        """Wait until a text (or a condition on the screen) is there; fails with the screen in the message."""
        condition = wanted if callable(wanted) else lambda screen: wanted in screen
        deadline = time.monotonic() + seconds
        while not condition(self.text):
            if time.monotonic() > deadline or self.ended:
                self.pump(0.2)
                if condition(self.text):
                    return
                raise AssertionError(f"Not on the screen within {seconds} s: {wanted!r}\n{self.text}")
            self.pump(0.05)

    def press(self, *keys: str, pause: float = 0.15) -> None:
        """Type named keys, or any other text as it is."""
        for key in keys:
            os.write(self._master, KEYS.get(key, key).encode())
            self.pump(pause)

    @property
    def ended(self) -> bool:
        """True when the program is gone."""
        return self.process.poll() is not None

    def finish(self, seconds: float = 300.0) -> int:
        """Wait for the program to end; returns its exit status."""
        deadline = time.monotonic() + seconds
        while not self.ended and time.monotonic() < deadline:
            self.pump(0.05)
        self.pump(0.1)
        return self.process.wait(timeout=60)

    def close(self) -> None:
        """End the program and hang up, as a closed window does."""
        if not self.ended:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(timeout=60)
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


def _own_terminal() -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that run in the background have it ignored
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
