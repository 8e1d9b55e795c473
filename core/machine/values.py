"""What the box is and what is free on it now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds GPU memory. `memory` is bytes, or None where the driver does not tell."""

    pid: int
    name: str
    memory: int | None


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML reports it; memory in bytes, `free` as the driver says (not total - used)."""

    index: int
    uuid: str
    name: str
    total: int
    free: int
    compute_capability: tuple[int, int] | None
    processes: tuple[GpuProcess, ...] = ()
    display: bool = False
    unified: bool = False


@dataclass(frozen=True)
class GpuReport:
    """All GPUs, or none and the reason in one sentence.

    `usable` is False when there are GPUs but the installed PyTorch is built for the CPU only.
    """

    gpus: tuple[Gpu, ...]
    driver: str | None
    reason: str
    usable: bool = True


@dataclass(frozen=True)
class Disk:
    """Free and total bytes of the file system that holds `path`."""

    path: str
    free: int
    total: int


@dataclass(frozen=True)
class Host:
    """CPU and memory. `cores` are those this process may use; RAM respects a container's limit."""

    cpu: str
    cores: int
    ram_total: int
    ram_available: int
    system: str


@dataclass(frozen=True)
class OllamaModel:
    """A model that Ollama holds in memory now; bytes, `vram` is the part on the GPU."""

    name: str
    size: int
    vram: int


@dataclass(frozen=True)
class OllamaStatus:
    """Whether an Ollama server answers at `url`, its version, or why not in one sentence."""

    url: str
    version: str | None
    reason: str
    local: bool
    loaded: tuple[OllamaModel, ...] = ()

    @property
    def reachable(self) -> bool:
        """True when a server answered with a version."""
        return self.version is not None


@dataclass(frozen=True)
class Machine:
    """Everything the plan needs to know of this box, at one moment."""

    gpu: GpuReport
    host: Host
    disk: Disk
    ollama: OllamaStatus

    @property
    def device(self) -> str:
        """`cuda` when NVML shows at least one GPU and PyTorch can use it, else `cpu`."""
        return "cuda" if self.gpu.gpus and self.gpu.usable else "cpu"
