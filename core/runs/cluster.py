"""What a job on a cluster asks of a run, around the worker: `python -m ollama_tune.core.runs.cluster`.

The scripts that `ollama-tune launch` writes are plain shell. What has to know a run folder stands here: to
make it at the job's first start, to find it again when the job comes back, and to say what is left to do.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.files import not_made
from ollama_tune.core.paths import runs_dir
from ollama_tune.core.plan.room import settings_here
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.control import continue_run, stages_left
from ollama_tune.core.runs.events import Event
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.runs.launch import WORKER
from ollama_tune.core.runs.ready import ready

NOTHING = "none"
"""The word for a run that is done."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PR_SET_PDEATHSIG = 1
"""The number of a request to Linux (`prctl`): a signal when the parent ends."""
SIGNALLED = "signal"
"""In the reason of a run that was stopped by one."""
WORK = ("step", "checkpoint", "export")
"""Kinds of events that show that a worker came further than the one before it."""


def begin(file: Path, name: str, values: Mapping[str, Any]) -> tuple[RunFolder, str]:
    """The run folder of a job, made if it is not there, and the worker's stage: train, export, all or none.

    `values` change settings of the file, which is read at the first start only. A wish to stop or to wait
    from the job's life before is taken back.
    """
    folder = folder_of(name)
    if not folder.settings_path.exists():
        make(folder, settings_here(file, values)[0])
    folder.stop_path.unlink(missing_ok=True)
    continue_run(folder)
    return folder, stage_left(folder.events())


def make(folder: RunFolder, settings: Settings) -> None:
    """Write a run's folder (mode 0700) and `run.yaml`; two machines that do it at once do no harm."""
    settings = ready(settings)
    try:
        folder.path.mkdir(mode=0o700, exist_ok=True)
        settings.save(folder.settings_path)
    except OSError as error:
        raise not_made(folder.path, error) from error


def stage_left(events: Sequence[Event]) -> str:
    """The `--stage` that does what is left of a run, or `none`."""
    if not any(event.kind == "start" for event in events):
        return "all"
    left = stages_left(list(events))
    return "all" if len(left) > 1 else left[0] if left else NOTHING


def again(name: str, *, asked: bool) -> str:
    """What a job that was cut off would still do; `TuneError` where it came no further at all.

    Where it was not `asked` to end before its time is over, a worker that a signal stopped was cut off: the
    cluster wants its machines back. One that failed, or was stopped by a person, was not.
    """
    events = folder_of(name).events()
    last = events[-1] if events else None
    if not asked and not (last and last.kind == "stopped" and SIGNALLED in last["reason"]):
        return NOTHING
    left = stage_left(events)
    begun = max((n for n, event in enumerate(events) if event.kind == "start"), default=0)
    if left != NOTHING and not any(event.kind in WORK for event in events[begun:]):
        raise TuneError("The job's time was over before the first step.", "Give it more, with --time.")
    return left


def folder_of(name: str) -> RunFolder:
    """The run folder of that name, whether it is there or not; `UsageError` for what is no name."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a run.", "Use letters, digits, dots and hyphens.")
    return RunFolder(runs_dir() / name)


def be_child(parent: int, arguments: Sequence[str]) -> NoReturn:
    """Become the worker, told to end (SIGTERM) when the process that started this one is gone.

    On Linux the kernel does that; elsewhere a worker whose parent died ends when the others are gone.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        sys.exit("The process that started this one is gone.")
    os.execv(sys.executable, [sys.executable, "-m", WORKER, *arguments])


def main(arguments: Sequence[str] | None = None) -> int:
    """`begin FILE NAME` prints stage and folder, `again NAME` succeeds where something is left.

    `child PARENT ARGUMENTS` is the worker.
    """
    parser = argparse.ArgumentParser(prog="ollama_tune.core.runs.cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("begin")
    first.add_argument("file", type=Path)
    first.add_argument("name")
    first.add_argument("--set", dest="values", action="append", default=[], metavar="FIELD=VALUE")
    back = commands.add_parser("again")
    back.add_argument("name")
    back.add_argument("--asked", action="store_true")
    child = commands.add_parser("child")
    child.add_argument("parent", type=int)
    child.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    if given.command == "child":
        be_child(given.parent, given.arguments)
    try:
        if given.command == "again":
            return int(again(given.name, asked=given.asked) == NOTHING)
        pairs = (text.partition("=") for text in given.values)
        folder, stage = begin(given.file, given.name, {path: yaml.safe_load(said) for path, _, said in pairs})
    except TuneError as error:
        print(f"✗ {error}", file=sys.stderr)
        return error.exit_code
    print(stage, folder.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
