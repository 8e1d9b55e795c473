"""The doctor's computations: right on this CPU, and told where something computes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export import selftest as export_selftest
from ollama_tune.core.machine.doctor import Check, ok
from ollama_tune.core.train import selftest


def only(checks: Iterator[Check]) -> Check:
    (check,) = checks
    return check


@pytest.mark.parametrize("name", ["products", "optimizer", "attention", "fast_path", "four_bit", "eight_bit"])
def test_this_cpu_computes_right(name: str) -> None:
    check = only(getattr(selftest, name)())
    assert check.state == "ok" and check.found.startswith("CPU: "), check


def test_without_a_gpu_nothing_is_said_of_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert [*selftest.gpu_products()] == []


@pytest.mark.parametrize("name", ["products", "optimizer", "four_bit", "eight_bit"])
def test_wrong_numbers_are_a_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_near", lambda found, right, share: False)
    check = only(getattr(selftest, name)())
    assert check.state == "fail" and check.fix


def test_a_gradient_that_is_no_slope_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_slope", lambda path, batch: 0.97)
    assert "0.97 times the slope" in only(selftest.fast_path()).found


def test_attention_that_disagrees_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_tune.core.train.fast.kernels.agree", lambda *_: False)
    assert only(selftest.attention()).state == "fail"


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 9), ["sm_75", "sm_80", "sm_86", "sm_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "sm_80"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((6, 1), ["sm_75", "sm_80", "compute_90"], False),
        ((8, 0), ["sm_86"], False),
        ((11, 0), ["gfx1100"], False),
        ((8, 0), [], True),
    ],
)
def test_code_for_a_gpu_is_found_in_the_list(
    capability: tuple[int, int], architectures: list[str], runs: bool
) -> None:
    assert selftest.is_compiled_for(capability, architectures) is runs


def test_a_gpu_of_another_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    old = only(selftest._guarded(torch.device("cpu"), selftest._gpu_product))
    assert old.state == "fail" and "capability 6.1" in old.found
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert only(selftest._guarded(torch.device("cpu"), selftest._gpu_product)).state == "ok"


def test_a_gpu_without_kernels_still_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check = only(selftest._guarded(torch.device("cpu"), selftest._gpu_attention))
    assert check.state == "warn" and "no kernel agrees with plain products (SDPA: flash" in check.found


def test_a_full_gpu_is_no_fault_and_a_broken_one_is() -> None:
    def full(device: torch.device) -> Iterator[Check]:
        yield ok("first")
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")

    def broken(device: torch.device) -> Iterator[Check]:
        raise RuntimeError("CUDA error: no kernel image is available\nfor this device")
        yield

    gpu = torch.device("cuda", 1)
    assert [check.state for check in selftest._guarded(gpu, full)] == ["ok", "warn"]
    fault = only(selftest._guarded(gpu, broken))
    assert fault.state == "fail" and fault.found.startswith("GPU 1: CUDA error: no kernel image")


def test_llama_cpp_and_the_quantizer_work_here() -> None:
    assert only(export_selftest.llama()).state == only(export_selftest.quantizer()).state == "ok"


def test_a_llama_cpp_that_cannot_load_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_selftest, "_write", lambda file: Path(file).write_bytes(b"GGUF no more"))
    check = only(export_selftest.llama())
    assert check.state == "fail" and "pip install" in check.fix

    def nothing() -> None:
        raise TuneError("No quantizer here.", "Install one.")

    monkeypatch.setattr("ollama_tune.core.export.ggml.quantizer", nothing)
    assert only(export_selftest.quantizer()).found == "No quantizer here"
