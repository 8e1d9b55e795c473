"""Commands and options that send a run's figures to TensorBoard, MLflow, Weights & Biases or Trackio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ollama_tune.core.errors import TuneError
from ollama_tune.tui.shell import json_option, say

if TYPE_CHECKING:
    from ollama_tune.core.runs.folder import RunFolder

NAMES = ("tensorboard", "mlflow", "wandb", "trackio")
Command = TypeVar("Command", bound=Callable[..., Any])


def tracking_options(command: Command) -> Command:
    """`--tensorboard [DIR]` and `--track NAME` of a command that starts a run."""
    named = click.option(
        "--track", "trackers", multiple=True, type=click.Choice(NAMES), help="Send the figures there as well."
    )
    board = click.option(
        "--tensorboard",
        is_flag=False,
        flag_value="",
        default=None,
        metavar="[DIR]",
        help="Write files for TensorBoard, in the run's folder or below DIR.",
    )
    return board(named(command))


def tracking_values(tensorboard: str | None, trackers: tuple[str, ...]) -> dict[str, Any]:
    """These options as settings; none where they were not given."""
    names = list(dict.fromkeys((*trackers, *(() if tensorboard is None else ("tensorboard",)))))
    values: dict[str, Any] = {"tracking.to": names} if names else {}
    return values | {"tracking.folder": tensorboard} if tensorboard else values


@click.command()
@click.argument("run")
@click.argument("directory", required=False, metavar="[DIR]", type=click.Path(path_type=Path))
@json_option
def tensorboard(run: str, directory: Path | None, as_json: bool) -> None:
    """Write a run as files for TensorBoard, with its whole history.

    They go into the run's folder, or into a folder with its name in DIR. For a run that is going they are
    written on until it ends; those that were written before are replaced.

    --json prints what `ollama-tune track --json` prints.

    \b
    Examples:
      ollama-tune tensorboard RUN
      ollama-tune tensorboard RUN ./charts --json
    """
    values = {"folder": str(directory.expanduser().absolute())} if directory else {}
    _send(run, "tensorboard", values, as_json)


@click.command()
@click.argument("run", required=False, metavar="[RUN]")
@click.option("--to", "name", required=True, type=click.Choice(NAMES), help="Where to.")
@click.option("--project", help="The project there.  [default: that of the run's settings]")
@json_option
def track(run: str | None, name: str, project: str | None, as_json: bool) -> None:
    """Send the figures of a run, finished or going, to a tracker; never rows of the data or prompts.

    Without a name it is the newest run. What the tracker has already is not sent twice. For a run that is
    going the rest follows as it comes. Each needs its package, as in `pip install 'ollama-tune[wandb]'`.
    Where the service is and who you are there, its own client knows: MLFLOW_TRACKING_URI; WANDB_API_KEY or
    WANDB_MODE=offline; TRACKIO_SPACE_ID.

    \b
    --json prints one object:
      outcome, run, tracker  "ok", the run's folder, the name
      place                  where to look: a command or an address
      live                   true where it goes on as the run does
      steps                  the last step that is there

    \b
    Examples:
      ollama-tune track RUN --to mlflow
      ollama-tune track RUN --to wandb --project kitchen --json
    """
    _send(run, name, {"project": project} if project else {}, as_json)


def _send(run: str | None, name: str, values: dict[str, str], as_json: bool) -> None:
    from ollama_tune.core.plan.settings import TrackingSettings
    from ollama_tune.core.runs.folder import find_run
    from ollama_tune.core.runs.trackers import require
    from ollama_tune.core.runs.tracking import send

    require([name])
    folder = find_run(run)
    wanted = TrackingSettings(**{**folder.settings().tracking.model_dump(), **values, "to": [name]})
    live = folder.alive()
    there = send(folder, name, wanted)
    if there.problem:
        what = f"{name} did not take the figures: {there.problem}"
        raise TuneError(what, "Mend that and give the command again.")
    steps = max((there.told or {}).values(), default=0)
    done = "it follows the run" if live else f"{steps:,} steps are there"
    told = {"run": str(folder.path), "tracker": name, "place": there.place, "live": live, "steps": steps}
    say(f"{folder.name}: {done}. Look there: {there.place}", as_json, {"outcome": "ok", **told})


def tracking_lines(folder: RunFolder) -> list[str]:
    """Where the figures of a run went, and what went wrong there."""
    from ollama_tune.core.runs.tracking import tracked

    lines = []
    for name, there in tracked(folder).items():
        if there.problem:
            again = f"ollama-tune track {folder.name} --to {name}"
            lines.append(f"! {name} did not take all figures: {there.problem} Send them again: {again}")
        else:
            lines.append(f"Figures at {name}: {there.place}")
    return lines
