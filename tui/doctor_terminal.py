"""Checks of the terminal that this process is in: colours, size, letters, clipboard."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping

from ollama_tune.core.machine.doctor import Check, ok, warn
from ollama_tune.core.text import one_line

COLOURS = {"truecolor": "16.7 million", "256": "256", "standard": "16", "windows": "16"}
LEAST = (60, 18)
LIMIT = 1.0
COPY = "The wizard also writes to a file what it copies."


def terminal() -> Iterator[Check]:
    """What the wizard can use of this terminal, and what is lost on the way to it."""
    environment = os.environ
    yield _kind(environment)
    yield _colours(environment)
    yield _size()
    yield _letters(environment)
    yield from _clipboard(environment)
    if environment.get("SSH_CONNECTION") or environment.get("SSH_TTY"):
        yield ok("over SSH: no animations, and runs outlive the connection", "connection")


def _kind(environment: Mapping[str, str]) -> Check:
    term = one_line(environment.get("TERM", ""), 30)
    stream = sys.__stdout__
    if term in ("", "dumb"):
        said = f"TERM={term}" if term else "TERM is not set"
        return warn(f"{said}: no screen can be painted", "Use `ollama-tune --plain`.", "kind")
    if stream is None or not stream.isatty():
        return ok(f"{term}; this output is no terminal", "kind")
    return ok(f"{term}, the mouse is taken (`--no-mouse` leaves it to the terminal)", "kind")


def _colours(environment: Mapping[str, str]) -> Check:
    """The level that Textual will use, asked of the library that decides it."""
    from rich.console import Console

    if "NO_COLOR" in environment:
        return ok("greys, as NO_COLOR wishes", "colours")
    wished = environment.get("TEXTUAL_COLOR_SYSTEM", "auto")
    found = wished if wished in COLOURS else Console(force_terminal=True).color_system or ""
    said = f"{COLOURS.get(found, 'no')} colours"
    if found == "truecolor":
        return ok(said, "colours")
    if found == "256":
        return ok(f"{said}; with more: COLORTERM=truecolor", "colours")
    return warn(said, "If it can do more: export TERM=xterm-256color (tmux: tmux-256color).", "colours")


def _size() -> Check:
    columns, lines = shutil.get_terminal_size()
    said = f"{columns}x{lines}"
    if columns < LEAST[0] or lines < LEAST[1]:
        return warn(f"{said} is too small", f"Make the window {LEAST[0]}x{LEAST[1]} or larger.", "size")
    return ok(said, "size")


def _letters(environment: Mapping[str, str]) -> Check:
    """By what the environment promises; Python itself writes UTF-8 in the locale C too."""
    named = next((name for name in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(name)), "")
    value = one_line(environment.get(named, ""), 30)
    said = f"{named}={value}" if named else "no locale is set"
    if re.search(r"utf-?8", value, re.IGNORECASE):
        return ok(f"UTF-8 ({said})", "letters")
    return warn(f"{said} promises no UTF-8", "Type `export LC_ALL=C.UTF-8` if signs look wrong.", "letters")


def _clipboard(environment: Mapping[str, str]) -> Iterator[Check]:
    """What is copied is sent to the terminal (OSC 52); tmux drops it unless told otherwise."""
    if environment.get("TMUX"):
        setting = _tmux("show", "-s", "set-clipboard").removeprefix("set-clipboard").strip()
        if setting == "on":
            yield ok("tmux passes it on", "clipboard")
        else:
            said = f"tmux drops it (set-clipboard {one_line(setting, 20) or 'unknown'})"
            yield warn(said, f"Type `tmux set -s set-clipboard on`. {COPY}", "clipboard")
    elif environment.get("STY"):
        yield warn("screen passes none on", COPY, "clipboard")


def _tmux(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["tmux", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
