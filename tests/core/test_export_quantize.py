from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest
import torch
import xllamacpp

from ollama_tune.core.export.quantize import TYPES, encode, one_thread_each, type_of


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


@pytest.mark.parametrize("name", TYPES)
def test_bytes_equal_those_of_the_gguf_package(name: str) -> None:
    kind, rows = TYPES[name], difficult_rows()
    expected = gguf.quants.quantize(rows.numpy(), kind.ggml)
    found = encode(rows, kind)
    assert found.tobytes() == expected.tobytes()
    assert len(found) == kind.size(*rows.shape)


def test_q8_0_bytes_equal_those_of_ggml() -> None:
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rows = difficult_rows().contiguous()
    kind = TYPES["q8_0"]
    expected = np.zeros(kind.size(*rows.shape), dtype=np.uint8)
    written = quantize(
        int(kind.ggml), rows.data_ptr(), expected.ctypes.data, 0, rows.shape[0], rows.shape[1], None
    )
    assert written == len(expected)
    assert encode(rows, kind).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_the_stated_error_is_the_measured_one(name: str) -> None:
    kind = TYPES[name]
    rows = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    data = encode(rows, kind).reshape(len(rows), -1)
    back = torch.from_numpy(np.array(gguf.quants.dequantize(data, kind.ggml)))
    assert float((back - rows).norm() / rows.norm()) <= 1.03 * kind.error


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", TYPES)
def test_numbers_that_are_none_are_refused(name: str, bad: float) -> None:
    rows = torch.ones(2, 32)
    rows[1, 7] = bad
    with pytest.raises(ValueError, match="infinite or not a number"):
        encode(rows, TYPES[name])


def test_a_number_beyond_float16_is_refused_there_and_only_there() -> None:
    rows = torch.full((1, 32), 70000.0)
    with pytest.raises(ValueError, match="f16"):
        encode(rows, TYPES["f16"])
    assert len(encode(rows, TYPES["bf16"])) == 64


def test_vectors_stay_exact_and_rows_that_fill_no_block_become_float16() -> None:
    q8_0 = TYPES["q8_0"]
    assert type_of((64,), q8_0).name == "f32"
    assert type_of((10, 64), q8_0).name == "q8_0"
    assert type_of((10, 48), q8_0).name == "f16"


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    with one_thread_each():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
