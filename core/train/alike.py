"""What the processes of a run must have in common, compared before it matters and told by name.

Ranks that compute with other programs, settings, models or rows would wait for each other for ever, or train
something that nobody asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.runs.launch import environment
from ollama_tune.core.text import one_line
from ollama_tune.core.train.world import Alone

DECIDE = ("data", "training", "evaluation")
"""The sections of a run.yaml that decide what is computed ..."""
PLACES = ("data.path", "data.validation")
"""... but where the files lie on a machine."""
ONE_EACH = "Start as many processes on a machine as it has GPUs for the run (--nproc-per-node)."

Told = list[dict[str, Any]]


def same_start(group: Alone, settings: Settings) -> None:
    """Versions and settings are the same everywhere, and each process has a GPU of its own."""
    about = {f"the version of {name}": version for name, version in environment().items() if name != "python"}
    told = _met(group, "start", about | _deciding(settings) | {"gpu": _own_gpu(settings)}, apart=("gpu",))
    gpus = [each["gpu"] for each in told]
    for rank, gpu in enumerate(gpus):
        if gpu == "none":
            raise TuneError(f"{_named(rank, told)} has no GPU of its own.", ONE_EACH)
        if gpu and gpu in gpus[:rank]:
            raise TuneError(f"{_named(rank, told)} has the same GPU as rank {gpus.index(gpu)}.", ONE_EACH)


def same_model(group: Alone, folder: Path) -> None:
    """The model's configuration is the same everywhere, and its weights' files have the same sizes."""
    if group.size > 1:
        _met(group, "model", {"model.source": _model(folder)})


def same_rows(group: Alone, rows: str) -> None:
    """The rows are the same everywhere, by their fingerprints."""
    _met(group, "rows", {"data.path": rows})


def _met(group: Alone, name: str, about: Mapping[str, Any], apart: Sequence[str] = ()) -> Told:
    """What all ranks tell; `TuneError` for the first thing that is not the same, but what is `apart`."""
    mine = json.dumps({"host": socket.gethostname(), **about}, sort_keys=True)
    told: Told = [json.loads(each) for each in group.meet(name, mine)]
    for rank, other in enumerate(told):
        for what, value in told[0].items():
            if what != "host" and what not in apart and other.get(what) != value:
                raise _different(rank, told, what)
    return told


def _different(rank: int, told: Told, what: str) -> TuneError:
    one, other = (str(each.get(what)) for each in (told[rank], told[0]))
    long = max(len(one), len(other)) > 40
    values = "" if long else f" ({one_line(one, 40)}, and {one_line(other, 40)} with rank 0)"
    fix = (
        "Install the same versions on every machine."
        if "version" in what
        else f"Let {what} be the same on every machine."
    )
    return TuneError(
        f"{_named(rank, told)} has something else than rank 0 on {told[0]['host']}: {what}{values}.", fix
    )


def _named(rank: int, told: Told) -> str:
    return f"Rank {rank} of {len(told)} (counted from 0, on {told[rank]['host']})"


def _deciding(settings: Settings) -> dict[str, Any]:
    sections = settings.model_dump(mode="json")
    fields = {f"{name}.{field}": value for name in DECIDE for field, value in sections[name].items()}
    return {name: value for name, value in fields.items() if name not in PLACES}


def _own_gpu(settings: Settings) -> str:
    """The GPU that this process sees; `none` where it has none, empty where that is not known."""
    if settings.training.device != "cuda":
        return ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "none"
    from ollama_tune.core.machine.gpus import read_gpus

    return next((gpu.uuid for gpu in read_gpus().gpus), "")


def _model(folder: Path) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()
