"""CPU, memory and disk as this process may use them: affinity and container limits respected."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from ollama_tune.core.machine.values import Disk, Host
from ollama_tune.core.text import visible

ROOT = Path("/")
BFLOAT16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512"}
"""Units that multiply bfloat16 by the kernel's names of their flags, the fastest first."""
INITIAL_PID_NAMESPACE = "pid:[4026531836]"


def read_host(root: Path = ROOT) -> Host:
    """The CPU's name, usable cores, memory in bytes and the system; `root` is where /proc and /sys lie."""
    available, total = read_memory(root)
    return Host(
        cpu=_cpu_name(root),
        cores=_usable_cores(root),
        ram_total=total,
        ram_available=available,
        system=f"{platform.system()} {platform.release()}",
        inside="WSL2" if is_wsl(root) else "container" if _in_container(root) else "",
        bfloat16=_bfloat16_units(root),
    )


def is_wsl(root: Path = ROOT) -> bool:
    """Whether this Linux runs in Windows: its driver tells totals of the GPU, but not who holds them."""
    return "microsoft" in _text(root / "proc/sys/kernel/osrelease").lower()


def _in_container(root: Path) -> bool:
    marks = (root / ".dockerenv", root / "run/.containerenv")
    return not pids_are_ours(root) or any(mark.exists() for mark in marks)


def pids_are_ours(root: Path = ROOT) -> bool:
    """Whether process ids mean here what they mean to the driver; in a container they are the host's."""
    try:
        return str((root / "proc/self/ns/pid").readlink()) == INITIAL_PID_NAMESPACE
    except OSError:
        return platform.system() != "Linux"


def read_memory(root: Path = ROOT) -> tuple[int, int]:
    """Available and total bytes of RAM: the kernel's figures, lowered to the container's limit."""
    memory = psutil.virtual_memory()
    available, total = int(memory.available), int(memory.total)
    for limit, used in _memory_limits(root):
        if limit < total:
            total = limit
        available = min(available, max(limit - used, 0))
    return available, total


def read_disk(path: Path) -> Disk:
    """Space on the file system that holds `path`, which need not exist yet."""
    place = path.expanduser().absolute()
    while True:
        try:
            usage = shutil.disk_usage(place)
            return Disk(str(path), usage.free, usage.total, place.stat().st_dev)
        except OSError:
            if place == place.parent:
                return Disk(str(path), 0, 0)
            place = place.parent


def _cpu_name(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model") and value.strip():
            return visible(" ".join(value.split()))
    return platform.processor() or platform.machine() or "unknown CPU"


def _bfloat16_units(root: Path) -> str:
    """The fastest unit of the CPU for bfloat16; known on Linux with x86 only."""
    lines = (line.partition(":") for line in _text(root / "proc/cpuinfo").splitlines())
    flags = next((value.split() for name, _, value in lines if name.strip() == "flags"), [])
    return next((unit for flag, unit in BFLOAT16_UNITS.items() if flag in flags), "")


def _usable_cores(root: Path) -> int:
    """Cores this process may run on, and no more than the container's quota pays for (rounded down)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([cores, *(int(quota) for quota in _cpu_quotas(root))]), 1)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Every control group above this process with its version, 1 or 2.

    Inside a container the path may be the host's; folders that do not exist read as no limit, and
    the walk ends at the mount point, which is the container's own group.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            mounts = [(root / "sys/fs/cgroup", 2)]
        elif controller in controllers.split(","):
            mounts = [(root / "sys/fs/cgroup" / controllers, 1), (root / "sys/fs/cgroup" / controller, 1)]
        else:
            continue
        for mount, generation in mounts:
            group = Path(path.strip("/"))
            for part in [group, *group.parents]:
                yield mount / part, generation


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of every group that has a limit; file cache that can be dropped is no use."""
    for folder, generation in _groups(root, "memory"):
        new = generation == 2
        limit = _number(folder / ("memory.max" if new else "memory.limit_in_bytes"))
        used = _number(folder / ("memory.current" if new else "memory.usage_in_bytes")) or 0
        if limit is not None:
            key = "inactive_file" if new else "total_inactive_file"
            yield limit, max(used - _statistic(folder / "memory.stat", key), 0)


def _statistic(path: Path, key: str) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdecimal():
            return int(value)
    return 0


def _cpu_quotas(root: Path) -> Iterator[float]:
    for folder, generation in _groups(root, "cpu"):
        if generation == 2:
            quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        else:
            quota, period = (
                _text(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)
