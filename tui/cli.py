"""The command line: `ollama-tune`. Without a command it opens the wizard.

Heavy modules are imported by the command that needs them, so that `--help` stays instant.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.commands import Commands
from ollama_tune.tui.look import asked_look, look_options, wants_plain
from ollama_tune.tui.shell import (
    INTERRUPTED,
    TERMINATED,
    UNREAD,
    Interrupted,
    assignments,
    by_sigterm,
    end_json,
    follow_or_leave,
    interruption,
    json_option,
    leave,
    on_terminal,
    open_standard_streams,
    orderly,
    say,
    unwritable,
)
from ollama_tune.tui.tracking_cli import tracking_options, tracking_values

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"ollama-tune {version('ollama-tune')}")
    click.echo(f"textual {version('textual')}, torch {version('torch')}, Python {sys.version.split()[0]}")
    context.exit()


EPILOG = """\b
Examples:
  ollama-tune demo
  ollama-tune plan --model bundled --data rows.jsonl --name kitchen --output run.yaml
  ollama-tune run run.yaml --set training.epochs=3
  ollama-tune evaluate

For scripts and coding agents: every command takes --json, and `ollama-tune
schema --agents` prints a page that says how a whole job goes.
`ollama-tune COMMAND --help` has examples of each.
"""


@click.group(
    cls=Commands,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Versions."
)
@look_options
@click.option("--plain", is_flag=True, help="Questions and lines in place of the window.")
@click.pass_context
def cli(context: click.Context, /, plain: bool, **_look: object) -> None:
    """Fine-tune a language model in the terminal and get a proved model in Ollama.

    Without a command the wizard opens: machine, model, data, settings, training, export.
    """
    if context.invoked_subcommand is None:
        context.exit(_wizard(context, plain))
    context.with_resource(orderly())


def _wizard(context: click.Context, plain: bool) -> int:
    """The wizard as a window, or in lines where that is wished for or the terminal can do no more."""
    if not plain and not on_terminal():
        raise UsageError(
            "The wizard needs a terminal.",
            "Without one say --plain and give the answers on standard input, "
            "or use `ollama-tune demo`, `ollama-tune plan` or `ollama-tune run run.yaml`.",
        )
    if plain or wants_plain():
        from ollama_tune.tui.plain.wizard import run_plain

        return run_plain()
    gc.disable()  # the imports make no garbage: the first frame is 40 ms sooner, and enables it again
    from ollama_tune.tui.app import run_app

    return run_app(look=asked_look(context))


@cli.command()
@json_option
def demo(as_json: bool) -> None:
    """Run the whole job on the bundled model and data, and say what it proved (1-2 minutes).

    \b
    --json prints one object at the end, progress goes to stderr:
      outcome, run, path, seconds  `ok` where everything held
      exact_match_before, _after   share of held-out questions answered exactly
      proved                       whether the exported file passed its proof
      code, what, fix              where the outcome is `error`

    \b
    Examples:
      ollama-tune demo
      ollama-tune demo --json
    """
    from ollama_tune.tui.demo import run_demo

    status, values = run_demo(partial(click.echo, err=as_json))
    if as_json:
        end_json(status, **values)
    sys.exit(status)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "values", multiple=True, metavar="FIELD=VALUE", help="Change a setting for this run.")
@click.option("--detach", is_flag=True, help="Start and return; see `ollama-tune attach`.")
@click.option("--plain", is_flag=True, help="Plain lines, as always: no screen and no colours.")
@click.option(
    "--json", "--events", "events", is_flag=True, help="The run's events instead: one JSON object a line."
)
@tracking_options
def run(
    file: Path, values: tuple[str, ...], detach: bool, plain: bool, events: bool, **tracking: Any
) -> None:
    """Train, measure and export as a run.yaml says, without questions.

    \b
    With --json every line of standard output is one event with n, t (Unix time)
    and kind: start, phase, step, evaluation, sample, memory, checkpoint,
    warning, error, verification, stopped, done. The last one is done, stopped
    or error. With --detach too, one object: outcome, run, path, state, stage.

    \b
    Examples:
      ollama-tune run run.yaml
      ollama-tune run run.yaml --set training.learning_rate=1e-4 --json
      ollama-tune run run.yaml --tensorboard --track wandb
      ollama-tune run run.yaml --detach
    """
    from ollama_tune.core.runs.launch import WarmWorker, start

    with contextlib.closing(WarmWorker()) as warm:
        wanted = assignments(values) | tracking_values(**tracking)
        folder = _new_run(file, wanted, partial(click.echo, err=events))
        try:
            start(folder, "all", warm)
        except KeyboardInterrupt as error:
            raise interruption(error, *leave(folder, True)) from None
    follow_or_leave(folder, detach, raw=events)


def _new_run(file: Path, values: dict[str, Any], tell: Callable[[str], None]) -> RunFolder:
    """The folder of the run that a file describes; tells what should be known before, and where it is."""
    from ollama_tune.core.machine.logout import outlive_logout
    from ollama_tune.core.plan.exportable import export_obstacle
    from ollama_tune.core.plan.pins import hub_news
    from ollama_tune.core.plan.room import check_run, settings_here
    from ollama_tune.core.runs.folder import create_run
    from ollama_tune.core.runs.turns import step_aside
    from ollama_tune.tui.exporting import remarks

    step_aside()
    settings, chosen = settings_here(file, values)
    known = (*remarks(settings.export), export_obstacle(settings), check_run(settings), outlive_logout())
    for remark in (*filter(None, known), *hub_news(settings)):
        tell(f"! {remark}")
    folder = create_run(settings, settings.export.name or Path(settings.model.source).name)
    tell(f"Run folder: {folder.path}")
    if chosen:
        named = ", ".join(f"{name} {value}" for name, value in chosen.items())
        tell(f"Not in {file.name}, so chosen for this box: {named}.")
    return folder


@cli.command()
@json_option
def paths(as_json: bool) -> None:
    """Say where everything goes.

    Runs, searches and downloaded models are in `data`: with `config`, `state` and `cache` that is all there
    is. --json prints {"data", "runs", "models", "config", "state", "cache"}: a folder each.

    \b
    Examples:
      ollama-tune paths
      ollama-tune paths --json
    """
    from ollama_tune.core import paths as where

    places = {
        "data": where.data_dir(),
        "runs": where.runs_dir(),
        "models": where.models_dir(),
        "config": where.config_dir(),
        "state": where.state_dir(),
        "cache": where.cache_dir(),
    }
    lines = "\n".join(f"{label:<8} {path}" for label, path in places.items())
    say(lines, as_json, {label: str(path) for label, path in places.items()})


def main() -> int:
    """Entry point of the console script; returns the exit status."""
    open_standard_streams()
    stdout = sys.stdout
    try:
        status = cli.main(standalone_mode=False)
    except TuneError as error:
        click.echo(f"{'' if isinstance(error, Interrupted) else '✗ '}{error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo("Nothing more was done.", err=True)
        return TERMINATED if by_sigterm(error) else INTERRUPTED
    except SystemExit as end:
        if sys.stdout is not stdout:  # click replaces it where the reader is gone
            return UNREAD
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except Exception as error:
        if unwritable(error):
            return _unwritten(error)
        from ollama_tune.tui.crash import report_crash

        click.echo(report_crash(error), err=True)
        return 1
    return status if isinstance(status, int) else 0


def _unwritten(error: Exception) -> int:
    """Standard output takes no more: say so where that can be read; Python's own last flush goes nowhere."""
    with contextlib.suppress(OSError):
        click.echo(f"✗ The output cannot be written: {getattr(error, 'strerror', error)}.", err=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD if isinstance(error, BrokenPipeError) else 1
