"""What the commands share: output, values of options, and following a run to its end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ollama_tune.core.errors import TuneError, UsageError

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder, State

INTERRUPTED = 130


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
        if not as_json:
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
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return Interrupted("Interrupted; nothing more was done.", "Give the command again when you like.")
    from ollama_tune.tui.crash import report_crash

    what, *rest = (line.strip(" ✗") for line in report_crash(error).splitlines())
    return CrashError(what, " ".join(rest))


class Interrupted(TuneError):
    """Ctrl+C, or an answer of no."""

    exit_code = INTERRUPTED
    code = "interrupted"


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
    """`FIELD=VALUE` texts as a mapping; values are read as YAML (numbers, true, lists)."""
    import yaml

    found: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} has no '='.", "Write it as training.rank=32.")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
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

    try:
        state = follow(folder, Raw(out) if raw else Follower(out), skip=skip)
    except KeyboardInterrupt:
        leave(folder, stop_on_interrupt)
        sys.exit(INTERRUPTED)
    else:
        _end(folder, state, quiet=raw)


def leave(folder: RunFolder, stop_run: bool) -> None:
    """After Ctrl+C: stop the run or leave it alone, and say how to go on.

    One that is only starting has been told to stop already (`launch.start`).
    """
    from ollama_tune.core.runs.control import delete, request_stop, wait_until_free

    if stop_run and (folder.alive() or folder.stop_path.exists()):
        click.echo("Stopping after this step …", err=True)
        with contextlib.suppress(UsageError):
            request_stop(folder)
        if wait_until_free(folder, 300) and not folder.events():
            delete(folder)
            click.echo("Nothing was started.", err=True)
            return
        command = "export" if folder.status().stage == "export" else "resume"
        click.echo(f"Go on with `ollama-tune {command} {folder.name}`.", err=True)
    else:
        click.echo(f"{folder.name} goes on. Come back with `ollama-tune attach {folder.name}`.", err=True)


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
        click.echo(f"✗ {folder.status().message}", err=True)
    click.echo(f"{folder.name}: {state.value}. See {folder.path}.", err=True)
    sys.exit(0 if state in (State.STOPPED, State.NEW) else 1)
