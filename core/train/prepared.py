"""A model that a warm worker has loaded before it was given a run, with a fresh adapter on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ollama_tune.core.data.values import Example
from ollama_tune.core.models.locate import is_hub_id
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.paths import choose_path
from ollama_tune.core.plan.settings import ModelSettings, Settings, TrainingSettings
from ollama_tune.core.train.path import TrainPath, make_path

LOOPS_OWN = {
    "objective",
    "beta",
    "optimizer",
    "learning_rate",
    "schedule",
    "warmup",
    "weight_decay",
    "max_gradient_norm",
    "epochs",
    "batch_size",
    "gradient_accumulation_steps",
    "sequence_length",
    "evaluation_interval",
    "early_stopping",
    "checkpoint_minutes",
}
"""Settings that change nothing in a path; whatever else differs from the draft makes the path useless."""
ROW = 8
"""Tokens of the row that is rehearsed."""

Key = tuple[Any, ...]


class Overtaken(Exception):
    """Something newer is to be done; what was being loaded is dropped."""


class Prepared:
    """At most one path, loaded for settings that are likely; `take` gives it away if they came true."""

    def __init__(self) -> None:
        self._key: Key | None = None
        self._path: TrainPath | None = None

    def load(self, draft: Settings | None, overtaken: Callable[[], bool]) -> None:
        """Load what a run with these settings needs and let go of everything else.

        On the CPU that is the model with its adapter, and a first step on a made-up row. On a GPU only the
        files are read ahead: memory taken there would mislead the plan. For the general path its libraries
        are imported. Raises `Overtaken` soon after `overtaken` says so, `TuneError` for an unusable model.
        """
        if draft is None:
            self._forget()
            return
        training, spec = draft.training, read_spec(draft.model.source, draft.model.revision)
        base = base_name(draft.model, spec)
        key = _key(spec.folder, training, base)
        if key == self._key:
            return
        self._forget()
        chosen = choose_path(spec, training)
        if chosen[0] == "general":
            from ollama_tune.core.train import general  # noqa: F401
        elif training.device != "cpu":
            _read_ahead(spec.folder)
        else:
            path = make_path(chosen, spec.folder, training, base, _ending(overtaken))
            _rehearse(path)
            self._key, self._path = key, path

    def take(self, folder: Path, training: TrainingSettings, base: str) -> TrainPath | None:
        """The path of the model in that folder with these settings, once; None where another was loaded."""
        found = self._path if self._key == _key(folder, training, base) else None
        self._forget()
        return found

    def _forget(self) -> None:
        self._key = self._path = None


def base_name(model: ModelSettings, spec: ModelSpec) -> str:
    """What an adapter says its base is: the hub's name of it, or its folder."""
    return model.source if is_hub_id(model.source) else str(spec.folder)


def _key(folder: Path, training: TrainingSettings, base: str) -> Key:
    """What a loaded path depends on: the model's name and files, and the settings that shape it."""
    files = [(entry.name, entry.stat()) for entry in os.scandir(folder)]
    states = sorted((name, about.st_size, about.st_mtime_ns) for name, about in files)
    return base, str(folder), tuple(states), training.model_dump_json(exclude=LOOPS_OWN)


def _ending(overtaken: Callable[[], bool]) -> Callable[[int, int], None]:
    """Ends the loading between two tensors once there is something newer."""

    def report(_done: int, _total: int) -> None:
        if overtaken():
            raise Overtaken

    return report


def _rehearse(path: TrainPath) -> None:
    """Forward and backward once: what the libraries set up at first use is done before it is waited for."""
    row = Example("", tuple(range(ROW)), (False, *[True] * (ROW - 1)), ())
    path.train(True)
    path.loss(path.collate([row])).backward()  # type: ignore[no-untyped-call]
    for weight in path.weights.values():
        weight.grad = None


def _read_ahead(folder: Path) -> None:
    """Ask the kernel to read the weights' files into memory that is free anyway, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
