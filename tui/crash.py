"""A crash report without locals: no data row and no token gets into it."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import traceback
from pathlib import Path

from ollama_tune.core.files import write_atomic
from ollama_tune.core.paths import state_dir

VARIABLES = ("TERM", "COLORTERM", "TMUX", "STY", "SSH_CONNECTION", "NO_COLOR")


def report_crash(error: BaseException) -> str:
    """Write `crash-<time>.txt` into the state folder; returns the lines to show instead of a traceback."""
    path = state_dir() / f"crash-{datetime.datetime.now():%Y%m%d-%H%M%S}.txt"
    write_atomic(path, crash_text(error))
    return (
        f"✗ ollama-tune met an error of its own ({type(error).__name__}).\n"
        "  A training run is not touched by it: see `ollama-tune runs`.\n"
        f"  The report is in {path}."
    )


def crash_text(error: BaseException) -> str:
    """Versions, terminal and the stack: files, lines and functions, never values or messages."""
    home = str(Path.home())
    frames = traceback.extract_tb(error.__traceback__)
    stack = [f"  {frame.filename}:{frame.lineno} in {frame.name}".replace(home, "~") for frame in frames]
    terminal = [
        f"{name}={'set' if name in ('TMUX', 'STY', 'SSH_CONNECTION') else os.environ[name]}"
        for name in VARIABLES
        if name in os.environ
    ]
    head = [
        f"ollama-tune crash: {type(error).__name__}",
        f"Python {sys.version.split()[0]}, {platform.platform()}",
    ]
    return "\n".join([*head, " ".join(terminal), *stack]) + "\n"
