"""Reads names, shapes and number formats of weights from safetensors headers; never the weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.tokenizer_files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADERS = "ollama-tune-headers.json"
"""Headers fetched from the hub before the weights; lies beside `config.json` in our own models folder."""

_PICKLE = "pickle, which can run programs hidden in it"
_OTHER_FORMATS = {
    ".bin": _PICKLE,
    ".pt": _PICKLE,
    ".pth": _PICKLE,
    ".ckpt": _PICKLE,
    ".gguf": "GGUF, which is for running a model, not for training it",
    ".h5": "TensorFlow's format",
    ".msgpack": "Flax's format",
}
_LARGEST_HEADER = 100 * 2**20
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8,
    "U16": 16, "U32": 32, "U64": 64, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A weight's number format as safetensors spells it (`BF16`) and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return self.count * _BITS.get(self.dtype, 8) // 8


def weight_names(folder: Path) -> list[str]:
    """The safetensors files that make up the model: those of the index, else the single file."""
    index = read_json(folder / INDEX)
    if index is not None and not (folder / SINGLE).exists():
        return indexed_names(index, str(folder))
    return [SINGLE]


def indexed_names(index: Any, place: str) -> list[str]:
    """The files of a `model.safetensors.index.json`; names that leave the folder are refused."""
    stored = index.get("weight_map") if isinstance(index, dict) else None
    names = list(stored.values()) if isinstance(stored, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise TuneError(f"The weight index of {place} is damaged.", "Download the model again.")
    return sorted(set(names))


def has_weights(folder: Path) -> bool:
    """True when all weight files are there (not whether they are whole)."""
    try:
        return all((folder / name).is_file() for name in weight_names(folder))
    except TuneError:
        return False


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every weight by name, from the files or from the headers fetched before them.

    Raises `TuneError` for missing, cut-off or damaged files, and for weights stored as pickle.
    """
    names = weight_names(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        stored = read_json(folder / HEADERS)
        if stored is not None:
            return {name: _tensor(folder / HEADERS, entry) for name, entry in stored.items()}
        if len(names) > 1:
            raise TuneError(
                f"{len(missing)} of {len(names)} weight files are missing in {folder}, such as {missing[0]}.",
                "Download the model again.",
            )
        raise no_weights(str(folder), [path.name for path in folder.iterdir()])
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors.update(_read_file(folder / name))
    return tensors


def no_weights(place: str, files: Iterable[str]) -> TuneError:
    """Why a model among whose files is no safetensors file cannot be used; `place` is its folder or id."""
    kinds = {Path(name).suffix for name in files}
    for suffix, kind in _OTHER_FORMATS.items():
        if suffix in kinds:
            return TuneError(
                f"The weights in {place} are stored as {kind}.", "Choose a model with safetensors weights."
            )
    return TuneError(f"There are no weights in {place} ({SINGLE}).", "Download it again or choose another.")


def _read_file(path: Path) -> dict[str, Tensor]:
    """A header is 8 bytes of length and that much JSON; the data must fill the rest of the file exactly."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise _damaged(path, f"header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, repr(error)) from error
    if not isinstance(header, dict):
        raise _damaged(path, "no object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, entry) for name, entry in header.items()}
    ends = [entry.get("data_offsets", [0, 0])[1] for entry in header.values()]
    if 8 + length + max(ends, default=0) != size:
        raise _damaged(path, f"data end at {8 + length + max(ends, default=0)}, file at {size}")
    return tensors


def _tensor(path: Path, entry: Any) -> Tensor:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise _damaged(path, f"entry {entry!r:.80}")
    return Tensor(str(entry.get("dtype")), tuple(shape))


def _damaged(path: Path, details: str) -> TuneError:
    return TuneError(
        f"The weight file {path} is damaged or not complete.", "Download the model again.", details=details
    )
