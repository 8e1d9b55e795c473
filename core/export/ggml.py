"""ggml's own quantizer for the 4- to 6-bit formats, out of a library that is installed anyway."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from ollama_tune.core.errors import TuneError

Floats = NDArray[np.float32]
Quantize = Callable[[int, Floats, NDArray[np.uint8], Floats | None], None]
"""Fills the bytes with the quantized rows (rows, columns): ggml's number of the format, the rows, the bytes
and the importance of each column."""

_Q8_0 = gguf.GGMLQuantizationType.Q8_0


@functools.cache
def quantizer() -> Quantize:
    """The quantizer of this box, out of llama.cpp's library in `xllamacpp` or else out of `libgguf`.

    The calls of the first leave the interpreter free, so that threads work side by side; the second keeps
    one core busy. Each must quantize a known block right first. Raises `TuneError` where neither does.
    """
    for make in (_from_xllamacpp, _from_libgguf):
        found = make()
        if found is not None and _is_right(found):
            return found
    raise TuneError(
        "The 4- to 6-bit types need llama.cpp's quantizer, and neither xllamacpp nor libgguf gives one here.",
        "Choose the type q8_0, or install one of them: pip install libgguf",
    )


def obstacle() -> str:
    """Why the 4- to 6-bit types cannot be made on this box, in a sentence; empty where they can."""
    try:
        quantizer()
    except TuneError as error:
        return error.what
    return ""


def _from_xllamacpp() -> Quantize | None:
    """The one function of the library with a plain and stable interface; on Windows it is not exported."""
    for path in _libraries("xllamacpp"):
        try:
            function = ctypes.CDLL(str(path)).ggml_quantize_chunk
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_size_t
        function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        return functools.partial(_call, function)
    return None


def _libraries(package: str) -> Iterator[Path]:
    """The compiled modules of a package that is not imported for it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for suffix in EXTENSION_SUFFIXES:
            yield from Path(folder).glob(f"{package}{suffix}")


def _call(
    function: Callable[..., int], kind: int, rows: Floats, out: NDArray[np.uint8], importance: Floats | None
) -> None:
    weights = None if importance is None else importance.ctypes.data
    written = function(kind, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights)
    if written != out.size:
        raise RuntimeError(f"ggml wrote {written} bytes where {out.size} were expected")


def _from_libgguf() -> Quantize | None:
    try:
        library = importlib.import_module("libgguf")
    except ImportError:
        return None

    def quantize(kind: int, rows: Floats, out: NDArray[np.uint8], importance: Floats | None) -> None:
        out[:] = library.quantize_rows(rows, kind, importance).reshape(-1)

    return quantize


def _is_right(quantize: Quantize) -> bool:
    """Quantize whole numbers up to 127 to Q8_0: the scale is 1 and the numbers come out as they are."""
    whole = np.arange(127, 127 - 8 * 32, -8, dtype=np.float32)
    expected = np.float16(1).tobytes() + whole.astype(np.int8).tobytes()
    out = np.zeros(len(expected), dtype=np.uint8)
    try:
        quantize(int(_Q8_0), whole.reshape(1, 32), out, None)
    except (RuntimeError, TypeError, ValueError, OSError):
        return False
    return out.tobytes() == expected
