"""A crash report without locals and without messages: no data row and no token gets into it."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import sys
import tempfile
import traceback
from pathlib import Path

from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import write_atomic
from ollama_tune.core.paths import state_dir
from ollama_tune.core.text import one_line

VARIABLES = ("TERM", "COLORTERM", "COLORFGBG", "TMUX", "STY", "SSH_CONNECTION", "NO_COLOR")
ONLY_WHETHER = ("TMUX", "STY", "SSH_CONNECTION")
"""Variables of which the report says only that they are set."""
CHAIN = 8
FRAMES = 200


def report_crash(error: BaseException) -> str:
    """Write `crash-<time>.txt` into the state folder; returns the lines to show instead of a traceback.

    Never raises: where nothing can be written, the lines say so.
    """
    return "\n".join(
        (
            f"✗ ollama-tune met an error of its own ({_kind(error)}).",
            f"  {training_goes_on()}",
            f"  {_written(crash_text(error))}",
        )
    )


def training_goes_on() -> str:
    """What becomes of a run that is going, or else of the answers, and how to see it again."""
    from ollama_tune.tui.state import goes_on, live_run

    with contextlib.suppress(Exception):
        run = live_run()
        if run is not None:
            return goes_on(run)
    return "No run is touched by it, and your answers are kept: `ollama-tune` goes on where you were."


def _written(text: str) -> str:
    name = f"crash-{datetime.datetime.now():%Y%m%d-%H%M%S}.txt"
    for folder in (state_dir, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError, TuneError):
            path = folder() / name
            write_atomic(path, text)
            return f"The report is in {path}."
    return "The report could not be written: the disk may be full."


def crash_text(error: BaseException) -> str:
    """Versions, terminal and the stack of each error that led to this one: files, lines and functions."""
    head = [f"ollama-tune crash: {_kind(error)}", *_versions(), _terminal()]
    for number, link in enumerate(_chain(error)):
        head.append(f"{'which came from ' if number else ''}{_kind(link)}:")
        head += _stack(link)
    return "\n".join(head) + "\n"


def _kind(error: BaseException) -> str:
    """The name of the error's class: its message may quote a data row, so it is never shown."""
    return one_line(type(error).__name__, 60)


def _chain(error: BaseException) -> list[BaseException]:
    """The error, then what it came from; a worker's failure holds the real one as `error`."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain and len(chain) < CHAIN:
        chain.append(link)
        inner = getattr(link, "error", None)
        link = inner if isinstance(inner, BaseException) else link.__cause__ or link.__context__
    return chain


def _stack(error: BaseException) -> list[str]:
    home = str(Path.home())
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return [
        f"  {one_line(frame.filename.replace(home, '~'), 200)}:{frame.lineno} in {one_line(frame.name, 80)}"
        for frame in frames
    ]


def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = [f"Python {sys.version.split()[0]}, {platform.platform()}"]
    for name in ("ollama-tune", "textual"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return [", ".join(found)]


def _terminal() -> str:
    said = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    words = (f"{name}={'set' if name in ONLY_WHETHER else one_line(text, 40)}" for name, text in said.items())
    return " ".join(words)
