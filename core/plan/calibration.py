"""How far measured memory was from the predicted: one ratio for each kind of card, software and model.

The probe at the start of a run writes it, the plan of a later run may read it. A ratio belongs to the
prediction before any calibration, so the probe divides by the plain formula.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ollama_tune.core.files import write_atomic
from ollama_tune.core.paths import data_dir

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def ratio_key(device: str, driver: str, family: str, method: str) -> str:
    """What a ratio holds for: the GPU's name (or `cpu`), its driver, the installed libraries that decide
    which tensors are kept, the model's type (`llama`) and the method (`nf4 bfloat16`)."""
    return " | ".join([device, driver, *(f"{name} {_version(name)}" for name in LIBRARIES), family, method])


def measured_ratio(key: str) -> float | None:
    """Measured over predicted peak of the last probe with that key, or None where there was none."""
    entry = _read().get(key)
    ratio = entry.get("ratio") if isinstance(entry, dict) else None
    return float(ratio) if isinstance(ratio, (int, float)) and ratio > 0 else None


def store_ratio(key: str, predicted: int, measured: int) -> float:
    """Keep the ratio of a probe (both figures in bytes) and return it; the last one of a key counts."""
    ratio = round(measured / max(predicted, 1), 4)
    known = _read()
    known[key] = {"ratio": ratio, "predicted": predicted, "measured": measured, "time": round(time.time())}
    write_atomic(_path(), json.dumps(known, indent=1))
    return ratio


def _path() -> Path:
    return data_dir() / "memory.json"


def _read() -> dict[str, Any]:
    """The file's table; a damaged one counts as empty, for it can be measured again."""
    try:
        table = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"
