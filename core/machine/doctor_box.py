"""Checks of what the box gives to this process: versions, GPUs, memory, CPU, limits, clock."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ollama_tune.core.machine.doctor import Check, fail, ok, warn
from ollama_tune.core.machine.host import ROOT, read_disk, read_host, read_memory
from ollama_tune.core.text import human_bytes, visible

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from ollama_tune.core.machine.values import Gpu

SHOWN = ("textual", "torch", "transformers", "peft", "bitsandbytes", "gguf", "xllamacpp")
"""The packages with a line of their own; the others have one together."""
LEAST_RAM = 4 << 30
LEAST_FREE_RAM = 1 << 30
LEAST_SHM = 64 << 20
"""What Docker gives a container; several GPUs talk to each other through /dev/shm and need more."""
FILES, FEW_FILES = 1024, 128


def versions() -> Iterator[Check]:
    """Every package that this one depends on, against the range in its metadata."""
    from importlib.metadata import metadata, requires, version

    about = metadata("ollama-tune")
    python = sys.version.split()[0]
    yield ok(f"{version('ollama-tune')}, Python {python}", "ollama-tune")
    yield from _python(python, about["Requires-Python"])
    needed = _needed(requires("ollama-tune") or [])
    checked = {wanted.name: _installed(wanted) for wanted in needed}
    yield from (checked[name] for name in SHOWN if name in checked)
    others = [check for name, check in checked.items() if name not in SHOWN]
    yield from (check for check in others if check.state != "ok")
    right = sum(check.state == "ok" for check in others)
    yield ok(f"{right} more packages are in their ranges", "others")


def _python(version: str, wanted: str | None) -> Iterator[Check]:
    from packaging.specifiers import SpecifierSet

    if wanted and not SpecifierSet(wanted).contains(version, prereleases=True):
        yield fail(f"{version} is running, {wanted} is needed", "Install with another Python.", "Python")


def _needed(lines: list[str]) -> list[Requirement]:
    """The requirements that hold on this box, optional extras left out."""
    from packaging.requirements import Requirement

    found = [Requirement(line) for line in lines]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def _installed(wanted: Requirement) -> Check:
    """A package's version against its range; one that is newer than tested may still work."""
    from importlib.metadata import PackageNotFoundError, version

    name, install = wanted.name, f'pip install "{wanted.name}{wanted.specifier}"'
    try:
        found = version(name)
    except PackageNotFoundError:
        return fail("not installed", f"Install it: {install}", name)
    if wanted.specifier.contains(found, prereleases=True):
        return ok(_build(found) if name == "torch" else found, name)
    said = f"{found}, but {wanted.specifier} is needed"
    if _is_older(found, wanted):
        return fail(said, f"Install another: {install}", name)
    return warn(f"{said}: newer than what was tested", f"If it makes trouble: {install}", name)


def _is_older(found: str, wanted: Requirement) -> bool:
    from packaging.version import Version

    least = [Version(each.version) for each in wanted.specifier if each.operator in (">=", "==", "~=", ">")]
    return any(Version(found) < version for version in least)


def _build(version: str) -> str:
    from ollama_tune.core.machine.torchbuild import torch_build

    build = torch_build(version)
    known = build if build.kind else torch_build()
    kinds = {
        "cpu": "built for the CPU only",
        "rocm": "built for ROCm",
        "cuda": f"built for CUDA {known.cuda}",
    }
    return f"{version}, {kinds[known.kind]}" if known.kind else version


def gpus() -> Iterator[Check]:
    """What the NVIDIA driver says, and whether the installed PyTorch is one for it."""
    from ollama_tune.core.machine.gpus import read_gpus

    report = read_gpus()
    if report.gpus:
        cuda = f", runs CUDA up to {report.cuda[0]}.{report.cuda[1]}" if report.cuda else ""
        yield ok(f"{visible(str(report.driver))}{cuda}", "driver")
    what, _, advice = report.reason.removesuffix(".").partition("; ")
    if report.reason and (report.gpus or report.driver):
        yield fail(what, f"{advice[:1].upper()}{advice[1:]}.", "PyTorch" if report.gpus else "driver")
    elif report.reason:
        yield warn(what, f"{advice[:1].upper()}{advice[1:]}; a GPU is ten to a hundred times faster.")
    yield from (_gpu(gpu) for gpu in report.gpus)
    yield from (warn(visible(note), "The other GPUs are used.") for note in report.notes)
    yield from (warn(visible(gpu.why), "", gpu.maker) for gpu in report.others)


def _gpu(gpu: Gpu) -> Check:
    own = gpu.compute_capability
    capability = f", compute capability {own[0]}.{own[1]}" if own else ""
    said = f"{visible(gpu.name)}, {human_bytes(gpu.free)} free of {human_bytes(gpu.total)}{capability}"
    if gpu.free * 2 < gpu.total:
        return warn(said, "`ollama-tune probe` names who holds the memory.", f"GPU {gpu.index}")
    return ok(said, f"GPU {gpu.index}")


def memory(root: Path = ROOT) -> Iterator[Check]:
    """RAM as this process may use it, and a container that has less than its machine."""
    available, total = read_memory(root)
    machine = int(psutil.virtual_memory().total)
    said = f"{human_bytes(available)} free of {human_bytes(total)}"
    if total < LEAST_RAM or available < LEAST_FREE_RAM:
        yield warn(said, "Close other programs, or choose a small base model.")
    else:
        yield ok(said)
    if total < machine:
        limit = f"this container may use {human_bytes(total)} of the machine's {human_bytes(machine)}"
        fix = "The plan keeps to it; for more, start the container with a larger --memory."
        yield warn(limit, fix, "limit")


def cpu(root: Path = ROOT) -> Iterator[Check]:
    """The cores this process may use, and the units that multiply 16-bit numbers fast."""
    host, cores = read_host(root), os.cpu_count() or 1
    share = f"{host.cores} of {cores} cores" if host.cores < cores else f"{cores} cores"
    unit = f"{host.bfloat16} for bfloat16" if host.bfloat16 else "no unit for bfloat16"
    said = f"{host.cpu}, {share}, {unit}"
    flags = re.search(r"^flags\s*:(.*)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    if flags and "avx2" not in flags[1].split():
        yield warn(f"{said}, no AVX2", "Training on this CPU is very slow; use another box or a GPU.")
    else:
        yield ok(said)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def shared_memory(place: Path = Path("/dev/shm")) -> Iterator[Check]:
    """The size of /dev/shm, through which the processes of several GPUs talk."""
    if not place.is_dir():
        return
    disk = read_disk(place)
    said = f"{human_bytes(disk.free)} free of {human_bytes(disk.total)}"
    if disk.total <= LEAST_SHM:
        yield warn(f"{said}: too little for several GPUs", "Start the container with --shm-size=1g.")
    else:
        yield ok(said)


def open_files() -> Iterator[Check]:
    """How many files this process may open; a large model comes in dozens, and libraries open hundreds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        yield ok("no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,}")
        return
    enough = hard == resource.RLIM_INFINITY or hard >= FILES
    fix = f"Type `ulimit -n {4096 if enough else hard}` before you start."
    yield (fail if soft < FEW_FILES else warn)(f"at most {soft:,}, {FILES:,} are good", fix)


def clock() -> Iterator[Check]:
    """Whether the time can be right: not before this package was installed."""
    installed = Path(__file__).stat().st_mtime
    shown = time.strftime("%Y-%m-%d %H:%M %Z")
    if time.time() < installed - 86400:
        yield warn(
            f"{shown}, before this program was installed", "Set the clock, else no secure server is trusted."
        )
    else:
        yield ok(shown)
