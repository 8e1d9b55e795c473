"""Reads the header of a GGUF: its keys, and where each tensor lies."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ollama_tune.core.export.quantize import TensorType


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a GGUF; `shape` as in safetensors (rows first), `start` in bytes of the file."""

    path: Path
    type: int
    shape: tuple[int, ...]
    start: int

    def rows(self, start: int, stop: int, kind: TensorType) -> NDArray[np.uint8]:
        """The bytes of rows [start, stop), one line a row; the rows of stacked matrices count on."""
        width = kind.size(1, self.shape[-1] if len(self.shape) > 1 else 1)
        with self.path.open("rb") as file:
            file.seek(self.start + start * width)
            data = file.read((stop - start) * width)
        return np.frombuffer(data, dtype=np.uint8).reshape(stop - start, width)


@dataclass(frozen=True)
class Header:
    """The keys of a GGUF with their values (arrays are lists), and its tensors by name."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


# GGUF's value types by their numbers: u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class _Reader:
    """Walks over the bytes; `gguf.GGUFReader` takes seconds for a large vocabulary."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.place = data, 0

    def number(self, layout: str) -> int:
        value: int = self.numbers(layout, 1)[0]
        return value

    def numbers(self, layout: str, count: int) -> tuple[Any, ...]:
        """`count` numbers one after the other; `ValueError` where the file ends before them."""
        size = count * struct.calcsize(layout)
        if size > len(self._data) - self.place:
            raise ValueError("it ends in the middle of its header")
        found = struct.unpack_from(f"<{count}{layout}", self._data, self.place)
        self.place += size
        return found

    def text(self) -> str:
        length = self.number("Q")
        self.place += length
        return self._data[self.place - length : self.place].decode()

    def value(self, kind: int) -> Any:
        """The value of one key."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == gguf.GGUFValueType.STRING:
            return self.text()
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            return list(self.numbers(_SCALARS[inner], count))
        return [self.value(inner) for _ in range(count)]


def read_header(path: Path) -> Header:
    """Keys and tensors; `ValueError` or `struct.error` where the file is no whole GGUF."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data)
        if reader.number("I") != gguf.GGUF_MAGIC or reader.number("I") != gguf.GGUF_VERSION:
            raise ValueError("it does not begin like a GGUF")
        count, keys = reader.number("Q"), reader.number("Q")
        fields = {reader.text(): reader.value(reader.number("I")) for _ in range(keys)}
        infos = [_info(reader) for _ in range(count)]
        start = gguf.GGUFWriter.ggml_pad(reader.place, gguf.GGUF_DEFAULT_ALIGNMENT)
    return Header(
        fields, {name: StoredTensor(path, kind, shape, start + at) for name, kind, shape, at in infos}
    )


def _info(reader: _Reader) -> tuple[str, int, tuple[int, ...], int]:
    """Name, type, shape with rows first, and offset of the next tensor."""
    name = reader.text()
    shape = [reader.number("Q") for _ in range(reader.number("I"))]
    return name, reader.number("I"), tuple(reversed(shape)), reader.number("Q")
