"""Compares rows of every tensor in an exported file with base + adapter, and weighs the adapter in them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ollama_tune.core.export.gguf import Source
from ollama_tune.core.export.header import StoredTensor
from ollama_tune.core.export.importance import Importance
from ollama_tune.core.export.quantize import TensorType, one_thread_each
from ollama_tune.core.export.tensors import TensorPlan
from ollama_tune.core.export.values import Check

TOLERANCE = 1.3
"""How far a tensor's error may lie above what its type and the largest numbers of its blocks let expect.

Measured over Gaussian, Laplace, Student-t (3), uniform, sparse and spiked weights, with and without an
importance matrix: at most 1.15, whatever the shape of the weights.
"""
MEASURABLE = 0.2
"""Above this standard error of its coefficient a tensor says nothing about the adapter."""
COEFFICIENT = 0.1
"""How far from 1 the adapter's coefficient in a tensor may be."""

# Numbers that share a scale, and the steps of that scale: an error grows with the largest of them, and a
# scale is stored in 16 bit, whose smallest step is 2^-24.
_BLOCKS: Mapping[str, tuple[int, int]] = {
    "f32": (1, 0),
    "f16": (1, 1),
    "bf16": (1, 0),
    "q8_0": (32, 127),
    "q4_0": (32, 8),
    "q4_1": (32, 15),
    "q5_0": (32, 16),
    "q5_1": (32, 31),
    "q4_k": (32, 63 * 15),
    "q5_k": (32, 63 * 31),
    "q6_k": (16, 128 * 32),
}
# The root mean square of the largest of so many Gaussian numbers.
_PEAK = {1: 1.0, 16: 2.13, 32: 2.39}
_HALF_STEP = 2.0**-25
_NEIGHBOURS = 32

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Measured:
    """One matrix: relative RMS error, that over what is allowed, and the coefficient of the adapter."""

    name: str
    error: float
    excess: float
    coefficient: float | None = None
    uncertainty: float = 0.0


def check_tensors(
    stored: Mapping[str, StoredTensor],
    source: Source,
    types: Mapping[str, TensorType],
    importance: Importance | None,
    tick: Callable[[], None],
) -> list[Check]:
    """Two checks, `tensors` and `adapter`; `tick` is called once a tensor.

    `types` are the formats the tensors should have; `importance` is what their quantizer was given.
    """
    odd = stored.keys() ^ {plan.name for plan in source.plans}
    if odd:
        names = ", ".join(sorted(odd)[:5])
        text = f"Missing or not expected in the file: {names}. Export again."
        return [Check("tensors", "fail", "wrong names", text)]
    measured: list[_Measured] = []
    with one_thread_each():
        for plan in source.plans:
            tick()
            measured += _measure(stored[plan.name], plan, source, types[plan.name], importance)
    return [_rows_check(measured), _adapter_check(measured, source)]


def _measure(
    tensor: StoredTensor, plan: TensorPlan, source: Source, kind: TensorType, importance: Importance | None
) -> Iterator[_Measured]:
    """One measurement a matrix: a tensor of stacked experts has several."""
    if tensor.type != kind.ggml or tensor.shape != plan.shape:
        yield _Measured(plan.name, math.inf, math.inf)
        return
    adapted = source.rows.adapted(plan)
    matrices = plan.shape[0] if len(plan.shape) == 3 else 1
    for matrix in range(matrices):
        spans = _spans(plan, matrix, matrices, 16 if adapted else 4)
        got = _joined([gguf.quants.dequantize(tensor.rows(a, b, kind), kind.ggml) for a, b in spans])
        want = _joined([source.rows.rows(plan, a, b).numpy() for a, b in spans])
        base = _joined([source.rows.base_rows(plan, a, b).numpy() for a, b in spans]) if adapted else want
        columns = importance.of(plan, matrix) if importance else None
        yield _compare(plan.name, kind, got, want, want - base, columns)


def _joined(parts: Sequence[Any]) -> Array:
    """Rows (rows, columns) one below the other; vectors have one column."""
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])


def _spans(plan: TensorPlan, matrix: int, matrices: int, groups: int) -> list[tuple[int, int]]:
    """Groups of four neighbouring rows at random places, the same at every call; small matrices whole."""
    rows = plan.rows // matrices
    first = matrix * rows
    groups = max(groups // matrices, 2)
    if len(plan.shape) == 1 or rows <= 4 * groups:
        return [(first, first + rows)]
    places = random.Random(f"{plan.name} {matrix}").sample(range(rows // 4), groups)
    return [(first + 4 * place, first + 4 * place + 4) for place in sorted(places)]


def _compare(
    name: str, kind: TensorType, got: Array, want: Array, delta: Array, columns: NDArray[np.float32] | None
) -> _Measured:
    error = got.reshape(want.shape) - want
    relative = float(np.linalg.norm(error)) / max(float(np.linalg.norm(want)), 1e-12)
    excess, strength = _excess(kind, error, want, columns), float(np.vdot(delta, delta))
    if not strength:
        return _Measured(name, relative, excess)
    shares = (error * delta).reshape(-1)
    uncertainty = math.sqrt(float((_sums(shares) ** 2).sum())) / strength
    return _Measured(name, relative, excess, 1.0 + float(shares.sum()) / strength, uncertainty)


def _sums(values: Array) -> Array:
    """Sums over neighbours that share a scale, whose errors are not independent."""
    whole = len(values) // _NEIGHBOURS * _NEIGHBOURS
    return np.append(values[:whole].reshape(-1, _NEIGHBOURS).sum(axis=1), values[whole:].sum())


def _excess(kind: TensorType, error: Array, want: Array, columns: NDArray[np.float32] | None) -> float:
    """The root mean square error over the one allowed; both weigh the columns as the quantizer did.

    The type's error on Gaussian numbers is scaled by the largest number of each block over that of Gaussian
    ones: that, and not their spread, decides how fine the steps are. Few rows add a margin for chance.
    """
    block, steps = _BLOCKS[kind.name]
    weights = np.ones(want.shape[1]) if columns is None else columns.astype(np.float64)
    weights = weights / weights.sum()
    peaks = np.abs(want).reshape(len(want), -1, block).max(axis=2).repeat(block, axis=1)
    found, peak = (math.sqrt(float(np.mean((x**2) @ weights))) for x in (error, peaks))
    count = len(want) / float(weights @ weights)
    allowed = kind.error * peak / _PEAK[block] + _HALF_STEP * steps
    return found / max(TOLERANCE * (1 + 2 / math.sqrt(count)) * allowed, 1e-30)


def _rows_check(measured: Sequence[_Measured]) -> Check:
    wrong = [tensor for tensor in measured if not tensor.excess <= 1]
    error = max(tensor.error for tensor in measured)
    excess = max(tensor.excess for tensor in measured)
    names = ", ".join(dict.fromkeys(tensor.name for tensor in wrong[:3]))
    return Check(
        "tensors",
        "fail" if wrong else "pass",
        f"{len(measured) - len(wrong)} of {len(measured)}, error {error:.2%}",
        f"{len(wrong)} tensors differ from base + adapter by more than the type's rounding ({names}). "
        "Export again; check the disk if it stays so."
        if wrong
        else "Rows of every tensor equal the tuned model's within the type's rounding.",
        {"tensors": len(measured), "wrong": len(wrong)} | _finite(largest_error=error, of_allowed=excess),
    )


def _finite(**figures: float) -> dict[str, float]:
    """Figures that JSON can hold."""
    return {name: round(value, 6) for name, value in figures.items() if math.isfinite(value)}


def _adapter_check(measured: Sequence[_Measured], source: Source) -> Check:
    """The coefficient of the adapter in each tensor: 1 is once and whole, 0 forgotten, 2 added twice."""
    if source.rows.adapter is None:
        return Check("adapter", "skipped", "-", "All weights were trained, so there is no adapter.")
    known = [
        (tensor.coefficient, tensor.uncertainty)
        for tensor in measured
        if tensor.coefficient is not None and math.isfinite(tensor.uncertainty)
    ]
    sure = [pair for pair in known if pair[1] < MEASURABLE] or _pooled(known)
    if not sure:
        text = "The adapter changes too little to be measured in the file; the probabilities judge it alone."
        return Check("adapter", "skipped", "-", text)
    used = [abs(found - 1) / (COEFFICIENT + 3 * spread) for found, spread in sure]
    wrong = sum(not share <= 1 for share in used)
    low, high = min(sure)[0], max(sure)[0]
    return Check(
        "adapter",
        "fail" if wrong else "pass",
        f"{low:.3f} to {high:.3f}",
        f"{wrong} of {len(sure)} adapted tensors do not hold the adapter once and whole (1.000): 0 is "
        "forgotten, 2 is twice. Export again, and report it if it stays so."
        if wrong
        else f"All {len(sure)} adapted tensors hold the adapter once and whole (1.000).",
        {"tensors": len(sure), "wrong": wrong, "tolerance": COEFFICIENT}
        | _finite(lowest=low, highest=high, of_allowed=max(used)),
    )


def _pooled(known: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where no tensor is measurable by itself: the mean of all, each weighed by its certainty."""
    weights = [1 / spread**2 for _, spread in known if spread]
    if not weights or sum(weights) ** -0.5 >= MEASURABLE:
        return []
    mean = sum(found / spread**2 for found, spread in known if spread) / sum(weights)
    return [(mean, sum(weights) ** -0.5)]
