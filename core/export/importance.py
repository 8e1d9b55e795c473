"""What a training left about the inputs of each linear layer: how much a column of its weights matters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter import canonical
from ollama_tune.core.export.tensors import TensorPlan
from ollama_tune.core.text import one_line

FLOOR = 1e-3
"""Least importance of a column as a share of the mean one: the held-out rows have not seen everything."""


class Importance:
    """The importance matrix of a run: for each module the mean of its squared inputs, per column.

    A quantizer weighs its rounding errors with it, since the error of an output is the sum over the columns
    of (error of the weight x input) squared.
    """

    def __init__(self, columns: Mapping[str, NDArray[np.float32]]) -> None:
        self._columns = {canonical(name): values for name, values in columns.items()}

    @classmethod
    def read(cls, path: Path) -> Importance:
        """Read a run's `importance.safetensors`; raises `TuneError` where it is broken."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            columns = load_file(path)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise _unusable(path, one_line(str(error), 100)) from error
        for name, values in columns.items():
            if values.dtype != np.float32 or values.ndim != 1 or not _all_usable(values):
                raise _unusable(path, f"its {one_line(name, 80)} is no row of numbers")
        return cls(columns)

    def of(self, plan: TensorPlan, matrix: int = 0) -> NDArray[np.float32] | None:
        """One number a column of a tensor, or of one of its stacked matrices; None where nothing is known."""
        found = self._columns.get(canonical(plan.modules[matrix])) if matrix < len(plan.modules) else None
        if found is None or found.shape != (plan.columns,) or not found.any():
            return None
        return np.maximum(found, np.float32(FLOOR * found.mean(dtype=np.float64)))

    def count(self, plans: tuple[TensorPlan, ...]) -> int:
        """How many tensors it says something about."""
        return sum(
            any(self.of(plan, matrix) is not None for matrix in range(len(plan.modules))) for plan in plans
        )


def _all_usable(values: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all())


def _unusable(path: Path, why: str) -> TuneError:
    return TuneError(
        f"The importance matrix {path} cannot be used: {why}.",
        "Export again with export.importance switched off.",
    )
