"""Compares rows of every tensor in an exported file with base + adapter, and weighs the adapter in them."""

from __future__ import annotations

import math
import mmap
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ollama_tune.core.export.gguf import Exported, Source
from ollama_tune.core.export.quantize import TYPES, TensorType, one_thread_each, type_of
from ollama_tune.core.export.tensors import TensorPlan
from ollama_tune.core.export.values import Check

TOLERANCE = 1.8
"""How far a tensor's error may lie above that of Gaussian weights: 1.2 for chance, 1.5 for heavy tails."""
MEASURABLE = 0.2
"""Above this standard error of its coefficient a tensor says nothing about the adapter."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a GGUF; `shape` as in safetensors (rows first), `start` in bytes of the file."""

    path: Path
    type: int
    shape: tuple[int, ...]
    start: int

    def rows(self, start: int, stop: int, kind: TensorType) -> NDArray[np.uint8]:
        """The bytes of rows [start, stop), one line a row."""
        width = kind.size(1, math.prod(self.shape[1:]))
        with self.path.open("rb") as file:
            file.seek(self.start + start * width)
            data = file.read((stop - start) * width)
        return np.frombuffer(data, dtype=np.uint8).reshape(stop - start, width)


class _Header:
    """Walks a GGUF's header and skips values; `gguf.GGUFReader` takes seconds for a large vocabulary."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.place = data, 0

    def number(self, layout: str) -> int:
        (value,) = struct.unpack_from(f"<{layout}", self._data, self.place)
        self.place += struct.calcsize(layout)
        return int(value)

    def text(self) -> str:
        length = self.number("Q")
        self.place += length
        return self._data[self.place - length : self.place].decode()

    def skip(self, kind: int, count: int = 1) -> None:
        """Pass over `count` values of a kind."""
        if kind in _SCALAR_BYTES:
            self.place += _SCALAR_BYTES[kind] * count
            return
        for _ in range(count):
            if kind == gguf.GGUFValueType.ARRAY:
                self.skip(self.number("I"), self.number("Q"))
            else:
                length = self.number("Q")
                self.place += length


_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Sizes of GGUF's value types by their numbers (u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64)."""


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> place of every tensor; `ValueError` or `struct.error` where the file is no whole GGUF."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _Header(data)
        if header.number("I") != gguf.GGUF_MAGIC or header.number("I") != gguf.GGUF_VERSION:
            raise ValueError("it does not begin like a GGUF")
        tensors, fields = header.number("Q"), header.number("Q")
        for _ in range(fields):
            header.text()
            header.skip(header.number("I"))
        infos = [_info(header) for _ in range(tensors)]
        start = gguf.GGUFWriter.ggml_pad(header.place, gguf.GGUF_DEFAULT_ALIGNMENT)
    return {name: StoredTensor(path, kind, shape, start + at) for name, kind, shape, at in infos}


def _info(header: _Header) -> tuple[str, int, tuple[int, ...], int]:
    """Name, type, shape with rows first, and offset of the next tensor."""
    name = header.text()
    shape = [header.number("Q") for _ in range(header.number("I"))]
    return name, header.number("I"), tuple(reversed(shape)), header.number("Q")


@dataclass(frozen=True)
class _Measured:
    """One tensor: relative RMS error, that over what is allowed, and the coefficient of the adapter."""

    error: float
    excess: float
    coefficient: float | None = None
    uncertainty: float = 0.0


def check_tensors(exported: Exported, source: Source, tick: Callable[[], None]) -> list[Check]:
    """Two checks, `tensors` and `adapter`; `tick` is called once a tensor."""
    tensors = read_tensors(exported.path)
    odd = tensors.keys() ^ {plan.name for plan in source.plans}
    if odd:
        names = ", ".join(sorted(odd)[:5])
        return [Check("tensors", "fail", "wrong names", f"Missing or not expected in the file: {names}.")]
    measured = []
    with one_thread_each():
        for plan in source.plans:
            tick()
            kind = type_of(plan.shape, TYPES[exported.type])
            measured.append(_measure(tensors[plan.name], plan, source, kind))
    return [_rows_check(measured), _adapter_check(measured)]


def _measure(tensor: StoredTensor, plan: TensorPlan, source: Source, kind: TensorType) -> _Measured:
    if tensor.type != kind.ggml or tensor.shape != plan.shape:
        return _Measured(math.inf, math.inf)
    adapted = source.rows.adapted(plan)
    spans = _spans(plan, 16 if adapted else 4)
    got = _joined([gguf.quants.dequantize(tensor.rows(a, b, kind), kind.ggml) for a, b in spans])
    want = _joined([source.rows.base_rows(plan, a, b).numpy() for a, b in spans])
    delta = _joined([source.rows.delta_rows(plan, a, b).numpy() for a, b in spans] if adapted else [[0.0]])
    error = got - (want + delta)
    relative = float(np.linalg.norm(error)) / max(float(np.linalg.norm(want + delta)), 1e-12)
    excess, weight = relative / (kind.error * TOLERANCE), float(delta @ delta)
    if not weight:
        return _Measured(relative, excess)
    spread = float(np.sqrt(np.mean(error**2) / weight))
    return _Measured(relative, excess, 1.0 + float(error @ delta) / weight, spread)


def _joined(parts: Sequence[Any]) -> Array:
    return np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1) for part in parts])


def _spans(plan: TensorPlan, groups: int) -> list[tuple[int, int]]:
    """Groups of four neighbouring rows at random places, the same at every call; small tensors whole."""
    if len(plan.shape) == 1 or plan.rows <= 4 * groups:
        return [(0, plan.rows)]
    places = random.Random(plan.name).sample(range(plan.rows // 4), groups)
    return [(4 * place, 4 * place + 4) for place in sorted(places)]


def _rows_check(measured: Sequence[_Measured]) -> Check:
    wrong = sum(not tensor.excess <= 1 for tensor in measured)
    return Check(
        "tensors",
        "fail" if wrong else "pass",
        f"{len(measured) - wrong} of {len(measured)}, error {max(t.error for t in measured):.2%}",
        f"{wrong} tensors differ from base + adapter by more than the type's rounding."
        if wrong
        else "Rows of every tensor equal base + adapter within the type's rounding.",
    )


def _adapter_check(measured: Sequence[_Measured]) -> Check:
    """The coefficient of the adapter in each tensor: 1 is once and whole, 0 forgotten, 2 added twice."""
    sure = [
        (tensor.coefficient, tensor.uncertainty)
        for tensor in measured
        if tensor.coefficient is not None and not tensor.excess > 1e3 and tensor.uncertainty < MEASURABLE
    ]
    if not sure:
        return Check("adapter", "skipped", "-", "The adapter changes too little to be measured in the file.")
    wrong = sum(not abs(found - 1) <= 0.1 + 3 * spread for found, spread in sure)
    return Check(
        "adapter",
        "fail" if wrong else "pass",
        f"{min(sure)[0]:.3f} to {max(sure)[0]:.3f}",
        f"{wrong} of {len(sure)} adapted tensors do not hold the adapter once and whole (1.000)."
        if wrong
        else f"All {len(sure)} adapted tensors hold the adapter once and whole (1.000).",
    )
