"""A strict stand-in for the module `pynvml`: only the functions written here exist, and only between
`nvmlInit` and `nvmlShutdown`. Errors and their codes are the real module's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 1 << 30


@dataclass
class Device:
    """A GPU of the double; an exception in place of a value is raised when the value is asked for."""

    name: str = "NVIDIA GeForce RTX 4090"
    uuid: str = "GPU-11111111-aaaa"
    free: Any = 20 * GIB
    total: int = 24 * GIB
    capability: Any = (8, 9)
    display: Any = 0
    compute: Any = ()
    graphics: Any = ()
    mps: Any = ()
    utilization: Any = 3
    temperature: Any = 41
    power: Any = 21_500
    power_limit: Any = 450_000
    virtualization: Any = pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE
    mig: Any = field(default_factory=lambda: pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
    parts: dict[int, Device] = field(default_factory=dict)
    lost: bool = False


def error(code: int) -> Exception:
    """The exception that the real module raises for a code."""
    made: Exception = pynvml.NVMLError(code)
    return made


def process(pid: int, memory: int | None) -> SimpleNamespace:
    """An entry of the process lists."""
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


class Nvml:
    """The module. `init` is raised by `nvmlInit` when given; an `old` driver lacks newer calls."""

    def __init__(
        self,
        *devices: Device,
        init: Exception | None = None,
        driver: Any = "570.86.10",
        cuda: Any = 13_000,
        old: bool = False,
    ) -> None:
        self._devices = devices
        self._init = init
        self._driver = driver
        self._cuda = cuda
        self._old = old
        self._open = 0
        self.shutdowns = 0
        for name in dir(pynvml):
            if name.startswith(("NVMLError", "NVML_ERROR", "NVML_TEMP", "NVML_GPU_VIRT", "nvmlMemory_v")):
                setattr(self, name, getattr(pynvml, name))

    def _value(self, value: Any) -> Any:
        assert self._open == 1, "called outside of nvmlInit ... nvmlShutdown"
        if isinstance(value, Exception):
            raise value
        return value

    def _of(self, device: Device, read: Callable[[Device], Any]) -> Any:
        assert isinstance(device, Device), "not a handle"
        if device.lost:
            raise error(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self._value(read(device))

    def nvmlInit(self) -> None:
        if self._init is not None:
            raise self._init
        self._open += 1

    def nvmlShutdown(self) -> None:
        assert self._open == 1
        self._open, self.shutdowns = 0, self.shutdowns + 1

    def nvmlSystemGetDriverVersion(self) -> Any:
        return self._value(self._driver)

    def nvmlSystemGetCudaDriverVersion_v2(self) -> Any:
        return self._value(self._cuda)

    def nvmlDeviceGetCount(self) -> Any:
        return self._value(len(self._devices))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self._value(self._devices[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        known = [part for card in self._devices for part in (card, *card.parts.values())]
        return self._value(next(device for device in known if device.uuid == uuid))

    def nvmlDeviceGetMigMode(self, device: Device) -> Any:
        return [self._of(device, lambda d: d.mig), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Device) -> Any:
        return self._of(device, lambda d: 7)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Device, index: int) -> Any:
        missing = error(pynvml.NVML_ERROR_NOT_FOUND)
        return self._of(device, lambda d: d.parts.get(index, missing))

    def nvmlDeviceGetMemoryInfo(self, device: Device, version: int | None = None) -> Any:
        assert version in (None, pynvml.nvmlMemory_v2), "not a version"
        if version and self._old:
            raise error(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        free = self._of(device, lambda d: d.free)
        return SimpleNamespace(free=free, total=device.total, used=device.total)

    def nvmlDeviceGetUUID(self, device: Device) -> Any:
        return self._of(device, lambda d: d.uuid)

    def nvmlDeviceGetName(self, device: Device) -> Any:
        return self._of(device, lambda d: d.name)

    def nvmlDeviceGetCudaComputeCapability(self, device: Device) -> Any:
        return self._of(device, lambda d: d.capability)

    def nvmlDeviceGetDisplayActive(self, device: Device) -> Any:
        return self._of(device, lambda d: d.display)

    def nvmlDeviceGetComputeRunningProcesses(self, device: Device) -> Any:
        return self._of(device, lambda d: d.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, device: Device) -> Any:
        return self._of(device, lambda d: d.graphics)

    def nvmlDeviceGetMPSComputeRunningProcesses(self, device: Device) -> Any:
        return self._of(device, lambda d: d.mps)

    def nvmlDeviceGetUtilizationRates(self, device: Device) -> Any:
        return SimpleNamespace(gpu=self._whole(device, lambda d: d.utilization), memory=0)

    def nvmlDeviceGetTemperature(self, device: Device, sensor: int) -> Any:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._whole(device, lambda d: d.temperature)

    def nvmlDeviceGetPowerUsage(self, device: Device) -> Any:
        return self._whole(device, lambda d: d.power)

    def nvmlDeviceGetEnforcedPowerLimit(self, device: Device) -> Any:
        return self._whole(device, lambda d: d.power_limit)

    def nvmlDeviceGetVirtualizationMode(self, device: Device) -> Any:
        return self._whole(device, lambda d: d.virtualization)

    def _whole(self, device: Device, read: Callable[[Device], Any]) -> Any:
        """Sensors belong to a card; a MIG instance has none."""
        assert device in self._devices, "an instance was asked for what only the whole card has"
        return self._of(device, read)
