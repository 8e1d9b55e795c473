"""What the commands share: output, values of options, and following a run to its end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ollama_tune.core.errors import TuneError, UsageError

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder, State

INTERRUPTED = 130


def out(line: str) -> None:
    """Print a line."""
    click.echo(line)


@contextlib.contextmanager
def telling(as_json: bool) -> Iterator[None]:
    """An error as the one object, where that was asked for."""
    try:
        yield
    except TuneError as error:
        if not as_json:
            raise
        end_json(error.exit_code, outcome="error", what=error.what, fix=error.fix)


def end_json(status: int, **values: Any) -> NoReturn:
    """Print the one object of a command that was given --json, and exit."""
    click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    sys.exit(status)


def has_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


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
        except yaml.YAMLError as error:
            raise UsageError(f"The value in --set {text!r} cannot be read.", "Quote it.") from error
    return found


def follow_or_leave(
    folder: RunFolder, detach: bool, *, skip: int = 0, stop_on_interrupt: bool = True, raw: bool = False
) -> None:
    """Print a run's events until its worker ends, and exit with its status; or say how to come back.

    `raw` prints the events themselves, one JSON object a line, and nothing else.
    """
    if detach:
        out(f"{folder.name} is going. Watch it with `ollama-tune attach {folder.name}`.")
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

        for line in finished_lines(folder):
            out(line)
        sys.exit(0)
    if state is State.CRASHED:
        click.echo(f"✗ {folder.status().message}", err=True)
    click.echo(f"{folder.name}: {state.value}. See {folder.path}.", err=True)
    sys.exit(0 if state in (State.STOPPED, State.NEW) else 1)
