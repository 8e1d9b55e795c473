"""How far measured memory was from the predicted: one ratio for each kind of card, software and model.

The probe at the start of a run writes it, the plan of a later run reads it. A ratio belongs to the
prediction before any calibration, so the probe divides by the plain formula.
"""

from __future__ import annotations

import json
import os
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ollama_tune.core.files import read_table, write_atomic
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.paths import data_dir
from ollama_tune.core.plan.settings import TrainingSettings

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
BELIEVED = (0.8, 1.25)
"""Ratios outside tell of an accident, such as another program's memory, and are not used for a plan."""


def ratio_key(device: str, driver: str, family: str, method: str) -> str:
    """What a ratio holds for: the GPU's name (or `cpu`), its driver, the installed libraries that decide
    which tensors are kept, the model's type (`llama`) and the method (`nf4 bfloat16`)."""
    return " | ".join([device, driver, *installed(), family, method])


def method_of(training: TrainingSettings) -> str:
    """The part of the settings that a ratio is kept for."""
    kind = "" if training.method == "lora" else f" {training.method}"
    return f"{training.quantization} {training.compute_dtype}{kind}"


def gpu_ratio(machine: Machine, family: str, training: TrainingSettings) -> float | None:
    """Measured over predicted on this very GPU, driver and software; None where no probe measured it.

    For a GPU only: what a run holds of the computer's memory depends on what else went on there.
    """
    gpus = machine.gpu.gpus
    if training.device != "cuda" or not gpus or not _place(os.environ.get("OLLAMA_TUNE_HOME")).exists():
        return None
    ratio = measured_ratio(ratio_key(gpus[0].name, machine.gpu.driver or "", family, method_of(training)))
    return ratio if ratio is not None and BELIEVED[0] <= ratio <= BELIEVED[1] else None


def measured_ratio(key: str) -> float | None:
    """Measured over predicted peak of the last probe with that key, or None where there was none."""
    entry = read_table(_path()).get(key)
    ratio = entry.get("ratio") if isinstance(entry, dict) else None
    return float(ratio) if isinstance(ratio, (int, float)) and ratio > 0 else None


def store_ratio(key: str, predicted: int, measured: int) -> float:
    """Keep the ratio of a probe (both figures in bytes) and return it; the last one of a key counts."""
    ratio = round(measured / max(predicted, 1), 4)
    known = read_table(_path())
    known[key] = {"ratio": ratio, "predicted": predicted, "measured": measured, "time": round(time.time())}
    write_atomic(_path(), json.dumps(known, indent=1))
    return ratio


@cache
def _place(_home: str | None) -> Path:
    """As `_path`, for a plan, which asks hundreds of times."""
    return _path()


def _path() -> Path:
    return data_dir() / "memory.json"


@cache
def installed() -> tuple[str, ...]:
    """Names and versions of the libraries that decide what a training step holds."""
    return tuple(f"{name} {_version(name)}" for name in LIBRARIES)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"
