"""What the commands share: output, values of options, and following a run to its end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ollama_tune.core.errors import TuneError, UsageError

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder, State

INTERRUPTED = 130
TERMINATED = 143
UNREAD = 141
"""Exit statuses where a signal ended a command: SIGINT, SIGTERM, SIGPIPE."""
STOP_SECONDS = 300.0

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


def say(line: str, as_json: bool, values: Mapping[str, Any]) -> None:
    """The result of a command: a line for people, or one object for programs."""
    click.echo(json.dumps(values, indent=2) if as_json else line)


def write_output(path: Path, text: str) -> None:
    """Write the file that an --output names, in one piece; `TuneError` where it cannot be."""
    from ollama_tune.core.files import write_atomic

    try:
        write_atomic(path, text)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}."
        raise TuneError(what, "Name another place with --output.") from error


def out(line: str) -> None:
    """Print a line."""
    click.echo(line)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, even one that cannot be understood otherwise."""
    options = itertools.takewhile(lambda argument: argument != "--", arguments)
    return any(option in ("--json", "--events") for option in options)


@contextlib.contextmanager
def telling(as_json: bool) -> Iterator[None]:
    """Every error as one object on one line of standard output, where JSON was asked for."""
    try:
        yield
    except (BrokenPipeError, click.exceptions.Exit):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if not as_json or unwritable(error):
            raise
        known = _known(error)
        click.echo(json.dumps(error_object(known)))
        sys.exit(known.exit_code)


def _known(error: BaseException) -> TuneError:
    """Any error as one that says what happened and what to do."""
    if isinstance(error, TuneError):
        return error
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "ollama-tune"
        return UsageError(error.format_message(), f"See `{command} --help`.")
    if by_sigterm(error):
        return Ended("Ended by SIGTERM; nothing more was done.", "Give the command again when you like.")
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return Interrupted("Interrupted; nothing more was done.", "Give the command again when you like.")
    from ollama_tune.tui.crash import report_crash

    what, *rest = (line.strip(" ✗") for line in report_crash(error).splitlines())
    return CrashError(what, " ".join(rest))


class Interrupted(TuneError):
    """Ctrl+C, or an answer of no."""

    exit_code = INTERRUPTED
    code = "interrupted"


class Ended(Interrupted):
    """The same, by SIGTERM."""

    exit_code = TERMINATED


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever a command does ends as by Ctrl+C, but a run that it only watches goes on."""


def by_sigterm(error: BaseException) -> bool:
    """Whether SIGTERM is behind an error: click makes another of an interruption."""
    return isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Ends in order on SIGTERM too: what a command began, it ends, and says so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interruption(error: KeyboardInterrupt, what: str, fix: str) -> Interrupted:
    """The end of a command by a signal as an error, with the exit status of that signal."""
    return (Ended if isinstance(error, Terminated) else Interrupted)(what, fix)


def open_standard_streams() -> None:
    """Where a standard stream was closed (`<&-`), nothing is read or written there from now on.

    The null device takes its number, the lowest that is free; else the next file that is opened would.
    """
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115  # as long as Python runs
            setattr(sys, name, stream)


def unwritable(error: BaseException) -> bool:
    """Whether an error came from printing: what is printed goes to a full disk, or to what is gone."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return isinstance(error, OSError) and place is not None and place.tb_frame.f_code is click.echo.__code__


class CrashError(TuneError):
    """An error of this program's own."""

    code = "crashed"


def error_object(error: TuneError) -> dict[str, Any]:
    """An error for programs: `code` is a word that never changes, `what` and `fix` are for people.

    Settings that are refused have `mistakes` too: field, line (or null), what and fix of each.
    """
    told = {"outcome": "error", "code": error.code, "what": error.what, "fix": error.fix}
    mistakes = [asdict(mistake) for mistake in getattr(error, "mistakes", ())]
    return told | ({"mistakes": mistakes} if mistakes else {})


def end_json(status: int, **values: Any) -> NoReturn:
    """Print the one object of a command that was given --json, and exit."""
    click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    sys.exit(status)


def has_terminal() -> bool:
    """Whether somebody can be asked."""
    return on_terminal() and os.environ.get("TERM", "dumb") != "dumb"


def on_terminal() -> bool:
    """Whether a person types and reads, even if the terminal can only show lines."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def assignments(values: tuple[str, ...]) -> dict[str, Any]:
    """`FIELD=VALUE` texts as a mapping; numbers, truths and lists are written as in a run.yaml."""
    from ollama_tune.core.plan.yaml_lines import read_value

    found: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} has no '='.", "Write it as training.rank=32.")
        try:
            found[name.strip()] = read_value(value)
        except ValueError as error:
            raise UsageError(f"The value in --set {text!r} cannot be read.", "Quote it.") from error
    return found


def follow_or_leave(
    folder: RunFolder, detach: bool, *, skip: int = 0, stop_on_interrupt: bool = True, raw: bool = False
) -> None:
    """Print a run's events until its worker ends, and exit with its status; or say how to come back.

    `raw` is for programs: the events themselves, one JSON object a line, and nothing else; with `detach` the
    one object that says which run it is.
    """
    if detach:
        from ollama_tune.tui.printing import run_json

        going = f"{folder.name} is going. Watch it with `ollama-tune attach {folder.name}`."
        say(going, raw, run_json(folder))
        return
    from ollama_tune.tui.follow import Follower, Raw, follow

    shown = Raw(out) if raw else Follower(out)
    try:
        state = follow(folder, shown, skip=skip)
    except KeyboardInterrupt as error:
        stop = stop_on_interrupt and not isinstance(error, Terminated)
        end = interruption(error, *leave(folder, stop, quiet=raw))
        if isinstance(shown, Raw) and stop and folder.path.is_dir():
            follow(folder, shown, skip=max(skip, shown.told + 1))
            sys.exit(end.exit_code)
        raise end from None
    else:
        _end(folder, state, quiet=raw)


def leave(folder: RunFolder, stop_run: bool, *, quiet: bool = False) -> tuple[str, str]:
    """After Ctrl+C: stop the run or leave it alone; returns what became of it and how to go on.

    One that is only starting has been told to stop already (`launch.start`).
    """
    from ollama_tune.core.runs.control import delete, request_stop, wait_until_free

    if not (stop_run and (folder.alive() or folder.stop_path.exists())):
        return f"{folder.name} goes on.", f"Come back with `ollama-tune attach {folder.name}`."
    if not quiet:
        click.echo("Stopping after this step …", err=True)
    with contextlib.suppress(UsageError):
        request_stop(folder)
    if not wait_until_free(folder, STOP_SECONDS):
        return f"{folder.name} has not ended yet.", "It stops after its step."
    if not folder.events():
        delete(folder)
        return "Nothing was started.", "Give the command again when you like."
    if folder.status().stage == "export":
        return "The export was stopped.", f"Go on with `ollama-tune export {folder.name}`."
    return f"{folder.name} is stopped.", f"Go on with `ollama-tune resume {folder.name}`."


def _end(folder: RunFolder, state: State, *, quiet: bool = False) -> None:
    from ollama_tune.core.runs.folder import State

    if state is State.FINISHED and quiet:
        sys.exit(0)
    if state is State.FINISHED:
        from ollama_tune.tui.printing import finished_lines
        from ollama_tune.tui.tracking_cli import tracking_lines

        for line in (*finished_lines(folder), *tracking_lines(folder)):
            out(line)
        sys.exit(0)
    if state is State.CRASHED:
        fix = f"Go on from the last checkpoint with `ollama-tune resume {folder.name}`."
        raise TuneError(f"{folder.name}: {state.value}. {folder.status().message}", fix)
    on = "" if state is State.NEW else f" Go on with `ollama-tune resume {folder.name}`."
    click.echo(f"{folder.name}: {state.value}.{on} Everything is in {folder.path}.", err=True)
    sys.exit(0 if state in (State.STOPPED, State.NEW) else 1)
