"""What the box does while a run is on it: a light look every two seconds, never an error.

A value is None where this machine does not tell it.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from ollama_tune.core.machine.gpus import read_free, read_gpus, read_sensors
from ollama_tune.core.machine.host import read_disk, read_host, read_memory
from ollama_tune.core.machine.values import Gpu

SECONDS = 2.0


@dataclass(frozen=True)
class BoxNow:
    """One look. `cpu` is the share of all processors that is busy, in percent; `run` how many of the `cores`
    that may be used the run itself keeps busy. Memory and disk in bytes; `disk_free` is that of the run's
    folder. `gpus` are those that may be used; empty for a run on the processor.
    """

    cpu: float | None
    run: float | None
    cores: int
    ram_free: int
    ram_total: int
    disk_free: int | None
    gpus: tuple[Gpu, ...] = ()


class GpuSensors:
    """NVML opened once; `read` costs a few calls a card. `nvml` stands in for the module `pynvml`."""

    def __init__(self, nvml: Any = None) -> None:
        self._cards: list[tuple[Gpu, Any, Any]] = []
        self._nvml: Any = None
        found = read_gpus(nvml).gpus
        if found:
            self._nvml = nvml or importlib.import_module("pynvml")
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlInit()
                self._cards = [(gpu, *self._handles(gpu)) for gpu in found]

    def _handles(self, gpu: Gpu) -> tuple[Any, Any]:
        """What has the memory (a MIG instance, else the card) and what has the sensors (always the card)."""
        card = self._nvml.nvmlDeviceGetHandleByIndex(gpu.index)
        return (self._nvml.nvmlDeviceGetHandleByUUID(gpu.uuid) if gpu.mig else card), card

    def read(self) -> tuple[Gpu, ...]:
        """The GPUs with what changes; a card that is lost keeps its name, its figures are 0 and None."""
        return tuple(self._now(*card) for card in self._cards)

    def _now(self, gpu: Gpu, part: Any, card: Any) -> Gpu:
        free = total = 0
        with contextlib.suppress(self._nvml.NVMLError):
            free, total, _ = read_free(self._nvml, part)
        return replace(gpu, free=free, total=total, **read_sensors(self._nvml, card))

    def close(self) -> None:
        """Leave NVML."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._cards, self._nvml = [], None


def workers(who: Mapping[str, Any]) -> list[int]:
    """The processes of a run on this box, as `worker.json` says: of a launcher all that it started."""
    with contextlib.suppress(KeyError, TypeError, ValueError, psutil.Error):
        return [child.pid for child in psutil.Process(who["launcher"]).children()]
    return [who["pid"]] if isinstance(who.get("pid"), int) else []


class BoxSampler:
    """Looks at the box of a run: its folder's disk, its processes and, if it trains on them, the GPUs."""

    def __init__(self, folder: Path, *pids: int, gpus: bool = False, nvml: Any = None) -> None:
        self._folder = folder
        self._cores = read_host().cores
        self._sensors = GpuSensors(nvml) if gpus else None
        self._workers: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            self._workers = [psutil.Process(pid) for pid in pids]
        self._spent = self._cpu_seconds(), time.monotonic()
        psutil.cpu_percent()

    def read(self) -> BoxNow:
        """One look; shares are means since the last one."""
        free, total = read_memory()
        disk = read_disk(self._folder)
        return BoxNow(
            cpu=_quiet(psutil.cpu_percent),
            run=self._run_cores(),
            cores=self._cores,
            ram_free=free,
            ram_total=total,
            disk_free=disk.free if disk.total else None,
            gpus=self._sensors.read() if self._sensors else (),
        )

    def _cpu_seconds(self) -> float | None:
        with contextlib.suppress(psutil.Error):
            times = [worker.cpu_times() for worker in self._workers]
            return float(sum(spent.user + spent.system for spent in times)) if times else None
        return None

    def _run_cores(self) -> float | None:
        (before, then), now = self._spent, (self._cpu_seconds(), time.monotonic())
        self._spent = now
        if before is None or now[0] is None or now[1] <= then:
            return None
        return max(now[0] - before, 0.0) / (now[1] - then)

    def close(self) -> None:
        """Give back what was opened."""
        if self._sensors is not None:
            self._sensors.close()


def _quiet(ask: Any) -> float | None:
    try:
        return float(ask())
    except (OSError, psutil.Error):
        return None


class BoxWatch:
    """Looks every two seconds in a thread of its own, since a driver may take its time; `latest` is what was
    seen last, None before the first look. What goes wrong in it only ends the looking.
    """

    def __init__(self, folder: Path, *pids: int, gpus: bool = False) -> None:
        self.latest: BoxNow | None = None
        self._over = threading.Event()
        self._folder, self._pids, self._gpus = folder, pids, gpus
        threading.Thread(target=self._look, name="box", daemon=True).start()

    def _look(self) -> None:
        with contextlib.suppress(Exception):
            sampler = BoxSampler(self._folder, *self._pids, gpus=self._gpus)
            while not self._over.wait(SECONDS):
                self.latest = sampler.read()
            sampler.close()
        self.latest = None

    def close(self) -> None:
        """Look no more."""
        self._over.set()
