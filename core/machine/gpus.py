"""GPUs as the NVIDIA driver reports them through NVML; no CUDA context is made."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ollama_tune.core.machine.host import is_wsl, pids_are_ours, read_memory
from ollama_tune.core.machine.others import has_nvidia_card, other_gpus
from ollama_tune.core.machine.processes import process_name
from ollama_tune.core.machine.torchbuild import LEAST_CAPABILITY, TorchBuild, torch_build
from ollama_tune.core.machine.values import Gpu, GpuProcess, GpuReport, OtherGpu
from ollama_tune.core.text import visible

CPU_WORKS = "training works on the CPU"
NO_DRIVER = f"There is no NVIDIA driver here, so no GPU can be used; {CPU_WORKS}."
PROCESS_LISTS = ("Compute", "Graphics", "MPSCompute")
_Answer = TypeVar("_Answer")


def read_gpus(nvml: Any = None, torch_version: str | None = None) -> GpuReport:
    """All GPUs this process may use with their free memory now, or the reason why there are none.

    `CUDA_VISIBLE_DEVICES` is respected. `nvml` stands in for the module `pynvml`, `torch_version`
    for the installed PyTorch's.
    """
    torch = torch_build(torch_version)
    others = other_gpus(torch)
    report = _ask(nvml, torch)
    if report.reason == NO_DRIVER and (why := _what_is_here(others)):
        report = replace(report, reason=f"{why.removesuffix('.')}; {CPU_WORKS}.")
    return replace(report, others=others)


def _what_is_here(others: tuple[OtherGpu, ...]) -> str:
    """What to say instead of no NVIDIA driver, where there is a GPU all the same."""
    if has_nvidia_card():
        return "An NVIDIA GPU is here, but not its driver; install it to use the GPU."
    return others[0].why if others else ""


def _ask(nvml: Any, torch: TorchBuild) -> GpuReport:
    if nvml is None and not _has_library():
        return GpuReport((), None, NO_DRIVER)
    try:
        nvml = nvml or importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return GpuReport((), None, f"The package nvidia-ml-py is not installed; {CPU_WORKS}.")
    except nvml.NVMLError as error:
        return GpuReport((), None, _why_none(nvml, error))
    try:
        return _report(nvml, torch)
    except nvml.NVMLError as error:
        return GpuReport((), None, _why_none(nvml, error))
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _has_library() -> bool:
    """Whether the driver's library is here; asking `pynvml` for as much would take 1 MiB and 20 ms."""
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def _report(nvml: Any, torch: TorchBuild) -> GpuReport:
    driver = visible(str(_optional(nvml, nvml.nvmlSystemGetDriverVersion, "unknown")))
    number = _optional(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2, 0)
    cuda = (number // 1000, number % 1000 // 10) if number else None
    found: list[Gpu] = []
    notes: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            found.extend(_device(nvml, index))
        except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_ResetRequired):
            notes.append(f"GPU {index} stopped answering; restart this machine to use it.")
        except nvml.NVMLError_NotFound:
            notes.append(f"GPU {index} is cut by MIG but has no instance; make one with `nvidia-smi mig`.")
    gpus = tuple(_chosen(found, os.environ.get("CUDA_VISIBLE_DEVICES")))
    reason = _unusable(torch, driver, cuda, gpus[0]) if gpus else _why_hidden(len(found), notes)
    return GpuReport(gpus, driver, reason, not (gpus and reason), cuda, (), tuple(notes))


def _unusable(torch: TorchBuild, driver: str, cuda: tuple[int, int] | None, gpu: Gpu) -> str:
    """Why the installed PyTorch cannot use a GPU; empty when nothing speaks against it."""
    name = f"PyTorch {visible(torch.version)}"
    if torch.kind in ("cpu", "rocm"):
        return f"{name} cannot use the NVIDIA GPU; install its CUDA build; {CPU_WORKS}."
    if torch.cuda and cuda and cuda[0] < torch.cuda:
        return (
            f"{name} needs CUDA {torch.cuda}, and the driver {driver} goes up to {cuda[0]}.{cuda[1]}; "
            f"update the driver; {CPU_WORKS}."
        )
    least, own = LEAST_CAPABILITY.get(torch.cuda, (0, 0)), gpu.compute_capability
    if own and own < least:
        return (
            f"{gpu.name} has compute capability {own[0]}.{own[1]}, {name} starts at {least[0]}.{least[1]}; "
            f"install a PyTorch for CUDA {torch.cuda - 1}; {CPU_WORKS}."
        )
    return ""


def _why_hidden(found: int, notes: list[str]) -> str:
    if found:
        shown = visible(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        return f"CUDA_VISIBLE_DEVICES={shown} hides all {found} GPUs; {CPU_WORKS}."
    if notes:
        return f"{notes[0].removesuffix('.')}; {CPU_WORKS}."
    return f"The NVIDIA driver is loaded but sees no GPU; {CPU_WORKS}."


def _why_none(nvml: Any, error: Exception) -> str:
    if isinstance(error, nvml.NVMLError_LibraryNotFound):
        return NO_DRIVER
    if isinstance(error, nvml.NVMLError_DriverNotLoaded):
        return f"The NVIDIA driver is installed but not loaded (see `nvidia-smi`); {CPU_WORKS}."
    if isinstance(error, nvml.NVMLError_LibRmVersionMismatch):
        return f"The NVIDIA driver was updated; restart this machine to use the GPU; {CPU_WORKS}."
    if isinstance(error, nvml.NVMLError_NoPermission):
        return f"This user may not use the NVIDIA driver (see `nvidia-smi`); {CPU_WORKS}."
    return f"The NVIDIA driver reports an error ({visible(str(error))}); {CPU_WORKS}."


def _device(nvml: Any, index: int) -> Iterator[Gpu]:
    """The device, or its MIG instances where it is cut into such; CUDA cannot use a cut card as a whole."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    if not _optional(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0], 0):
        yield _gpu(nvml, index, handle, handle)
        return
    parts = list(_mig_parts(nvml, handle))
    if not parts:
        raise nvml.NVMLError_NotFound()
    for part in parts:
        yield replace(_gpu(nvml, index, part, handle), mig=True)


def _mig_parts(nvml: Any, handle: Any) -> Iterator[Any]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)


def _gpu(nvml: Any, index: int, handle: Any, parent: Any) -> Gpu:
    """What the driver tells of a device; a MIG instance's chip, sensors and screen are its parent's."""
    free, total, unified = read_free(nvml, handle)
    processes = _processes(nvml, handle)

    def ask(name: str, *arguments: Any) -> Any:
        return _optional(nvml, lambda: getattr(nvml, name)(parent, *arguments), None)

    capability = ask("nvmlDeviceGetCudaComputeCapability")
    mode = ask("nvmlDeviceGetVirtualizationMode")
    return Gpu(
        index=index,
        uuid=str(_optional(nvml, lambda: nvml.nvmlDeviceGetUUID(handle), f"GPU-{index}")),
        name=visible(str(_optional(nvml, lambda: nvml.nvmlDeviceGetName(handle), "NVIDIA GPU"))),
        total=total,
        free=free,
        compute_capability=tuple(capability) if capability else None,
        processes=processes or (),
        display=bool(ask("nvmlDeviceGetDisplayActive")),
        unified=unified,
        virtual=mode == nvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU,
        processes_known=processes is not None,
        **read_sensors(nvml, parent),
    )


def read_sensors(nvml: Any, card: Any) -> dict[str, Any]:
    """What a card's sensors tell now: the last four fields of a `Gpu`. NVML must be open."""

    def ask(name: str, *arguments: Any) -> Any:
        return _optional(nvml, lambda: getattr(nvml, name)(card, *arguments), None)

    rates = ask("nvmlDeviceGetUtilizationRates")
    return {
        "utilization": rates.gpu if rates else None,
        "temperature": ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        "power": _watts(ask("nvmlDeviceGetPowerUsage")),
        "power_limit": _watts(ask("nvmlDeviceGetEnforcedPowerLimit")),
    }


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def read_free(nvml: Any, handle: Any) -> tuple[int, int, bool]:
    """Free and total bytes; where CPU and GPU share memory NVML does not say, but the kernel does.

    Only `free` counts: what old drivers call used includes what they keep for themselves, and new ones not.
    """
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_ArgumentVersionMismatch):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        memory = None
    if memory is None or not memory.total:
        available, total = read_memory()
        return available, total, True
    return int(memory.free), int(memory.total), False


def _optional(nvml: Any, call: Callable[[], _Answer], default: _Answer) -> _Answer:
    """What the call answers, or the default where this device or driver does not tell."""
    try:
        return call()
    except nvml.NVMLError:
        return default


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...] | None:
    """Who holds memory, most first; None where the driver has no list, as in WSL2."""
    if is_wsl():
        return None
    asked = [getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses") for kind in PROCESS_LISTS]
    lists = [_optional(nvml, partial(ask, handle), None) for ask in asked]
    if all(found is None for found in lists):
        return None
    held: dict[int, int | None] = {}
    for process in (process for found in lists for process in found or []):
        known, memory = held.get(process.pid) or 0, process.usedGpuMemory
        held[process.pid] = max(known, memory) if memory is not None else (known or None)
    named = pids_are_ours()
    found = [GpuProcess(pid, process_name(pid) if named else "", memory) for pid, memory in held.items()]
    return tuple(sorted(found, key=lambda process: -(process.memory or 0)))


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
