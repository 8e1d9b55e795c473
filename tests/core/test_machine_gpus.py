"""GPUs through a strict double of NVML, and the real library where no driver is."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pynvml
import pytest

from ollama_tune.core.machine import gpus
from ollama_tune.core.machine.gpus import read_gpus
from ollama_tune.core.machine.values import Gpu, GpuReport
from tests.nvml_double import GIB, Device, Nvml, error, process

TORCH = "2.13.0+cu130"


def read(nvml: Nvml, torch_version: str = TORCH) -> GpuReport:
    report = read_gpus(nvml, torch_version)
    assert nvml.shutdowns == 1
    return report


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_is_read_whole() -> None:
    report = read(Nvml(Device(display=1)))
    assert report.driver == "570.86.10"
    assert report.reason == ""
    assert report.gpus == (
        Gpu(0, "GPU-11111111-aaaa", "NVIDIA GeForce RTX 4090", 24 * GIB, 20 * GIB, (8, 9), (), True, False),
    )


def test_free_is_what_the_driver_says_and_not_total_less_used() -> None:
    (gpu,) = read(Nvml(Device(free=7 * GIB))).gpus
    assert gpu.free == 7 * GIB


def test_processes_of_both_lists_are_joined_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_pids_are_ours", lambda: True)
    mine = os.getpid()
    device = Device(
        compute=[process(mine, 2 * GIB), process(2**22 + 5, 5 * GIB)],
        graphics=[process(mine, GIB), process(2**22 + 6, None)],
    )
    (gpu,) = read(Nvml(device)).gpus
    assert [(p.pid, p.memory) for p in gpu.processes] == [
        (2**22 + 5, 5 * GIB),
        (mine, 2 * GIB),
        (2**22 + 6, None),
    ]
    assert [p.name for p in gpu.processes] == ["unknown", psutil.Process().name(), "unknown"]


def test_in_a_container_a_host_pid_gets_no_name_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_pids_are_ours", lambda: False)
    (gpu,) = read(Nvml(Device(compute=[process(os.getpid(), GIB)]))).gpus
    assert gpu.processes[0].name == "unknown"


def test_unified_memory_is_what_the_kernel_has_available() -> None:
    (gpu,) = read(Nvml(Device(name="NVIDIA GB10", free=error(pynvml.NVML_ERROR_NOT_SUPPORTED)))).gpus
    assert gpu.unified
    assert 0 < gpu.free <= gpu.total <= psutil.virtual_memory().total


def test_what_a_device_does_not_tell_is_left_open() -> None:
    silent = error(pynvml.NVML_ERROR_NOT_SUPPORTED)
    device = Device(capability=silent, display=silent, compute=silent, graphics=silent)
    (gpu,) = read(Nvml(device)).gpus
    assert (gpu.compute_capability, gpu.display, gpu.processes) == (None, False, ())


def test_a_gpu_cut_by_mig_is_its_parts() -> None:
    parts = {0: Device(uuid="MIG-a", free=4 * GIB), 2: Device(uuid="MIG-b", free=9 * GIB)}
    report = read(Nvml(Device(name="NVIDIA H100", capability=(9, 0), mig=1, parts=parts)))
    assert [(g.uuid, g.free, g.compute_capability) for g in report.gpus] == [
        ("MIG-a", 4 * GIB, (9, 0)),
        ("MIG-b", 9 * GIB, (9, 0)),
    ]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart this machine"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "may not use"),
        (pynvml.NVML_ERROR_UNKNOWN, "reports an error"),
    ],
)
def test_each_failure_is_one_sentence_that_offers_the_cpu(code: int, words: str) -> None:
    report = read_gpus(Nvml(init=error(code)), TORCH)
    assert report.gpus == ()
    assert words in report.reason
    assert report.reason.endswith("training works on the CPU.")
    assert "\n" not in report.reason


def test_a_driver_without_a_gpu_says_so() -> None:
    assert "sees no GPU" in read(Nvml()).reason


def test_a_lost_gpu_is_left_out_and_named_when_it_was_the_only_one() -> None:
    assert "stopped answering" in read(Nvml(Device(lost=True))).reason
    assert len(read(Nvml(Device(lost=True), Device(uuid="GPU-2"))).gpus) == 1


@pytest.mark.parametrize(
    ("wish", "indexes"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2,0", [2, 0]),
        (" 1 , 0 ", [1, 0]),
        ("0,7,1", [0]),
        ("-1", []),
        ("", []),
        ("GPU-22", [1]),
        ("GPU-33,GPU-11", [2, 0]),
        ("nonsense", []),
    ],
)
def test_cuda_visible_devices_is_respected(
    wish: str | None, indexes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if wish is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wish)
    report = read(Nvml(*(Device(uuid=f"GPU-{n}{n}") for n in (1, 2, 3))))
    assert [gpu.index for gpu in report.gpus] == indexes
    assert ("hides all 3 GPUs" in report.reason) == (not indexes)


def test_a_pytorch_without_cuda_makes_the_gpu_unusable() -> None:
    report = read(Nvml(Device()), "2.13.0+cpu")
    assert len(report.gpus) == 1
    assert not report.usable
    assert "install its CUDA build" in report.reason


def test_control_characters_in_a_name_are_made_visible() -> None:
    (gpu,) = read(Nvml(Device(name="evil\x1b[2J"))).gpus
    assert "\x1b" not in gpu.name


def test_an_amd_gpu_is_named_honestly(tmp_path: Path) -> None:
    assert gpus._other_gpu(tmp_path) == ""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    assert "AMD GPU is here" in gpus._other_gpu(tmp_path)


def test_an_apple_gpu_is_named_honestly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpus.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(gpus.platform, "machine", lambda: "arm64")
    assert "Apple GPU is here" in gpus._other_gpu(tmp_path)


def test_the_real_library_answers_here_too() -> None:
    report = read_gpus()
    assert report.gpus or report.reason.endswith("training works on the CPU.")
