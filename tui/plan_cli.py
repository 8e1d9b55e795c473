"""`ollama-tune plan`: recommended settings, or those of a run.yaml, and what they cost, here or on a card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import UsageError
from ollama_tune.tui.shell import assignments, write_output

if TYPE_CHECKING:
    from ollama_tune.core.machine.values import Gpu
    from ollama_tune.core.plan.prepare import Prepared

BUNDLED = "bundled"
EPILOG = """\b
Examples:
  ollama-tune plan --data rows.jsonl --model Qwen/Qwen3-4B-Instruct-2507
  ollama-tune plan --data rows.jsonl --model ~/my-model --gpu "RTX 4090" --json
  ollama-tune plan --data rows.jsonl --name my-model --output run.yaml && ollama-tune run run.yaml
  ollama-tune plan --gpu 24GiB --set training.rank=64 --set training.epochs=1
  ollama-tune plan run.yaml --json

\b
With --json one object is printed (bytes, seconds and kWh as numbers):
  settings  what a run.yaml holds
  choices   for every recommended field its value, reason and source
  changed   the fields you set
  memory    needed_bytes, free_bytes, fits, parts, method (formula or simulated,
            with the ratio that a probe measured on this GPU), remark; of several
            GPUs the figures are of one: processes, and sharded where each holds a part
  work      steps, tokens, seconds (between / and x spread), bytes on disk, energy_kwh
  offers    values to set so that the plan fits, with text and memory
  warnings  sentences
  gpu       name, total_bytes and free_bytes of the card that is planned for, or null
  gpus      the same of every GPU that the run takes
An error is {"outcome": "error", "code": ..., "what": ..., "fix": ...}.
"""


@click.command(epilog=EPILOG)
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[RUN.YAML]")
@click.option("--model", help="`bundled`, a folder or a hub id.  [default: bundled]")
@click.option("--data", help="`bundled` or a file of examples.  [default: bundled]")
@click.option(
    "--gpu", metavar="CARD", help="Plan for a card that is not here: its name or its memory, such as 24GiB."
)
@click.option("--name", help="Name in Ollama; the same as --set export.name=NAME.")
@click.option("--set", "values", multiple=True, metavar="FIELD=VALUE", help="A setting that is yours.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the settings to this run.yaml.")
@click.option("--no-simulation", is_flag=True, help="The formula's memory alone: at once.")
@click.option("--json", "as_json", is_flag=True, help="Print settings, reasons and estimates as JSON.")
def plan(
    file: Path | None,
    model: str | None,
    data: str | None,
    gpu: str | None,
    name: str | None,
    values: tuple[str, ...],
    output: Path | None,
    no_simulation: bool,
    as_json: bool,
) -> None:
    """Recommend settings for a model and data, each with its reason, and say what they cost.

    Of a run.yaml that is given nothing is changed: it says what a run of it needs, and what would fit.

    The model may be a folder with nothing but a config.json; tokens are then estimated. The memory of a plan
    for a GPU is confirmed by simulating a step with the installed libraries, which takes some seconds.
    """
    if file is not None and (model or data):
        raise UsageError(
            f"{file} names model and data.", "Say --set model.source=MODEL, --set data.path=FILE."
        )
    made = _made(file, model or BUNDLED, data or BUNDLED, gpu, assignments(values) | _named(name))
    if not as_json:
        _print(made)
    found = made if no_simulation else _confirmed(made, quiet=as_json)
    if output is not None:
        write_output(output, made.plan.settings.to_yaml())
    if as_json:
        _print_json(found)
    if output is not None:
        click.echo(f"Written: {output}. Start it with `ollama-tune run {output}`.", err=as_json)


def _named(name: str | None) -> dict[str, Any]:
    """The name in Ollama as a setting, checked now and not after the training."""
    if name is None:
        return {}
    from ollama_tune.core.plan.names import check_ollama_name

    check_ollama_name(name)
    return {"export.name": name}


def _made(file: Path | None, model: str, data: str, gpu: str | None, changed: dict[str, Any]) -> Prepared:
    from ollama_tune.core.plan.cards import gpu_of
    from ollama_tune.core.plan.prepare import prepare_file, prepare_for

    card = gpu_of(gpu) if gpu is not None else None
    if file is not None:
        return prepare_file(file, changed, card)
    source = str(Path(data).absolute()) if data != BUNDLED and Path(data).exists() else data
    return prepare_for(model, source, changed, card)


def _confirmed(made: Prepared, *, quiet: bool) -> Prepared:
    """The plan with its memory simulated; says so in lines, unless told to be quiet."""
    from ollama_tune.core.plan.confirm import can_confirm, confirm
    from ollama_tune.core.plan.predict import Simulator
    from ollama_tune.tui.printing import confirmed_lines

    if not can_confirm(made.plan, made.machine):
        return made
    with Simulator() as simulator:
        plan = confirm(made.plan, made.machine, made.spec, made.lengths, simulator)
    if not quiet:
        click.echo("\n".join(confirmed_lines(made.plan, plan)))
    return replace(made, plan=plan)


def _print(made: Prepared) -> None:
    from ollama_tune.tui.printing import plan_lines

    click.echo("\n".join(plan_lines(made.plan)))


def _print_json(made: Prepared) -> None:
    import json

    from ollama_tune.core.plan.gpus import taken
    from ollama_tune.tui.printing import plan_json

    found = made.machine.gpu.gpus
    all_used = [_gpu(gpu) for gpu in taken(made.plan.settings.training, found)]
    used = {"gpu": _gpu(found[0]) if found else None, "gpus": all_used}
    click.echo(json.dumps(plan_json(made.plan) | used, indent=2))


def _gpu(gpu: Gpu) -> dict[str, Any]:
    return {"name": gpu.name, "total_bytes": gpu.total, "free_bytes": gpu.free}
