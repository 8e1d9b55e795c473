"""`ollama-tune predict`: the memory that any training settings would need, without data or weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ollama_tune.tui.shell import assignments

if TYPE_CHECKING:
    from ollama_tune.core.plan.predict import Prediction

EPILOG = """\b
Examples:
  ollama-tune predict --model ~/Llama-3.1-8B --set quantization=nf4 --set rank=16 \\
      --set sequence_length=2048 --set gradient_checkpointing=layers --json
  ollama-tune predict --model ./model --set rank=64 --method formula

\b
With --json one object is printed, in bytes:
  allocated_bytes, reserved_bytes  what PyTorch's tensors and its cache take
  nvml_bytes                       what nvidia-smi shows: compare this with the card
  parts                            of what is allocated, by name
  method, notes                    how it was found, and what should be known
An error is {"outcome": "error", "code": ..., "what": ..., "fix": ...}.
"""


def _keys(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print every key with its default and meaning, and end."""
    if not wanted or context.resilient_parsing:
        return
    from ollama_tune.core.plan.request import request_help

    for name, default, text in request_help():
        click.echo(f"{name} ({default})\n    {text}")
    context.exit()


@click.command(epilog=EPILOG)
@click.option(
    "--model",
    required=True,
    help="A folder with a config.json (weights and tokenizer are not needed), or a model that is here.",
)
@click.option(
    "--set",
    "values",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting as in the training section of run.yaml, and those of --keys.",
)
@click.option(
    "--method",
    type=click.Choice(["simulation", "formula"]),
    default="simulation",
    show_default=True,
    help="Simulate a step on the installed libraries (seconds), or use the closed formula (at once).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, sizes in bytes.")
@click.option(
    "--keys", is_flag=True, expose_value=False, is_eager=True, callback=_keys, help="List the keys for --set."
)
def predict(model: str, values: tuple[str, ...], method: str, as_json: bool) -> None:
    """Predict the peak of GPU memory of a training with these settings.

    Every row has sequence_length tokens. What is not set has the default that --keys shows. With --json an
    error is {"outcome": "error", "code": ..., "what": ..., "fix": ...}.
    """
    import json

    from ollama_tune.core.models.locate import resolve
    from ollama_tune.core.plan.predict import predict_peak, read_model_config
    from ollama_tune.core.plan.request import parse_request

    request = parse_request(assignments(values))
    config = read_model_config(resolve(model), any_form=True)
    found = predict_peak(config, request, "formula" if method == "formula" else "simulation")
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(lines(found)))


def lines(found: Prediction) -> list[str]:
    """The prediction in words."""
    from ollama_tune.core.text import human_bytes, visible

    rows = [
        ("peak", found.nvml_bytes),
        ("reserved", found.reserved_bytes),
        ("allocated", found.allocated_bytes),
    ]
    shown = [f"{name:<10} {human_bytes(size)}" for name, size in rows]
    shown += [f"  {name:<12} {human_bytes(size)}" for name, size in found.parts.items() if size]
    return [*shown, f"by {found.method}", *(f"! {visible(note)}" for note in found.notes)]
