"""The terminal is given back by every signal, and taken again by `fg`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.terminal import Terminal
from tests.tui.conftest import Corner

ENTERED, LEFT, NO_MOUSE = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?1000l"
COMMAND = f"{sys.executable} -m ollama_tune.tui"
ENV = {"TERM": "xterm-256color", "PS1": "READY> ", "OLLAMA_HOST": "127.0.0.1:9", "HF_HUB_OFFLINE": "1"}


def shell(corner: Corner) -> Terminal:
    """An interactive shell with job control."""
    home = {"OLLAMA_TUNE_HOME": str(corner.home / "tune-home"), "HISTFILE": "/dev/null"}
    command = ["bash", "--norc", "--noprofile", "-i"]
    return Terminal(command, {**os.environ, **ENV, **home}, cwd=str(corner.home))


def window(terminal: Terminal) -> psutil.Process:
    """The process of the window below the shell."""
    children = psutil.Process(terminal.process.pid).children()
    return next(child for child in children if "ollama_tune.tui" in child.cmdline())


def until(condition: object, what: str, seconds: float = 300.0) -> None:
    """Wait for a condition without reading the terminal."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def since(terminal: Terminal, mark: int) -> bytes:
    return terminal.raw[mark:]


def painted(terminal: Terminal, mark: int, wanted: bytes, seconds: float = 300.0) -> None:
    """Wait until bytes come after a place in what the terminal was sent."""
    terminal.wait(lambda _screen: wanted in since(terminal, mark), seconds)


def repainted(terminal: Terminal, mark: int) -> None:
    """Wait until the window was entered again and painted whole."""
    painted(terminal, mark, ENTERED)
    terminal.wait(lambda _screen: b"This computer" in since(terminal, mark).rpartition(ENTERED)[2])


def test_ctrl_z_gives_the_shell_back_and_fg_the_window(corner: Corner) -> None:
    with shell(corner) as terminal:
        terminal.wait("READY>")
        terminal.press(f"{COMMAND}\r")
        terminal.wait("This computer")
        mark = len(terminal.raw)
        terminal.press("\x1a")
        painted(terminal, mark, b"Stopped")
        asleep = since(terminal, mark)
        assert asleep.index(NO_MOUSE) < asleep.index(b"Stopped")
        assert asleep.index(LEFT) < asleep.index(b"Stopped")
        process = window(terminal)
        assert process.status() == psutil.STATUS_STOPPED
        terminal.press("echo the-terminal-is-$((40+2))\r")
        painted(terminal, mark, b"the-terminal-is-42")

        mark = len(terminal.raw)
        terminal.press("fg\r")
        repainted(terminal, mark)
        terminal.press("enter")
        terminal.wait("Step 2 of 9")
        mark = len(terminal.raw)
        terminal.press("ctrl+q")
        painted(terminal, mark, b"answers are kept")
        terminal.press("stty -a | grep -o ' icanon' | sed s/^/mode/\r")
        painted(terminal, mark, b"mode icanon")


def test_in_the_background_the_window_stays_asleep(corner: Corner) -> None:
    with shell(corner) as terminal:
        terminal.wait("READY>")
        terminal.press(f"{COMMAND}\r")
        terminal.wait("This computer")
        terminal.press("\x1a")
        process = window(terminal)
        until(lambda: process.status() == psutil.STATUS_STOPPED, "it did not stop")
        terminal.pump(0.5)
        mark = len(terminal.raw)
        terminal.press("bg\r")
        terminal.pump(1.0)
        until(lambda: process.status() == psutil.STATUS_STOPPED, "it writes from the background")
        assert ENTERED not in since(terminal, mark)
        mark = len(terminal.raw)
        terminal.press("fg\r")
        repainted(terminal, mark)


def test_a_stop_from_outside_is_slept_through(corner: Corner) -> None:
    with shell(corner) as terminal:
        terminal.wait("READY>")
        terminal.press(f"{COMMAND}\r")
        terminal.wait("This computer")
        process = window(terminal)
        mark = len(terminal.raw)
        process.suspend()
        painted(terminal, mark, b"Stopped")
        mark = len(terminal.raw)
        terminal.press("fg\r")
        repainted(terminal, mark)
        assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) < 12
        terminal.press("enter")
        terminal.wait("Step 2 of 9")
        terminal.press("escape", pause=0.4)
        terminal.wait("Step 1 of 9")
        mark = len(terminal.raw)
        terminal.press("ctrl+q")
        painted(terminal, mark, b"READY>")
        terminal.press("stty -a | grep -o ' icanon' | sed s/^/mode/\r")
        painted(terminal, mark, b"mode icanon")


def alone(corner: Corner, *, ignored: bool = False) -> Terminal:
    """The window as the only process of its session, as in a container or below `ssh -t`."""
    home = {"OLLAMA_TUNE_HOME": str(corner.home / "tune-home")}
    deaf = "signal.signal(signal.SIGHUP, signal.SIG_IGN);" if ignored else ""
    code = f"import os,signal,sys; {deaf} os.execv(sys.executable, [sys.executable, '-m', 'ollama_tune.tui'])"
    return Terminal([sys.executable, "-c", code], {**os.environ, **ENV, **home}, cwd=str(corner.home))


def test_without_a_shell_to_come_back_to_ctrl_z_does_not_freeze_the_window(corner: Corner) -> None:
    with alone(corner) as terminal:
        terminal.wait("This computer")
        mark = len(terminal.raw)
        terminal.press("\x1a")
        repainted(terminal, mark)
        terminal.press("enter")
        terminal.wait("Step 2 of 9")


def test_a_storm_of_sizes_ends_in_the_last_one(corner: Corner) -> None:
    import fcntl
    import struct
    import termios

    with alone(corner) as terminal:
        terminal.wait("This computer")
        process = psutil.Process(terminal.process.pid)
        for number in range(200):
            size = (18 + number % 30, 60 + number % 90) if number < 199 else (24, 80)
            fcntl.ioctl(terminal._master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
            process.send_signal(signal.SIGWINCH)
        terminal.pump(1.5)
        mark = len(terminal.raw)
        terminal.press("enter")
        painted(terminal, mark, b"Step")


@pytest.mark.parametrize("ignored", [False, True], ids=["", "nohup"])
def test_a_hang_up_ends_it_and_nothing_spins(corner: Corner, ignored: bool) -> None:
    with alone(corner, ignored=ignored) as terminal:
        terminal.wait("This computer")
        os.close(terminal._master)
        terminal._master = -1
        terminal.process.wait(timeout=300)
        assert terminal.process.returncode == 128 + signal.SIGHUP
