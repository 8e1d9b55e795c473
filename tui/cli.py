"""The command line: `ollama-tune`. Without a command it opens the wizard.

Heavy modules are imported by the command that needs them, so that `--help` stays instant.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.data_cli import data
from ollama_tune.tui.export_cli import export, verify
from ollama_tune.tui.plan_cli import plan
from ollama_tune.tui.predict_cli import predict
from ollama_tune.tui.probe_cli import probe
from ollama_tune.tui.shell import INTERRUPTED, assignments, follow_or_leave, has_terminal, leave, out

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"ollama-tune {version('ollama-tune')}")
    click.echo(f"textual {version('textual')}, torch {version('torch')}, Python {sys.version.split()[0]}")
    context.exit()


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Versions."
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Fine-tune a language model in the terminal and get a proved model in Ollama.

    Without a command the wizard opens: machine, model, data, settings, training, export.
    """
    if context.invoked_subcommand is not None:
        return
    if not has_terminal():
        raise UsageError(
            "The wizard needs a terminal.",
            "Without one use `ollama-tune demo`, `ollama-tune plan` or `ollama-tune run run.yaml`.",
        )
    from ollama_tune.tui.app import run_app

    context.exit(run_app())


@cli.command()
def demo() -> None:
    """Run the whole job on the bundled model and data, and say what it proved (1-2 minutes)."""
    from ollama_tune.tui.demo import run_demo

    sys.exit(run_demo(out))


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "values", multiple=True, metavar="FIELD=VALUE", help="Change a setting for this run.")
@click.option("--detach", is_flag=True, help="Start and return; see `ollama-tune attach`.")
@click.option("--plain", is_flag=True, help="Plain lines, as always: no screen and no colours.")
@click.option("--events", is_flag=True, help="The run's events in place of lines: one JSON object a line.")
def run(file: Path, values: tuple[str, ...], detach: bool, plain: bool, events: bool) -> None:
    """Train, measure and export as a run.yaml says, without questions."""
    from ollama_tune.core.runs.launch import WarmWorker, start

    with contextlib.closing(WarmWorker()) as warm:
        folder = _new_run(file, assignments(values), partial(click.echo, err=events))
        try:
            start(folder, "all", warm)
        except KeyboardInterrupt:
            leave(folder, True)
            sys.exit(INTERRUPTED)
    follow_or_leave(folder, detach, raw=events)


def _new_run(file: Path, values: dict[str, Any], tell: Callable[[str], None]) -> RunFolder:
    """The folder of the run that a file describes; tells what should be known before, and where it is."""
    from ollama_tune.core.plan.room import check_run, of_this_box
    from ollama_tune.core.plan.settings import load
    from ollama_tune.core.runs.folder import create_run
    from ollama_tune.tui.exporting import remarks

    said = load(file)
    settings = said.with_values(values)
    mine = {name.removeprefix("training."): value for name, value in values.items()}
    chosen = of_this_box({**said.training.model_dump(exclude_unset=True), **mine})
    settings = settings.with_values(chosen) if chosen else settings
    for remark in filter(None, (*remarks(settings.export), check_run(settings))):
        tell(f"! {remark}")
    folder = create_run(settings, settings.export.name or Path(settings.model.source).name)
    tell(f"Run folder: {folder.path}")
    if chosen:
        named = ", ".join(f"{name} {value}" for name, value in chosen.items())
        tell(f"Not in {file.name}, so chosen for this box: {named}.")
    return folder


@cli.command()
@click.argument("name", required=False)
@click.option("--plain", is_flag=True, help="Lines instead of the screen.")
def attach(name: str | None, plain: bool) -> None:
    """Watch a run, live or past, with its whole history (the newest when none is named)."""
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    if plain or not has_terminal():
        follow_or_leave(folder, False, stop_on_interrupt=False)
        return
    from ollama_tune.tui.app import run_app

    sys.exit(run_app(folder))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def runs(as_json: bool) -> None:
    """List the runs and what state they are in."""
    from ollama_tune.core.runs.folder import list_runs
    from ollama_tune.tui.printing import run_row, runs_lines

    rows = [run_row(folder) for folder in list_runs()]
    click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(runs_lines(rows)))


@cli.command()
@click.argument("name", required=False)
@click.option("--wait", default=300.0, show_default=True, help="Seconds to wait for the checkpoint.")
def stop(name: str | None, wait: float) -> None:
    """Make a run write a checkpoint and end."""
    from ollama_tune.core.runs.control import request_stop, wait_until_free
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    request_stop(folder)
    if not wait_until_free(folder, wait):
        raise TuneError(f"{folder.name} has not ended yet.", "It stops after its step.")
    out(f"{folder.name}: {folder.status().state.value}. Go on with `ollama-tune resume {folder.name}`.")


@cli.command()
@click.argument("name", required=False)
def pause(name: str | None) -> None:
    """Make a run write a checkpoint after its step and wait; it keeps its memory."""
    from ollama_tune.core.runs.control import request_pause
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    request_pause(folder)
    out(f"{folder.name} waits after its step. Go on with `ollama-tune resume {folder.name}`.")


@cli.command()
@click.argument("name", required=False)
@click.option("--detach", is_flag=True, help="Start and return.")
def resume(name: str | None, detach: bool) -> None:
    """Go on with a paused run, or with a stopped or broken one from its last checkpoint."""
    from ollama_tune.core.runs import control
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    seen = len(folder.events())
    control.resume(folder)
    follow_or_leave(folder, detach, skip=seen)


cli.add_command(probe)
cli.add_command(data)
cli.add_command(plan)
cli.add_command(predict)
cli.add_command(export)
cli.add_command(verify)


@cli.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool) -> None:
    """Remove a run with everything in it."""
    from ollama_tune.core.runs import control
    from ollama_tune.core.runs.folder import find_run
    from ollama_tune.core.text import human_bytes
    from ollama_tune.tui.printing import folder_size

    folder = find_run(name)
    if not yes:
        if not has_terminal():
            raise UsageError("Without a terminal nothing is asked.", "Say --yes to delete.")
        click.confirm(f"Delete {folder.name}, {human_bytes(folder_size(folder.path))}?", abort=True)
    control.delete(folder)
    out(f"Deleted {folder.name}.")


@cli.command()
def paths() -> None:
    """Say where everything goes."""
    from ollama_tune.core import paths as where

    for label, path in (
        ("runs", where.runs_dir()),
        ("models", where.models_dir()),
        ("config", where.config_dir()),
        ("state", where.state_dir()),
        ("cache", where.cache_dir()),
    ):
        out(f"{label:<8} {path}")


def main() -> int:
    """Entry point of the console script; returns the exit status."""
    try:
        cli.main(standalone_mode=False)
    except TuneError as error:
        click.echo(f"✗ {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Nothing more was done.", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except Exception as error:
        from ollama_tune.tui.crash import report_crash

        click.echo(report_crash(error), err=True)
        return 1
    return 0
