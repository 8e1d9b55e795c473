"""The command line: `ollama-tune`. Without a command it opens the wizard.

Heavy modules are imported by the command that needs them, so that `--help` stays instant.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import keyword
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.tui.look import asked_look, look_options, wants_plain
from ollama_tune.tui.shell import (
    INTERRUPTED,
    assignments,
    end_json,
    follow_or_leave,
    json_option,
    leave,
    on_terminal,
    say,
    telling,
    wants_json,
)
from ollama_tune.tui.tracking_cli import tracking_options, tracking_values

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder

ELSEWHERE = {
    "ask": "chat_cli",
    "attach": "control_cli",
    "chat": "chat_cli",
    "compare": "runs_cli",
    "data": "data_cli",
    "delete": "control_cli",
    "doctor": "doctor_cli",
    "evaluate": "evaluate_cli",
    "export": "export_cli",
    "import": "import_cli",
    "keys": "keys_cli",
    "launch": "launch_cli",
    "pause": "control_cli",
    "plan": "plan_cli",
    "predict": "predict_cli",
    "probe": "probe_cli",
    "resume": "control_cli",
    "runs": "runs_cli",
    "schema": "schema_cli",
    "serve": "serve_cli",
    "stop": "control_cli",
    "sweep": "sweep_cli",
    "tensorboard": "tracking_cli",
    "track": "tracking_cli",
    "verify": "export_cli",
}
"""The module of each command that is not in this one; it is imported when it is asked for."""


class Commands(click.Group):
    """The wizard's first frame waits for no command that nobody gave."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All of them."""
        return sorted({*super().list_commands(context), *ELSEWHERE})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """From here, else from its module."""
        if name not in ELSEWHERE:
            return super().get_command(context, name)
        module = importlib.import_module(f"ollama_tune.tui.{ELSEWHERE[name]}")
        return cast("click.Command", getattr(module, name + "_" * keyword.iskeyword(name)))


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"ollama-tune {version('ollama-tune')}")
    click.echo(f"textual {version('textual')}, torch {version('torch')}, Python {sys.version.split()[0]}")
    context.exit()


@click.group(
    cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
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
        except KeyboardInterrupt:
            leave(folder, True)
            sys.exit(INTERRUPTED)
    follow_or_leave(folder, detach, raw=events)


def _new_run(file: Path, values: dict[str, Any], tell: Callable[[str], None]) -> RunFolder:
    """The folder of the run that a file describes; tells what should be known before, and where it is."""
    from ollama_tune.core.machine.logout import outlive_logout
    from ollama_tune.core.plan.exportable import export_obstacle
    from ollama_tune.core.plan.room import check_run, of_this_box
    from ollama_tune.core.plan.settings import load
    from ollama_tune.core.runs.folder import create_run
    from ollama_tune.tui.exporting import remarks

    said = load(file)
    settings = said.with_values(values)
    mine = {name.removeprefix("training."): value for name, value in values.items()}
    chosen = of_this_box({**said.training.model_dump(exclude_unset=True), **mine})
    settings = settings.with_values(chosen) if chosen else settings
    known = (*remarks(settings.export), export_obstacle(settings), check_run(settings), outlive_logout())
    for remark in filter(None, known):
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

    --json prints {"runs", "models", "config", "state", "cache"}: a folder each.

    \b
    Examples:
      ollama-tune paths
      ollama-tune paths --json
    """
    from ollama_tune.core import paths as where

    places = {
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
    try:
        with telling(wants_json(sys.argv[1:])):
            status = cli.main(standalone_mode=False)
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
    return status if isinstance(status, int) else 0
