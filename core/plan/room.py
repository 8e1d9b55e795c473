"""A last look at free memory, just before a run starts: others may have taken some by then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollama_tune.core.data.files.hub import commit_here, hub_id
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.machine.probe import probe_machine
from ollama_tune.core.machine.processes import in_use
from ollama_tune.core.machine.unload import settled
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.chat_templates import chosen_template
from ollama_tune.core.models.describe import describe
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.memory import predict
from ollama_tune.core.plan.rules import gpu_dtype
from ollama_tune.core.plan.settings import Settings, load
from ollama_tune.core.plan.stopping import require_measurable
from ollama_tune.core.text import human_bytes

NAMED = 3
"""Holders of memory that a sentence names."""


def look_again(probe: Callable[[], Machine] = probe_machine) -> Machine:
    """The box as it is now, its GPU memory taken once it moves no more: two calm seconds, ten at most."""
    machine = probe()
    if machine.device != "cuda":
        return machine
    free = settled()
    gpus = tuple(replace(gpu, free=free.get(gpu.uuid, gpu.free)) for gpu in machine.gpu.gpus)
    return replace(machine, gpu=replace(machine.gpu, gpus=gpus))


def shortage(settings: Settings, spec: ModelSpec, machine: Machine, longest: int) -> str:
    """What the run lacks on this box as it is, and who holds it; empty when it fits.

    `longest` is the longest row in tokens.
    """
    memory = predict(settings, spec, machine, longest)
    if memory.fits:
        return ""
    needed, free = human_bytes(memory.needed), human_bytes(memory.free)
    held = " ".join(in_use(machine)[:NAMED])
    what = f"With rows of {longest:,} tokens this run needs about {needed}, and only {free} are free now."
    return f"{what} {held}".strip()


def of_this_box(training: Mapping[str, Any], probe: Callable[[], Machine] = probe_machine) -> dict[str, str]:
    """The device, and the number format it computes fastest in, where a run.yaml leaves them open.

    `training` is what the file says of it; a file that says both is taken as it is.
    """
    open_fields = {"device", "compute_dtype"}.difference(training)
    if not open_fields:
        return {}
    machine = probe()
    device = training.get("device", machine.device)
    known = "bfloat16" if machine.host.bfloat16 else "float32"
    dtype = gpu_dtype(machine).value if device == "cuda" and machine.gpu.gpus else known
    found = {"device": device, "compute_dtype": dtype}
    return {f"training.{name}": found[name] for name in sorted(open_fields)}


def settings_here(
    file: Path, values: Mapping[str, Any], probe: Callable[[], Machine] = probe_machine
) -> tuple[Settings, dict[str, str]]:
    """A run.yaml with these values by dotted path, fit for this box; and what was chosen as it says nothing
    of it, as `of_this_box`."""
    said = load(file)
    mine = {name.removeprefix("training."): value for name, value in values.items()}
    chosen = of_this_box({**said.training.model_dump(exclude_unset=True), **mine}, probe)
    return said.with_values({**values, **chosen}), chosen


def require_figure(settings: Settings) -> None:
    """Read the rows, where an early stopping by something else than the loss asks what they are.

    Raises `TuneError` where the figure cannot be had of them. Data that has to be fetched first is not.
    """
    metric, data = settings.training.early_stopping_metric, settings.data
    if metric == "loss" or (hub_id(data.path) and not commit_here(data.path, data.revision)):
        return
    require_measurable(metric, load_dataset(data.path, data.reading()).kind)


def check_run(settings: Settings) -> str:
    """As `shortage` for a `run.yaml`, whose rows are not counted yet: as if they were as long as allowed.

    Raises `TuneError` where the model cannot be read, or is a base model whose chat form is not settled, and
    where the rows do not have the figure that the best state is chosen by.
    """
    require_figure(settings)
    spec = describe(settings.model.source, settings.model.revision)
    chosen_template(spec.folder, settings.model.chat_template)
    return shortage(settings, spec, look_again(), settings.training.sequence_length)
