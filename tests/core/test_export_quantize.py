from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export import ggml
from ollama_tune.core.export.quantize import TYPES, encode, one_thread_each

BY_GGML = [name for name, kind in TYPES.items() if kind.encode is None]
K_TYPES = ["q4_k", "q5_k", "q6_k"]


def difficult_rows() -> torch.Tensor:
    """Gaussian rows, empty blocks, ties of the rounding, tiny and huge scales."""
    rows = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    rows[0] = 0
    rows[1, :32] = torch.tensor([127.0] + [k + 0.5 for k in range(31)])
    rows[2, :32] = torch.tensor([-127.0] + [-k - 0.5 for k in range(31)])
    rows[3] *= 1e-5
    rows[4] *= 1e4
    rows[5, :32] = torch.tensor([127.0] + [k + 0.5 - 3e-8 * (k + 1) for k in range(31)])
    return rows


def importance(columns: int) -> NDArray[np.float32]:
    """Columns that matter very differently, as those of real layers do."""
    return np.exp(np.random.default_rng(5).standard_normal(columns) * 1.5).astype(np.float32)


def dequantized(data: NDArray[np.uint8], name: str, rows: torch.Tensor) -> torch.Tensor:
    found = gguf.quants.dequantize(data.reshape(len(rows), -1), TYPES[name].ggml)
    return torch.from_numpy(np.array(found))


@pytest.mark.parametrize("name", [name for name in TYPES if name not in K_TYPES])
def test_bytes_equal_those_of_the_gguf_package(name: str) -> None:
    kind, rows = TYPES[name], difficult_rows()
    expected = gguf.quants.quantize(rows.numpy(), kind.ggml)
    found = encode(rows, kind)
    assert found.tobytes() == expected.tobytes()
    assert len(found) == kind.size(*rows.shape)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("name", K_TYPES)
def test_k_types_equal_the_formats_own_function_in_ggml(name: str, weighed: bool) -> None:
    """`ggml_quantize_chunk` sorts by format; this calls the function behind it, for all rows at once."""
    (path,) = ggml._libraries("xllamacpp")
    function = getattr(ctypes.CDLL(str(path)), f"quantize_{name[:-1]}K")
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    kind, rows = TYPES[name], difficult_rows()
    weights = importance(rows.shape[1]) if weighed else None
    expected = np.zeros(kind.size(*rows.shape), dtype=np.uint8)
    pointer = weights.ctypes.data if weights is not None else None
    assert function(rows.data_ptr(), expected.ctypes.data, *rows.shape, pointer) == len(expected)
    parts = [encode(part, kind, weights) for part in rows.split(5)]
    assert np.concatenate(parts).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["q8_0", *BY_GGML])
def test_the_two_quantizers_write_the_same_bytes(name: str) -> None:
    pytest.importorskip("libgguf", reason="libgguf, the second quantizer, is not installed")
    kind, rows = TYPES[name], difficult_rows()
    for weights in (None, importance(rows.shape[1])):
        found = [np.zeros(kind.size(*rows.shape), dtype=np.uint8) for _ in range(2)]
        for make, out in zip((ggml._from_xllamacpp, ggml._from_libgguf), found, strict=True):
            quantize = make()
            assert quantize is not None
            quantize(int(kind.ggml), rows.numpy(), out, weights)
        assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_the_stated_error_is_the_measured_one(name: str) -> None:
    kind = TYPES[name]
    rows = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    back = dequantized(encode(rows, kind), name, rows)
    assert float((back - rows).norm() / rows.norm()) == pytest.approx(kind.error, rel=0.03, abs=1e-7)


@pytest.mark.parametrize("name", BY_GGML)
def test_importance_lowers_the_error_that_it_weighs(name: str) -> None:
    rows = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    weights = importance(1024)

    def weighed_error(data: NDArray[np.uint8]) -> float:
        error = dequantized(data, name, rows) - rows
        return float((error.square() * torch.from_numpy(weights)).sum())

    kind = TYPES[name]
    assert weighed_error(encode(rows, kind, weights)) < 0.97 * weighed_error(encode(rows, kind))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", TYPES)
def test_numbers_that_are_none_are_refused(name: str, bad: float) -> None:
    rows = torch.ones(2, 256)
    rows[1, 7] = bad
    with pytest.raises(ValueError, match="infinite or not a number"):
        encode(rows, TYPES[name])


def test_a_number_beyond_float16_is_refused_where_it_does_not_fit() -> None:
    rows = torch.full((1, 256), 70000.0)
    for name in ("f16", *BY_GGML):
        with pytest.raises(ValueError, match=name):
            encode(rows, TYPES[name])
    assert len(encode(rows, TYPES["bf16"])) == 512
    assert len(encode(rows, TYPES["q8_0"])) == 272


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread_each():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_call_leaves_the_interpreter_free() -> None:
    """The pool of an export scales only if a call does not hold the lock: else this would count to one."""
    rows = np.random.default_rng(0).standard_normal((2048, 1024)).astype(np.float32)
    out = np.zeros(TYPES["q4_k"].size(*rows.shape), dtype=np.uint8)
    thread = threading.Thread(target=ggml.quantizer(), args=(int(TYPES["q4_k"].ggml), rows, out, None))
    thread.start()
    turns = 0
    while thread.is_alive():
        thread.join(0.001)
        turns += 1
    assert turns > 10


def test_the_library_is_loaded_without_a_word_a_thread_or_an_import() -> None:
    code = (
        "import os, sys; from ollama_tune.core.export import ggml; ggml.quantizer();"
        "assert not {'xllamacpp', 'torch'} & sys.modules.keys();"
        "assert not os.path.isdir('/proc/self/task') or len(os.listdir('/proc/self/task')) == 1"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_a_quantizer_the_type_that_needs_none_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml, "_libraries", lambda _: iter(()))
    monkeypatch.setitem(sys.modules, "libgguf", None)
    ggml.quantizer.cache_clear()
    with pytest.raises(TuneError, match="neither xllamacpp nor libgguf") as raised:
        encode(torch.ones(1, 256), TYPES["q4_k"])
    assert "q8_0" in raised.value.fix
    assert ggml.obstacle() == raised.value.what
    monkeypatch.undo()
    assert ggml.obstacle() == ""


def test_a_library_without_the_function_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml, "_libraries", lambda _: iter([Path(__file__), Path(torch._C.__file__)]))
    assert ggml._from_xllamacpp() is None


def test_a_quantizer_that_writes_other_bytes_is_not_trusted() -> None:
    def wrong(_kind: int, _rows: ggml.Floats, out: NDArray[np.uint8], _weights: ggml.Floats | None) -> None:
        out[:] = 1

    assert not ggml._is_right(wrong)
    assert ggml._is_right(ggml.quantizer())
