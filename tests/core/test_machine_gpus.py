"""GPUs through a strict double of NVML, and the real library where no driver is."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pynvml
import pytest

from ollama_tune.core.machine import gpus, others
from ollama_tune.core.machine.gpus import read_gpus
from ollama_tune.core.machine.host import read_memory
from ollama_tune.core.machine.torchbuild import TorchBuild, torch_build
from ollama_tune.core.machine.values import Gpu, GpuReport
from tests.nvml_double import GIB, Device, Nvml, error, process

TORCH = "2.13.0+cu130"


def read(nvml: Nvml, torch_version: str = TORCH) -> GpuReport:
    report = read_gpus(nvml, torch_version)
    assert nvml.shutdowns == 1
    return report


@pytest.fixture(autouse=True)
def _plain_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """No card beside the double's, no container, no Windows."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "other_gpus", lambda torch: ())
    monkeypatch.setattr(gpus, "has_nvidia_card", lambda: False)
    monkeypatch.setattr(gpus, "is_wsl", lambda: False)
    monkeypatch.setattr(gpus, "pids_are_ours", lambda: True)


def test_a_gpu_is_read_whole() -> None:
    report = read(Nvml(Device(display=1)))
    assert report.driver == "570.86.10"
    assert report.reason == ""
    assert (report.cuda, report.usable, report.notes, report.others) == ((13, 0), True, (), ())
    assert report.gpus == (
        Gpu(
            index=0,
            uuid="GPU-11111111-aaaa",
            name="NVIDIA GeForce RTX 4090",
            total=24 * GIB,
            free=20 * GIB,
            compute_capability=(8, 9),
            display=True,
            utilization=3,
            temperature=41,
            power=21.5,
            power_limit=450.0,
        ),
    )


def test_free_is_what_the_driver_says_and_not_total_less_used() -> None:
    (gpu,) = read(Nvml(Device(free=7 * GIB))).gpus
    assert gpu.free == 7 * GIB


def test_a_driver_without_the_newer_call_is_asked_by_the_older(monkeypatch: pytest.MonkeyPatch) -> None:
    (gpu,) = read(Nvml(Device(free=7 * GIB), old=True)).gpus
    assert (gpu.free, gpu.unified) == (7 * GIB, False)


def test_processes_of_all_lists_are_joined_largest_first() -> None:
    mine = os.getpid()
    device = Device(
        compute=[process(mine, 2 * GIB), process(2**22 + 5, 5 * GIB)],
        graphics=[process(mine, GIB), process(2**22 + 6, None)],
        mps=[process(2**22 + 7, 3 * GIB)],
    )
    (gpu,) = read(Nvml(device)).gpus
    assert [(p.pid, p.memory) for p in gpu.processes] == [
        (2**22 + 5, 5 * GIB),
        (2**22 + 7, 3 * GIB),
        (mine, 2 * GIB),
        (2**22 + 6, None),
    ]
    assert [p.name for p in gpu.processes] == ["", "", psutil.Process().name(), ""]


def test_in_a_container_a_host_pid_gets_no_name_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "pids_are_ours", lambda: False)
    (gpu,) = read(Nvml(Device(compute=[process(os.getpid(), GIB)]))).gpus
    assert (gpu.processes[0].name, gpu.processes_known) == ("", True)


def test_in_windows_linux_there_is_no_list_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "is_wsl", lambda: True)
    (gpu,) = read(Nvml(Device(compute=()))).gpus
    assert (gpu.processes, gpu.processes_known, gpu.free) == ((), False, 20 * GIB)


def test_unified_memory_is_what_the_kernel_has_available() -> None:
    (gpu,) = read(Nvml(Device(name="NVIDIA GB10", free=error(pynvml.NVML_ERROR_NOT_SUPPORTED)))).gpus
    assert gpu.unified
    assert 0 < gpu.free <= gpu.total <= psutil.virtual_memory().total


def test_a_total_of_nothing_is_unified_memory_too() -> None:
    (gpu,) = read(Nvml(Device(name="Orin", free=0, total=0))).gpus
    assert gpu.unified
    assert gpu.total > 0


SILENT = error(pynvml.NVML_ERROR_NOT_SUPPORTED)
OPTIONAL = ("capability", "display", "compute", "graphics", "mps", "utilization", "temperature")
MORE_OPTIONAL = ("power", "power_limit", "virtualization", "uuid", "name")


def test_what_a_device_does_not_tell_is_left_open() -> None:
    device = Device(**dict.fromkeys((*OPTIONAL, *MORE_OPTIONAL), SILENT))
    report = read(Nvml(device, driver=SILENT, cuda=SILENT))
    assert (report.driver, report.cuda, report.usable) == ("unknown", None, True)
    assert report.gpus == (
        Gpu(0, "GPU-0", "NVIDIA GPU", 24 * GIB, 20 * GIB, compute_capability=None, processes_known=False),
    )


@pytest.mark.parametrize("name", OPTIONAL)
def test_each_answer_can_be_missing_alone(name: str) -> None:
    (gpu,) = read(Nvml(Device(**{name: SILENT}))).gpus
    assert (gpu.free, gpu.processes_known) == (20 * GIB, True)


def test_a_part_of_a_card_given_to_a_virtual_machine_is_marked() -> None:
    (gpu,) = read(Nvml(Device(virtualization=pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU))).gpus
    assert gpu.virtual


def test_a_gpu_cut_by_mig_is_its_parts() -> None:
    parts = {0: Device(uuid="MIG-a", free=4 * GIB), 2: Device(uuid="MIG-b", free=9 * GIB)}
    report = read(Nvml(Device(name="NVIDIA H100", capability=(9, 0), mig=1, parts=parts)))
    assert [(g.uuid, g.free, g.compute_capability) for g in report.gpus] == [
        ("MIG-a", 4 * GIB, (9, 0)),
        ("MIG-b", 9 * GIB, (9, 0)),
    ]
    assert all(gpu.mig and gpu.temperature == 41 for gpu in report.gpus)


def test_a_gpu_that_is_cut_but_has_no_instance_cannot_be_used() -> None:
    report = read(Nvml(Device(mig=1), Device(uuid="GPU-2")))
    assert [gpu.uuid for gpu in report.gpus] == ["GPU-2"]
    assert "GPU 0 is cut by MIG but has no instance" in report.notes[0]
    assert "no instance" in read(Nvml(Device(mig=1))).reason


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


@pytest.mark.parametrize(
    ("torch", "cuda", "capability", "words"),
    [
        ("2.13.0+cu130", 13_000, (8, 9), ""),
        ("2.13.0+cu130", 12_080, (8, 9), "needs CUDA 13, and the driver 570.86.10 goes up to 12.8"),
        ("2.13.0+cu126", 13_000, (6, 1), ""),
        ("2.13.0+cu130", 13_000, (7, 0), "starts at 7.5; install a PyTorch for CUDA 12"),
        ("2.13.0+rocm7.0", 13_000, (8, 9), "cannot use the NVIDIA GPU"),
        ("2.13.0", 12_080, (8, 9), ""),
    ],
)
def test_a_pytorch_that_does_not_fit_driver_or_gpu_is_named(
    torch: str, cuda: int, capability: tuple[int, int], words: str
) -> None:
    report = read(Nvml(Device(capability=capability), cuda=cuda), torch)
    assert report.usable == (not words)
    assert words in report.reason
    assert bool(report.reason) == bool(words)


@pytest.mark.parametrize(
    ("version", "build"),
    [
        ("2.13.0+cpu", ("cpu", 0)),
        ("2.13.0+cu130", ("cuda", 13)),
        ("2.6.0+cu118", ("cuda", 11)),
        ("2.13.0+rocm6.4", ("rocm", 0)),
        ("2.13.0", ("", 0)),
        ("", ("", 0)),
    ],
)
def test_what_pytorch_was_built_for(version: str, build: tuple[str, int]) -> None:
    assert torch_build(version) == TorchBuild(version, *build)


def test_the_installed_pytorch_is_the_one_that_is_loaded() -> None:
    import torch

    build = torch_build()
    assert torch.__version__.startswith(build.version)
    if torch.version.cuda:
        assert build.cuda == int(torch.version.cuda.split(".")[0])


def card(root: Path, vendor: str, name: str = "card0", **files: int) -> None:
    """A graphics card as the kernel lists it."""
    device = root / "sys/class/drm" / name / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    for file, value in files.items():
        (device / file).write_text(f"{value}\n")


def node(root: Path, number: int, target: int) -> None:
    """A device as ROCm's part of the kernel lists it; CPUs have the target 0."""
    folder = root / "sys/class/kfd/kfd/topology/nodes" / str(number)
    folder.mkdir(parents=True)
    (folder / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {target}\n")


def test_an_amd_gpu_is_named_with_its_memory(tmp_path: Path) -> None:
    build = torch_build(TORCH)
    assert others.other_gpus(build, tmp_path) == ()
    card(tmp_path, "0x1002", "card1", mem_info_vram_total=16 * GIB, mem_info_vram_used=3 * GIB)
    (tmp_path / "sys/class/drm/card1-DP-1").mkdir()
    node(tmp_path, 0, 0)
    node(tmp_path, 1, 90010)
    (gpu,) = others.other_gpus(build, tmp_path)
    assert (gpu.maker, gpu.name, gpu.total, gpu.free) == ("AMD", "AMD GPU (gfx90a)", 16 * GIB, 13 * GIB)
    assert gpu.why.startswith("An AMD GPU (gfx90a) is here, which needs a ROCm PyTorch;")
    (gpu,) = others.other_gpus(torch_build("2.13.0+rocm6.4"), tmp_path)
    assert "even with this ROCm build of PyTorch" in gpu.why


def test_an_amd_gpu_of_which_only_the_device_is_seen(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    (gpu,) = others.other_gpus(torch_build(TORCH), tmp_path)
    assert (gpu.name, gpu.total, gpu.free) == ("AMD GPU", None, None)


def test_an_intel_card_is_no_amd_card(tmp_path: Path) -> None:
    card(tmp_path, "0x8086")
    assert others.other_gpus(torch_build(TORCH), tmp_path) == ()


def test_an_apple_gpu_is_named_with_the_memory_it_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(others.platform, "machine", lambda: "arm64")
    (gpu,) = others.other_gpus(torch_build("2.13.0"))
    assert (gpu.maker, gpu.name, gpu.total) == ("Apple", "Apple GPU (MPS)", read_memory()[1])


def test_another_gpu_is_the_reason_only_where_no_nvidia_driver_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(tmp_path, "0x1002")
    monkeypatch.setattr(gpus, "other_gpus", lambda torch: others.other_gpus(torch, tmp_path))
    report = read_gpus(Nvml(init=error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)), TORCH)
    assert report.reason.startswith("An AMD GPU is here")
    assert report.reason.endswith("; training works on the CPU.")
    report = read_gpus(Nvml(init=error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)), TORCH)
    assert "not loaded" in report.reason
    assert [gpu.maker for gpu in report.others] == ["AMD"]
    assert read(Nvml(Device())).reason == ""


def test_an_nvidia_card_without_its_driver_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not others.has_nvidia_card(tmp_path)
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x040300\n")
    assert not others.has_nvidia_card(tmp_path), "its sound device is no GPU"
    (device / "class").write_text("0x030200\n")
    assert others.has_nvidia_card(tmp_path)
    monkeypatch.setattr(gpus, "has_nvidia_card", lambda: others.has_nvidia_card(tmp_path))
    report = read_gpus(Nvml(init=error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)), TORCH)
    assert "not its driver; install it" in report.reason


def test_the_real_library_answers_here_too() -> None:
    report = read_gpus()
    assert report.gpus or report.reason.endswith("training works on the CPU.")
