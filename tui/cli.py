"""The command line: `ollama-tune`. Without a command it opens the wizard.

Heavy modules are imported by the command that needs them, so that `--help` stays instant.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import TuneError, UsageError

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder, State

INTERRUPTED = 130


def _out(line: str) -> None:
    click.echo(line)


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


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
    if not _terminal():
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

    sys.exit(run_demo(_out))


@cli.command()
@click.option("--model", default="bundled", show_default=True, help="`bundled`, a folder or a hub id.")
@click.option("--data", default="bundled", show_default=True, help="`bundled` or a file of examples.")
@click.option("--set", "values", multiple=True, metavar="FIELD=VALUE", help="A setting that is yours.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the settings to this run.yaml.")
@click.option("--json", "as_json", is_flag=True, help="Print settings, reasons and estimates as JSON.")
def plan(model: str, data: str, values: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Recommend settings for a model and data on this box, each with its reason."""
    from ollama_tune.core.plan.prepare import prepare
    from ollama_tune.tui.printing import plan_json, plan_lines

    source = str(Path(data).absolute()) if data != "bundled" and Path(data).exists() else data
    made = prepare(model, source, _assignments(values))
    click.echo(json.dumps(plan_json(made), indent=2) if as_json else "\n".join(plan_lines(made)))
    if output is not None:
        made.settings.save(output)
        click.echo(f"Written: {output}. Start it with `ollama-tune run {output}`.", err=as_json)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "values", multiple=True, metavar="FIELD=VALUE", help="Change a setting for this run.")
@click.option("--detach", is_flag=True, help="Start and return; see `ollama-tune attach`.")
def run(file: Path, values: tuple[str, ...], detach: bool) -> None:
    """Train, measure and export as a run.yaml says, without questions."""
    from ollama_tune.core.plan.settings import load
    from ollama_tune.core.runs.folder import create_run
    from ollama_tune.core.runs.launch import start

    settings = load(file).with_values(_assignments(values))
    folder = create_run(settings, settings.export.name or Path(settings.model.source).name)
    _out(f"Run folder: {folder.path}")
    start(folder, "all")
    _follow_or_leave(folder, detach)


@cli.command()
@click.argument("name", required=False)
@click.option("--plain", is_flag=True, help="Lines instead of the screen.")
def attach(name: str | None, plain: bool) -> None:
    """Watch a run, live or past, with its whole history (the newest when none is named)."""
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    if plain or not _terminal():
        _follow_or_leave(folder, False, stop_on_interrupt=False)
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
    _out(f"{folder.name}: {folder.status().state.value}. Go on with `ollama-tune resume {folder.name}`.")


@cli.command()
@click.argument("name", required=False)
@click.option("--detach", is_flag=True, help="Start and return.")
def resume(name: str | None, detach: bool) -> None:
    """Go on with a stopped or broken run from its last checkpoint."""
    from ollama_tune.core.runs import control
    from ollama_tune.core.runs.folder import find_run

    folder = find_run(name)
    seen = len(folder.events())
    control.resume(folder)
    _follow_or_leave(folder, detach, skip=seen)


@cli.command()
@click.argument("name", required=False)
@click.option("--name", "model", help="Name in Ollama; default: the run's.")
@click.option("--type", "gguf_type", type=click.Choice(["f16", "bf16", "q8_0"]), help="Number format.")
@click.option("--push/--no-push", default=None, help="Send it to Ollama when one answers.")
def export(name: str | None, model: str | None, gguf_type: str | None, push: bool | None) -> None:
    """Write a trained run as GGUF, prove it, and send it to Ollama."""
    from ollama_tune.core.plan.names import check_ollama_name
    from ollama_tune.core.runs.folder import find_run, write_export_request
    from ollama_tune.core.runs.launch import start

    folder = find_run(name)
    wanted = {"name": model and check_ollama_name(model), "type": gguf_type, "push": push}
    write_export_request(folder, {key: value for key, value in wanted.items() if value is not None})
    seen = len(folder.events())
    start(folder, "export")
    _follow_or_leave(folder, False, skip=seen)


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
        if not _terminal():
            raise UsageError("Without a terminal nothing is asked.", "Say --yes to delete.")
        click.confirm(f"Delete {folder.name}, {human_bytes(folder_size(folder.path))}?", abort=True)
    control.delete(folder)
    _out(f"Deleted {folder.name}.")


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
        _out(f"{label:<8} {path}")


def _assignments(values: tuple[str, ...]) -> dict[str, Any]:
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


def _follow_or_leave(
    folder: RunFolder, detach: bool, *, skip: int = 0, stop_on_interrupt: bool = True
) -> None:
    if detach:
        _out(f"{folder.name} is going. Watch it with `ollama-tune attach {folder.name}`.")
        return
    from ollama_tune.tui.follow import Follower, follow

    try:
        state = follow(folder, Follower(_out), skip=skip)
    except KeyboardInterrupt:
        _interrupted(folder, stop_on_interrupt)
    else:
        _end(folder, state)


def _interrupted(folder: RunFolder, stop_run: bool) -> None:
    from ollama_tune.core.runs.control import request_stop, wait_until_free

    if stop_run and folder.alive():
        _out("Stopping after this step …")
        request_stop(folder)
        wait_until_free(folder, 300)
        _out(f"Go on with `ollama-tune resume {folder.name}`.")
    else:
        _out(f"{folder.name} goes on. Come back with `ollama-tune attach {folder.name}`.")
    sys.exit(INTERRUPTED)


def _end(folder: RunFolder, state: State) -> None:
    from ollama_tune.core.runs.folder import State

    if state is State.FINISHED:
        from ollama_tune.tui.printing import finished_lines

        for line in finished_lines(folder):
            _out(line)
        sys.exit(0)
    if state is State.CRASHED:
        click.echo(f"✗ {folder.status().message}", err=True)
    click.echo(f"{folder.name}: {state.value}. See {folder.path}.", err=True)
    sys.exit(0 if state in (State.STOPPED, State.NEW) else 1)


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
