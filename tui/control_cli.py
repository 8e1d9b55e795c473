"""The commands that watch and steer a run: `attach`, `stop`, `pause`, `resume`, `delete`."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.look import asked_look, look_options, wants_plain
from ollama_tune.tui.shell import follow_or_leave, has_terminal, json_option, on_terminal, say

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder


def _words(folder: RunFolder) -> dict[str, Any]:
    from ollama_tune.tui.printing import run_json

    return run_json(folder)


@click.command()
@click.argument("name", required=False, metavar="[RUN]")
@click.option("--plain", is_flag=True, help="Lines instead of the screen.")
@click.option("--json", "as_json", is_flag=True, help="The run's events, one JSON object a line.")
@look_options
@click.pass_context
def attach(context: click.Context, /, name: str | None, plain: bool, as_json: bool, **_look: object) -> None:
    """Watch a run, live or past, with its whole history (the newest when none is named).

    With --json the events are those of `ollama-tune run --json`.

    \b
    Examples:
      ollama-tune attach
      ollama-tune attach RUN --plain
      ollama-tune attach RUN --json
    """
    in_lines = plain or as_json or not on_terminal() or wants_plain()
    if not in_lines:
        gc.disable()  # the start makes no garbage; the first frame enables it again
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    if in_lines:
        follow_or_leave(folder, False, stop_on_interrupt=False, raw=as_json)
        return
    from ollama_tune.tui.app import run_app

    sys.exit(run_app(folder, asked_look(context)))


@click.command()
@click.argument("name", required=False, metavar="[RUN]")
@click.option("--wait", default=300.0, show_default=True, help="Seconds to wait for the checkpoint.")
@json_option
def stop(name: str | None, wait: float, as_json: bool) -> None:
    """Make a run write a checkpoint and end (the newest when none is named).

    --json prints {"outcome": "ok", "run", "path", "state", "stage"}.

    \b
    Examples:
      ollama-tune stop
      ollama-tune stop RUN --wait 60 --json
    """
    from ollama_tune.core.runs.control import request_stop, wait_until_free
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    request_stop(folder)
    if not wait_until_free(folder, wait):
        raise TuneError(f"{folder.name} has not ended yet.", "It stops after its step.")
    state = folder.status().state.value
    say(f"{folder.name}: {state}. Go on with `ollama-tune resume {folder.name}`.", as_json, _words(folder))


@click.command()
@click.argument("name", required=False, metavar="[RUN]")
@json_option
def pause(name: str | None, as_json: bool) -> None:
    """Make a run write a checkpoint after its step and wait; it keeps its memory.

    --json prints {"outcome": "ok", "run", "path", "state", "stage"}; the state is `running` until the step
    ends.

    \b
    Examples:
      ollama-tune pause
      ollama-tune pause RUN --json
    """
    from ollama_tune.core.runs.control import request_pause
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    request_pause(folder)
    go_on = f"{folder.name} waits after its step. Go on with `ollama-tune resume {folder.name}`."
    say(go_on, as_json, _words(folder))


@click.command()
@click.argument("name", required=False, metavar="[RUN]")
@click.option("--detach", is_flag=True, help="Start and return.")
@click.option("--json", "as_json", is_flag=True, help="The run's new events, one JSON object a line.")
def resume(name: str | None, detach: bool, as_json: bool) -> None:
    """Go on with a paused run, or with a stopped or broken one from its last checkpoint.

    With --json the events are those of `ollama-tune run --json`; with --detach too, one object:
    {"outcome": "ok", "run", "path", "state", "stage"}.

    \b
    Examples:
      ollama-tune resume
      ollama-tune resume RUN --detach --json
    """
    from ollama_tune.core.runs import control
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    seen = len(folder.events())
    control.resume(folder)
    follow_or_leave(folder, detach, skip=seen, raw=as_json)


@click.command()
@click.argument("name", metavar="RUN|SWEEP")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(name: str, yes: bool, as_json: bool) -> None:
    """Remove a run with everything in it, or of a sweep all runs but those that came to their end.

    --json prints {"outcome": "ok", "run", "path", "freed_bytes"}, of a sweep {"outcome": "ok", "sweep",
    "runs" (what is gone), "kept", "freed_bytes"}, and never asks: say --yes.

    \b
    Examples:
      ollama-tune delete RUN
      ollama-tune delete RUN --yes --json
    """
    from ollama_tune.core.runs import control
    from ollama_tune.core.runs.folder import find_run
    from ollama_tune.core.runs.trials import runs_of
    from ollama_tune.core.text import human_bytes
    from ollama_tune.tui.run_summary import folder_size

    if runs_of(name):
        _delete_trials(name, yes, as_json)
        return
    folder = find_run(name)
    size = folder_size(folder.path)
    _ask(f"Delete {folder.name}, {human_bytes(size)}?", yes, as_json)
    control.delete(folder)
    values = {"outcome": "ok", "run": folder.name, "path": str(folder.path), "freed_bytes": size}
    say(f"Deleted {folder.name}.", as_json, values)


def _ask(question: str, yes: bool, as_json: bool) -> None:
    """Return where the answer is yes, or was given before."""
    if yes:
        return
    if as_json or not has_terminal():
        raise UsageError("Without a terminal nothing is asked.", "Say --yes to delete.")
    click.confirm(question, abort=True)


def _delete_trials(sweep: str, yes: bool, as_json: bool) -> None:
    """Remove what a sweep left behind; names and sizes are said before."""
    from ollama_tune.core.runs.trials import delete_needless, needless, trial_runs
    from ollama_tune.core.text import human_bytes
    from ollama_tune.tui.run_summary import folder_size

    (gone, kept), trials = needless(sweep), trial_runs()
    sizes = {run.name: folder_size(run.path) for run in gone}
    for run in () if as_json else gone:
        click.echo(f"  {run.name}  {human_bytes(sizes[run.name]):>10}  {trials[run.name].words}")
    stays = f"{', '.join(run.name for run in kept)} stays" if kept else "none of its runs came to its end"
    total = human_bytes(sum(sizes.values()))
    if gone:
        _ask(f"Delete {len(gone)} runs of sweep {sweep}, {total}? ({stays})", yes, as_json)
        delete_needless(sweep)
    values = {"outcome": "ok", "sweep": sweep, "runs": list(sizes), "kept": [run.name for run in kept]}
    say(f"Deleted {len(gone)} runs; {stays}.", as_json, values | {"freed_bytes": sum(sizes.values())})
