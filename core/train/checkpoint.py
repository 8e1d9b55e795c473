"""Resumable states of a run: whole or absent, without pickle, checked when read."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import sync_folder
from ollama_tune.core.runs.folder import RunFolder

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
KEEP = 2


@dataclass
class TrainState:
    """Where a run is, besides its tensors.

    The place in the data and all random numbers follow from `step` and the seed. `evaluated_step` is the
    last step measured on the validation rows; `rows` names the training rows and their order. What running
    out of memory changed for good: the rows computed at once, checkpointing, offload; besides the steps of
    late shortages and the step at which the worker began again.
    """

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    evaluated_step: int = 0
    rows: str = ""
    scaler: dict[str, Any] = field(default_factory=dict)
    micro_batch: int | None = None
    checkpointing: bool = False
    offload: bool = False
    shortages: list[int] = field(default_factory=list)
    restarted_at: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found whole on disk."""

    path: Path
    state: TrainState


def checkpoint_path(folder: RunFolder, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return folder.checkpoints / f"step-{step:06d}"


def read_checkpoint(path: Path) -> Checkpoint | None:
    """A checkpoint, or None where a file is missing or is not what was written (compared by SHA-256)."""
    try:
        data = json.loads((path / STATE).read_text())
        whole = all(_digest(path / name) == digest for name, digest in data["files"].items())
        return Checkpoint(path, TrainState(**data["state"])) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest(folder: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and the names of damaged newer ones."""
    damaged: list[str] = []
    for path in sorted(folder.checkpoints.glob("step-*"), key=_step_of, reverse=True):
        found = read_checkpoint(path)
        if found is not None:
            return found, damaged
        damaged.append(path.name)
    return None, damaged


def _step_of(path: Path) -> int:
    number = path.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def save(folder: RunFolder, state: TrainState, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Write the checkpoint of `state.step` in one piece, remove older ones, and return its bytes."""
    from safetensors.torch import save_file

    folder.checkpoints.mkdir(mode=0o700, exist_ok=True)
    final = checkpoint_path(folder, state.step)
    part = final.with_name(f".{final.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    try:
        write_adapter(part, model)
        save_file(_optimizer_tensors(model, optimizer), part / OPTIMIZER)
        names = (ADAPTER, ADAPTER_CONFIG, OPTIMIZER)
        digests = {name: _digest(part / name) for name in names}
        (part / STATE).write_text(json.dumps({"state": asdict(state), "files": digests}))
        _publish(part, final)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _disk_error(final, error) from error
    _remove_old(folder, state)
    return sum(file.stat().st_size for file in final.iterdir())


def _disk_error(path: Path, error: OSError) -> TuneError:
    return TuneError(
        f"{path.name} cannot be written: {error.strerror}.",
        f"Free some space on the disk of {path.parent} and resume the run.",
    )


def _publish(part: Path, final: Path) -> None:
    """Sync everything and give the folder its name; an old one of that name goes first."""
    for file in part.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    sync_folder(part)
    if final.exists():
        shutil.rmtree(final)
    part.rename(final)
    sync_folder(final.parent)


def _remove_old(folder: RunFolder, state: TrainState) -> None:
    """Keep the two newest and the best; what a killed worker left half-written goes too."""
    for path in folder.checkpoints.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)
    paths = sorted(folder.checkpoints.glob("step-*"), key=_step_of)
    for path in paths[:-KEEP]:
        if _step_of(path) != state.best_step:
            shutil.rmtree(path, ignore_errors=True)


def write_adapter(folder: Path, model: Any) -> None:
    """The adapter in PEFT's format: its weights and its configuration."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    whole = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(whole, folder / ADAPTER, metadata={"format": "pt"})
    config = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(folder))


def load(checkpoint: Checkpoint, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's adapter and optimizer state into the model and the optimizer."""
    from safetensors.torch import load_file

    load_weights(checkpoint, model)
    tensors = load_file(checkpoint.path / OPTIMIZER)
    if not tensors:
        return  # written before the first step
    for name, weight in _trained(model).items():
        moments = {key: tensors[f"{key}:{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        steps = moments.pop("step")
        on_device = {key: value.to(weight.device) for key, value in moments.items()}
        optimizer.state[weight] = {"step": steps.to(weight.device), **on_device}


def load_weights(checkpoint: Checkpoint, model: Any) -> None:
    """Put a checkpoint's adapter into the model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(checkpoint.path / ADAPTER))


def _trained(model: Any) -> Mapping[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{key}:{name}": value.detach().cpu().contiguous()
        for name, weight in _trained(model).items()
        for key, value in optimizer.state[weight].items()
    }


def publish_adapter(folder: RunFolder, model: Any) -> None:
    """Write the finished adapter as the run's `adapter` folder, in one piece."""
    part = folder.path / ".adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    try:
        write_adapter(part, model)
        _publish(part, folder.adapter)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _disk_error(folder.adapter, error) from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
