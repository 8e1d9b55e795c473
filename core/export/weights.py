"""Reads rows of safetensors files by their place in the file, so that no tensor has to be held whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.weights import weight_names
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    import torch

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' name of a number format -> torch's."""
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_BROKEN_FILE = "Download or copy the model again."
_MAX_HEADER = 100_000_000
_FUSED_EXPERTS: Mapping[str, tuple[str, ...]] = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}


@dataclass(frozen=True)
class _Stored:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class Weights:
    """The tensors of one or several safetensors files, read by row ranges.

    It reads with `pread` and not through a memory map: what is resident stays as small as a chunk, and a
    truncated file is an error instead of a SIGBUS.
    """

    def __init__(self, files: list[Path]) -> None:
        self._stored: dict[str, _Stored] = {}
        for path in files:
            self._stored |= _experts_apart(_read_header(path))
        self.shapes = {name: stored.shape for name, stored in self._stored.items()}
        """Name -> shape, in the order of the files."""
        self._descriptors = {path: os.open(path, os.O_RDONLY) for path in files}

    @classmethod
    def of_model(cls, folder: Path) -> Weights:
        """The weights of a model folder, in one file or in shards."""
        return cls([folder / name for name in weight_names(folder)])

    def dtype(self, name: str) -> str:
        """The number format as safetensors spells it: F32, F16 or BF16."""
        return self._stored[name].dtype

    def row_count(self, name: str) -> int:
        """How many rows `rows` can read of it."""
        shape = self._stored[name].shape
        return math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) as float32 (rows, columns); a vector has one column, a stack the rows of all."""
        import torch

        stored = self._stored[name]
        columns = stored.shape[-1] if len(stored.shape) > 1 else 1
        width = columns * BYTES[stored.dtype]
        if not 0 <= start <= stop <= self.row_count(name):
            raise TuneError(
                f"{stored.path} has no rows {start} to {stop} of {one_line(name, 100)}.", _BROKEN_FILE
            )
        if stop == start:
            return torch.empty(0, columns)
        data = bytearray((stop - start) * width)
        self._fill(stored, memoryview(data), stored.start + start * width)
        values = torch.frombuffer(data, dtype=getattr(torch, TORCH_NAMES[stored.dtype]))
        return values.reshape(stop - start, columns).float()

    def _fill(self, stored: _Stored, view: memoryview, position: int) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptors[stored.path], [view[done:]], position + done)
            except OSError as error:
                raise _unreadable(stored.path, error) from error
            if not count:
                raise TuneError(f"{stored.path} is shorter than it says it is.", _BROKEN_FILE)
            done += count

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _unreadable(path: Path, error: OSError) -> TuneError:
    return TuneError(f"{path} cannot be read: {error.strerror}.", _BROKEN_FILE)


def _read_header(path: Path) -> dict[str, _Stored]:
    """What a safetensors file holds; every offset is checked against the file's size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise ValueError("length of the header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {name: _stored(path, entry, 8 + length, size) for name, entry in header.items()}
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TuneError(f"{path} is not a whole safetensors file ({error}).", _BROKEN_FILE) from error
    return dict(sorted(found.items(), key=lambda item: item[1].start))


def _experts_apart(stored: Mapping[str, _Stored]) -> dict[str, _Stored]:
    """Fused experts (`save_original_format=False` of transformers 5) under the names of single ones.

    `gate_up_proj` is (experts, gate rows then up rows, columns), `down_proj` (experts, rows, columns).
    """
    apart: dict[str, _Stored] = {}
    for name, whole in stored.items():
        parts = _FUSED_EXPERTS.get(name.rpartition(".experts.")[2])
        if parts is None or len(whole.shape) != 3 or whole.shape[1] % len(parts):
            apart[name] = whole
            continue
        shape = (whole.shape[1] // len(parts), whole.shape[2])
        size, before = math.prod(shape) * BYTES[whole.dtype], name.rpartition(".")[0]
        for i in range(whole.shape[0] * len(parts)):
            single = f"{before}.{i // len(parts)}.{parts[i % len(parts)]}.weight"
            apart[single] = _Stored(whole.path, whole.dtype, shape, whole.start + i * size)
    return apart


def _stored(path: Path, entry: Mapping[str, Any], data: int, size: int) -> _Stored:
    shape = tuple(int(length) for length in entry["shape"])
    start, stop = (int(offset) for offset in entry["data_offsets"])
    dtype = str(entry["dtype"])
    if dtype not in BYTES:
        raise TuneError(
            f"{path} holds weights of the type {one_line(str(entry['dtype']), 20)}, not 16 or 32 bit floats.",
            "Use the original model that was not quantized.",
        )
    if start < 0 or stop - start != math.prod(shape) * BYTES[dtype] or data + stop > size:
        raise ValueError("a weight lies outside the file")
    return _Stored(path, dtype, shape, data + start)
