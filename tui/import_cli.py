"""`ollama-tune import`: a config of another tool as a run.yaml, and what became of each of its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.core.errors import UsageError
from ollama_tune.tui.shell import json_option, write_output

if TYPE_CHECKING:
    from ollama_tune.core.plan.import_config import Field, Imported

EPILOG = """\b
Examples:
  ollama-tune import llamafactory.yaml
  ollama-tune import axolotl.yml --output run.yaml
  ollama-tune import axolotl.yml --json

\b
With --json one object is printed:
  outcome   `ok`
  format    llamafactory, axolotl or trl
  settings  what the run.yaml holds
  fields    of each field its name, value, line (null: not in the file), outcome,
            settings (what it gave by dotted path) and why:
            taken         means the same here
            approximated  the nearest there is
            default       not in the file; what the tool does then
            dropped       changes nothing in the trained model
            missing       has no equivalent; the trained model may differ
  output    the file written, or null
An error is {"outcome": "error", "code": ..., "what": ..., "fix": ...}.
"""
HEADS = {
    "missing": "No equivalent (the trained model may differ):",
    "approximated": "Approximated:",
    "taken": "Taken:",
    "default": "Not in the file, and so taken from the tool's own defaults:",
    "dropped": "Dropped (changes nothing in the trained model):",
}


@click.command(name="import", epilog=EPILOG)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Write the run.yaml here, not to the screen.")
@json_option
def import_(file: Path, output: Path | None, as_json: bool) -> None:
    """Make a run.yaml of a config of LLaMA-Factory, Axolotl or TRL.

    Says of every field whether it was taken, approximated, dropped or has no equivalent. Which tool it is
    is told by its fields; names of files are relative to the config.
    """
    from ollama_tune.core.plan.import_config import import_config

    if output is not None and output.absolute() == file.absolute():
        raise UsageError("--output is the file that is read.", "Name another file.")
    found = import_config(file)
    if output is not None:
        write_output(output, found.to_yaml())
    if as_json:
        click.echo(json.dumps(_json(found, output), indent=2, default=str))
        return
    if output is None:
        click.echo(found.to_yaml())
    for line in lines(found):
        click.echo(line, err=output is None)
    if output is not None:
        click.echo(f"Written: {output}. Start it with `ollama-tune run {output}`.")


def _json(found: Imported, output: Path | None) -> dict[str, Any]:
    return {
        "outcome": "ok",
        "format": found.format,
        "settings": found.tree,
        "fields": [vars(field) for field in found.fields],
        "output": str(output) if output else None,
    }


def lines(found: Imported) -> Iterator[str]:
    """Every field with its value and what became of it, what is missing first."""
    for outcome, head in HEADS.items():
        fields = [field for field in found.fields if field.outcome == outcome]
        if fields:
            yield head
        for field in fields:
            yield f"  {_line(field)}"


def _line(field: Field) -> str:
    from ollama_tune.core.text import one_line

    gave = ", ".join(f"{path} = {one_line(str(value), 80)}" for path, value in field.settings.items())
    if field.outcome == "default":
        return gave
    told = ". ".join(filter(None, (gave, field.why)))
    return f"{one_line(field.name, 60)}: {one_line(str(field.value), 80)} → {told}"
