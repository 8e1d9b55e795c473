"""`ollama-tune launch`: the file that starts a run on a cluster, with SLURM, Ray or SkyPilot."""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import UsageError
from ollama_tune.tui.shell import json_option, write_output
from ollama_tune.tui.tracking_cli import tracking_options, tracking_values

if TYPE_CHECKING:
    from ollama_tune.core.runs.jobs import Job, Launch

ENDINGS = {"slurm": ".slurm.sh", "ray": ".ray.py", "skypilot": ".sky.yaml"}
"""What the file is called after the run.yaml, by engine."""
ONLY = {
    "time": ("slurm",),
    "partition": ("slurm",),
    "account": ("slurm",),
    "install": ("skypilot",),
    "bucket": ("skypilot",),
}
"""Options that some engines have no word for."""
EPILOG = """\b
Examples:
  ollama-tune launch run.yaml --on slurm --nodes 2 --gpus 8 --time 12:00:00 --partition gpu
  ollama-tune launch run.yaml --on ray --nodes 2 --gpus 4 --output job.ray.py
  ollama-tune launch run.yaml --on skypilot --gpus 8 --card H100 --install ollama-tune --json
  ollama-tune launch run.yaml --on skypilot --card L4 --install ollama-tune --bucket s3://mine -o spot.yaml

\b
With --json one object is printed:
  outcome    `ok`
  engine     slurm, ray or skypilot
  output     the file written
  submit     the command that submits it, as a list of words
  processes  training processes in all: one a GPU
  notes      sentences: what has to be so for the job to work
An error is {"outcome": "error", "code": ..., "what": ..., "fix": ...}.
"""


@click.command(epilog=EPILOG)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--on", "engine", type=click.Choice(list(ENDINGS)), required=True, help="What starts the job.")
@click.option("--nodes", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Machines.")
@click.option(
    "--gpus",
    type=click.IntRange(0, 64),
    default=1,
    show_default=True,
    help="GPUs of a machine; 0 trains on its CPU.",
)
@click.option("--card", default="", help="The GPU's name as the cluster calls it, such as H100.")
@click.option("--cpus", type=click.IntRange(1, 4096), help="Cores of a machine; left out: 8 a GPU.")
@click.option("--time", default="", metavar="TIME", help="The job's limit: minutes, 12:00:00 or 2-00:00:00.")
@click.option("--partition", default="", help="SLURM's partition.")
@click.option("--account", default="", help="SLURM's account.")
@click.option(
    "--install", default="", help="What pip installs on SkyPilot's machines: a name, address or wheel."
)
@click.option(
    "--bucket", default="", metavar="URL", help="Keep the run there (s3://NAME): SkyPilot may lose a machine."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file; left out: beside the run.yaml."
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@tracking_options
@json_option
def launch(file: Path, engine: str, output: Path | None, force: bool, as_json: bool, **asked: Any) -> None:
    """Write the file that starts a run on a cluster, and say how it is submitted.

    Nothing is submitted and nothing is asked of the cluster. Every machine runs the same worker; rows a step,
    their order and the loss curve stay those of one GPU. A job that is cut off goes on from its last
    checkpoint. The file holds no keys.
    """
    from ollama_tune.core.runs import jobs

    for name, engines in ONLY.items():
        if asked[name] and engine not in engines:
            raise UsageError(f"--{name} means nothing to {engine}.", f"It is for {', '.join(engines)}.")
    output = output or file.with_name(f"{file.stem}{ENDINGS[engine]}")
    asked["values"] = tracking_values(asked.pop("tensorboard"), asked.pop("trackers"))
    job = _job(file, output, asked)
    made = _made(engine, job)
    if not force and (output.exists() or output.is_symlink()):
        raise UsageError(f"{output} is there already.", "Name another with --output, or say --force.")
    write_output(output, made.text)
    notes = [*job.remarks(), *made.notes]
    if as_json:
        click.echo(json.dumps(_json(engine, job, made, notes), indent=2))
        return
    click.echo(f"Written: {output}. Submit it with:\n  {jobs.command_line(made.submit)}")
    for note in notes:
        click.echo(f"! {note}")


def _job(file: Path, output: Path, asked: dict[str, Any]) -> Job:
    """The job, with the settings of the file checked now and not in the queue."""
    from ollama_tune.core.plan.settings import load
    from ollama_tune.core.runs.jobs import Job

    home = os.environ.get("OLLAMA_TUNE_HOME")
    settings = load(file)
    settings.with_values(asked["values"])  # what cannot be is refused now and not in the queue
    job = Job(
        file=file.absolute(),
        settings=settings,
        output=output.absolute(),
        folder=Path.cwd(),
        python=sys.executable,
        stamp=datetime.datetime.now().strftime("%Y%m%d-%H%M%S"),
        environment={"OLLAMA_TUNE_HOME": str(Path(home).expanduser().absolute())} if home else {},
        **{**asked, "cpus": asked["cpus"] or 0},
    )
    job.check()
    return job


def _made(engine: str, job: Job) -> Launch:
    from ollama_tune.core.runs.ray_job import ray
    from ollama_tune.core.runs.skypilot import skypilot
    from ollama_tune.core.runs.slurm import slurm

    return {"slurm": slurm, "ray": ray, "skypilot": skypilot}[engine](job)


def _json(engine: str, job: Job, made: Launch, notes: list[str]) -> dict[str, Any]:
    return {
        "outcome": "ok",
        "engine": engine,
        "output": str(job.output),
        "submit": list(made.submit),
        "processes": job.nodes * job.processes,
        "notes": notes,
    }
