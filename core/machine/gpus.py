"""GPUs as the NVIDIA driver reports them through NVML; no CUDA context is made."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from ollama_tune.core.machine.host import read_memory
from ollama_tune.core.machine.values import Gpu, GpuProcess, GpuReport
from ollama_tune.core.text import visible

CPU_WORKS = "training works on the CPU"
INITIAL_PID_NAMESPACE = "pid:[4026531836]"


def read_gpus(nvml: Any = None, torch_version: str | None = None) -> GpuReport:
    """All GPUs this process may use with their free memory now, or the reason why there are none.

    `CUDA_VISIBLE_DEVICES` is respected. `nvml` stands in for the module `pynvml`, `torch_version`
    for the installed PyTorch's.
    """
    try:
        nvml = nvml or importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return GpuReport((), None, f"The package nvidia-ml-py is not installed; {CPU_WORKS}.")
    except nvml.NVMLError as error:
        return GpuReport((), None, _why_none(nvml, error))
    try:
        return _report(nvml, torch_version or _installed_torch())
    except nvml.NVMLError as error:
        return GpuReport((), None, _why_none(nvml, error))
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _report(nvml: Any, torch_version: str) -> GpuReport:
    driver = str(nvml.nvmlSystemGetDriverVersion())
    found: list[Gpu] = []
    lost = 0
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            found.extend(_device(nvml, index))
        except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_ResetRequired):
            lost += 1
    gpus = tuple(_chosen(found, os.environ.get("CUDA_VISIBLE_DEVICES")))
    if gpus and torch_version.endswith("+cpu"):
        text = f"PyTorch {torch_version} cannot use the GPU; install its CUDA build; {CPU_WORKS}."
        return GpuReport(gpus, driver, text, usable=False)
    return GpuReport(gpus, driver, "" if gpus else _why_hidden(len(found), lost))


def _why_hidden(found: int, lost: int) -> str:
    if found:
        shown = visible(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        return f"CUDA_VISIBLE_DEVICES={shown} hides all {found} GPUs; {CPU_WORKS}."
    if lost:
        return f"The NVIDIA GPU stopped answering; restart this machine to use it; {CPU_WORKS}."
    return f"The NVIDIA driver is loaded but sees no GPU; {CPU_WORKS}."


def _why_none(nvml: Any, error: Exception) -> str:
    if isinstance(error, nvml.NVMLError_LibraryNotFound):
        return _other_gpu() or f"There is no NVIDIA driver here, so no GPU can be used; {CPU_WORKS}."
    if isinstance(error, nvml.NVMLError_DriverNotLoaded):
        return f"The NVIDIA driver is installed but not loaded (see `nvidia-smi`); {CPU_WORKS}."
    if isinstance(error, nvml.NVMLError_LibRmVersionMismatch):
        return f"The NVIDIA driver was updated; restart this machine to use the GPU; {CPU_WORKS}."
    if isinstance(error, nvml.NVMLError_NoPermission):
        return f"This user may not use the NVIDIA driver (see `nvidia-smi`); {CPU_WORKS}."
    return f"The NVIDIA driver reports an error ({visible(str(error))}); {CPU_WORKS}."


def _other_gpu(root: Path = Path("/")) -> str:
    """What to say of a GPU that this version cannot train on; empty when none is seen."""
    if (root / "dev/kfd").exists():
        return f"An AMD GPU is here, but ollama-tune trains on NVIDIA GPUs only; {CPU_WORKS}."
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        return f"An Apple GPU is here, but ollama-tune trains on NVIDIA GPUs only; {CPU_WORKS}."
    return ""


def _device(nvml: Any, index: int) -> Iterator[Gpu]:
    """The device, or its MIG parts where it is cut into such."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    parts = list(_mig_parts(nvml, handle))
    for part in parts or [handle]:
        yield _gpu(nvml, index, part, handle)


def _mig_parts(nvml: Any, handle: Any) -> Iterator[Any]:
    if not _optional(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0], 0):
        return
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)


def _gpu(nvml: Any, index: int, handle: Any, parent: Any) -> Gpu:
    free, total, unified = _memory(nvml, handle)
    capability = _optional(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(parent), None)
    return Gpu(
        index=index,
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        name=visible(str(nvml.nvmlDeviceGetName(handle))),
        total=total,
        free=free,
        compute_capability=tuple(capability) if capability else None,
        processes=_processes(nvml, handle),
        display=bool(_optional(nvml, lambda: nvml.nvmlDeviceGetDisplayActive(parent), 0)),
        unified=unified,
    )


def _memory(nvml: Any, handle: Any) -> tuple[int, int, bool]:
    """Free and total bytes; where CPU and GPU share memory NVML does not say, but the kernel does."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        available, total = read_memory()
        return available, total, True
    return int(memory.free), int(memory.total), False


def _optional(nvml: Any, call: Any, default: Any) -> Any:
    """What the call answers, or the default where this device or driver does not tell."""
    try:
        return call()
    except nvml.NVMLError:
        return default


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    held: dict[int, int | None] = {}
    for list_them in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in _optional(nvml, lambda of=list_them: of(handle), []):
            known = held.get(process.pid) or 0
            memory = process.usedGpuMemory
            held[process.pid] = max(known, memory) if memory is not None else (known or None)
    found = [GpuProcess(pid, _process_name(pid), memory) for pid, memory in held.items()]
    return tuple(sorted(found, key=lambda process: -(process.memory or 0)))


def _process_name(pid: int) -> str:
    """NVML counts processes as the host does, so inside a container a pid names somebody else."""
    if not _pids_are_ours():
        return "unknown"
    try:
        return visible(psutil.Process(pid).name())
    except psutil.Error:
        return "unknown"


def _pids_are_ours() -> bool:
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == INITIAL_PID_NAMESPACE
    except OSError:
        return platform.system() != "Linux"


def _chosen(gpus: list[Gpu], wish: str | None) -> Iterator[Gpu]:
    """The GPUs `CUDA_VISIBLE_DEVICES` names, in its order; CUDA stops at the first wrong entry.

    Numbers count as NVML does (by PCI address), so a worker sets `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    """
    if wish is None:
        yield from gpus
        return
    for entry in wish.split(","):
        named = [gpu for gpu in gpus if _is_named(gpu, entry.strip())]
        if not named:
            return
        yield named[0]


def _is_named(gpu: Gpu, entry: str) -> bool:
    if entry.isdecimal():
        return gpu.index == int(entry)
    return entry.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(entry)


def _installed_torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""
