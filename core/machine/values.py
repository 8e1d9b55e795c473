"""What the box is and what is free on it now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds GPU memory. `memory` is bytes, or None where the driver does not tell.

    `name` is empty where it cannot be known: the driver counts processes as the host of a container does.
    """

    pid: int
    name: str
    memory: int | None


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG instance of one, as NVML reports it; None stands for what the driver does not tell.

    Memory in bytes, `free` as the driver says (not total - used). `processes_known` is False where there
    is no list of processes (WSL2). `unified` memory is the computer's own. `virtual` is a vGPU's part of a
    card. `utilization` in percent, `temperature` in degrees Celsius, `power` and `power_limit` in watts.
    """

    index: int
    uuid: str
    name: str
    total: int
    free: int
    compute_capability: tuple[int, int] | None
    processes: tuple[GpuProcess, ...] = ()
    display: bool = False
    unified: bool = False
    mig: bool = False
    virtual: bool = False
    processes_known: bool = True
    utilization: int | None = None
    temperature: int | None = None
    power: float | None = None
    power_limit: float | None = None


@dataclass(frozen=True)
class OtherGpu:
    """A GPU that NVML does not know: its maker, what it is called, its bytes (None where shared or untold).

    `why` says in one sentence why it is not trained on.
    """

    maker: str
    name: str
    total: int | None
    free: int | None
    why: str


@dataclass(frozen=True)
class GpuReport:
    """All GPUs, or none and the reason in one sentence.

    `usable` is False when there are GPUs but the installed PyTorch cannot use them; `reason` says why.
    `cuda` is the newest CUDA that the driver runs, as (major, minor). `others` are AMD's and Apple's.
    `notes` are sentences about what was left out.
    """

    gpus: tuple[Gpu, ...]
    driver: str | None
    reason: str
    usable: bool = True
    cuda: tuple[int, int] | None = None
    others: tuple[OtherGpu, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Disk:
    """Free and total bytes of the file system that holds `path`; `device` is its number, 0 where unknown."""

    path: str
    free: int
    total: int
    device: int = 0


@dataclass(frozen=True)
class Host:
    """CPU and memory. `cores` are those this process may use; RAM respects a container's limit.

    `inside` is what the system runs in: `container`, `WSL2`, or empty. `bfloat16` names the CPU's units for
    that number format, empty where it has none or it is not known.
    """

    cpu: str
    cores: int
    ram_total: int
    ram_available: int
    system: str
    inside: str = ""
    bfloat16: str = ""


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
    """Everything the plan needs to know of this box, at one moment.

    `disk` holds the runs, `models_disk` what is downloaded, `ollama_disk` a local Ollama's models; None
    where that folder is not known.
    """

    gpu: GpuReport
    host: Host
    disk: Disk
    ollama: OllamaStatus
    models_disk: Disk | None = None
    ollama_disk: Disk | None = None

    @property
    def device(self) -> str:
        """`cuda` when NVML shows at least one GPU and PyTorch can use it, else `cpu`."""
        return "cuda" if self.gpu.gpus and self.gpu.usable else "cpu"
