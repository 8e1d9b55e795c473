"""What a proof is about: the base, the adapter, what was asked for, and the versions of the judges."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.order import Order
from ollama_tune.core.export.values import ExportStopped, Stopped
from ollama_tune.core.files import sha256_of
from ollama_tune.core.runs.launch import environment

_COMMIT = re.compile(r"[0-9a-f]{40}")


def describe(order: Order, adapter_digest: str, importance: bool, reference: str) -> dict[str, Any]:
    """The `about` of a verification: everything that one needs to make the same file and proof again."""
    settings = order.settings
    return {
        "run": order.folder.name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "base": {
            "source": settings.model.source,
            "revision": _revision(order.base) or settings.model.revision,
            "folder": str(order.base),
        },
        "adapter_sha256": adapter_digest,
        "quantization_in_training": settings.training.quantization,
        "name": order.name,
        "type": order.wanted.type,
        "importance": importance,
        "reference": reference,
        "versions": environment(),
    }


def _revision(base: Path) -> str | None:
    """The commit of a downloaded model: the folder's name in both caches."""
    return base.name if _COMMIT.fullmatch(base.name) else None


def digest_of(place: Path, stopped: Stopped = lambda: False) -> str:
    """SHA-256 of a file as 64 hex digits, or of a folder's weights, one file after the other.

    Raises `ExportStopped` between two pieces.
    """

    def check() -> None:
        if stopped():
            raise ExportStopped

    try:
        return sha256_of(*(sorted(place.glob("*.safetensors")) if place.is_dir() else [place]), check=check)
    except OSError as error:
        raise TuneError(f"{place} cannot be read: {error.strerror}.", "Train or copy it again.") from error
