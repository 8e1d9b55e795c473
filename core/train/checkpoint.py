"""Resumable states of a run: whole or absent, without pickle, checked when read."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.files import sha256_of, sync_folder, write_atomic
from ollama_tune.core.plan.settings import Recompute
from ollama_tune.core.runs.folder import RunFolder
from ollama_tune.core.train.path import TrainPath

if TYPE_CHECKING:
    import torch

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
KEEP = 2


@dataclass
class TrainState:
    """Where a run is, besides its tensors.

    The place in the data and all random numbers follow from `step` and the seed. `evaluated_step` is the
    last step measured on the validation rows; `rows` names the training rows and their order. What running
    out of memory changed for good: the rows computed at once, what is recomputed; besides the steps of
    late shortages and the step at which the worker began again. Early stopping: the last evaluation that
    was clearly better, and the evaluations since; scores where another metric than the loss decides. Late
    steps that were not finite, and what every learning rate is multiplied with since the run went back
    because of them.
    """

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    best_score: float | None = None
    evaluated_step: int = 0
    rows: str = ""
    scaler: dict[str, Any] = field(default_factory=dict)
    micro_batch: int | None = None
    recompute: Recompute | None = None
    shortages: list[int] = field(default_factory=list)
    restarted_at: int | None = None
    fallen_step: int | None = None
    fallen_loss: float | None = None
    fallen_score: float | None = None
    without_better: int = 0
    not_finite: list[int] = field(default_factory=list)
    rate_factor: float = 1.0


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
        whole = all(sha256_of(path / name) == digest for name, digest in data["files"].items())
        return Checkpoint(path, TrainState(**data["state"])) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest(folder: RunFolder, below: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, of a step below that one if given, and the names of damaged newer ones."""
    damaged: list[str] = []
    paths = [path for path in folder.checkpoints.glob("step-*") if below is None or _step_of(path) < below]
    for path in sorted(paths, key=_step_of, reverse=True):
        found = read_checkpoint(path)
        if found is not None:
            return found, damaged
        damaged.append(path.name)
    return None, damaged


def remove_later(folder: RunFolder, step: int) -> None:
    """Remove the checkpoints of later steps, which a run that went back does not want to meet again."""
    for path in folder.checkpoints.glob("step-*"):
        if _step_of(path) > step:
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.gone")), ignore_errors=True)


def _step_of(path: Path) -> int:
    number = path.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def save(folder: RunFolder, state: TrainState, path: TrainPath, optimizer: torch.optim.Optimizer) -> int:
    """Write the checkpoint of `state.step` in one piece, remove older ones, and return its bytes."""
    from safetensors.torch import save_file

    from ollama_tune.core.train.optimizer import optimizer_tensors

    folder.checkpoints.mkdir(mode=0o700, exist_ok=True)
    final = checkpoint_path(folder, state.step)
    part = final.with_name(f".{final.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    try:
        path.write_state(part)
        save_file(optimizer_tensors(optimizer, path.weights), part / OPTIMIZER)
        digests = {file.name: sha256_of(file) for file in sorted(part.iterdir())}
        (part / STATE).write_text(json.dumps({"state": asdict(state), "files": digests}))
        _publish(part, final)
    except OSError as error:
        raise _disk_error(final, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _remove_old(folder, state)
    return sum(file.stat().st_size for file in final.iterdir())


def save_state(folder: RunFolder, state: TrainState) -> int | None:
    """Write only the state of the checkpoint of `state.step`, whose tensors are as they were; its bytes.

    None where there is no such checkpoint. At no moment is there less than one of the two states.
    """
    path = checkpoint_path(folder, state.step)
    try:
        files = json.loads((path / STATE).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return None
    write_atomic(path / STATE, json.dumps({"state": asdict(state), "files": files}))
    return sum(file.stat().st_size for file in path.iterdir())


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


def load(checkpoint: Checkpoint, path: TrainPath, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's adapter and optimizer state into the path's weights and the optimizer."""
    from safetensors.torch import load_file

    from ollama_tune.core.train.optimizer import load_optimizer_tensors

    load_weights(checkpoint, path)
    load_optimizer_tensors(optimizer, path.weights, load_file(checkpoint.path / OPTIMIZER))


def load_weights(checkpoint: Checkpoint, path: TrainPath) -> None:
    """Put a checkpoint's weights into those of the path."""
    from safetensors.torch import load_file

    (file,) = (file for file in checkpoint.path.glob("*.safetensors") if file.name != OPTIMIZER)
    path.load_adapter(load_file(file))


def publish(folder: RunFolder, path: TrainPath) -> None:
    """Write what was trained as the run's `adapter` or `model` folder, in one piece.

    Raises `TuneError` for weights that are infinite numbers or none at all.
    """
    final = folder.model if path.whole else folder.adapter
    if not all(bool(weight.isfinite().all()) for weight in path.weights.values()):
        raise TuneError(
            f"The {final.name} holds infinite numbers or none at all, so it is not published.",
            f"`ollama-tune resume {folder.name}` goes on from the last checkpoint, which is whole.",
        )
    part = folder.path / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    try:
        path.write_adapter(part)
        _publish(part, final)
    except OSError as error:
        raise _disk_error(final, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
