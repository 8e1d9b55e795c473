"""Who holds memory that a run could use, in words for a screen; nothing is ever ended."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil

from ollama_tune.core.machine.values import Gpu, Machine
from ollama_tune.core.text import human_bytes, one_line, visible

LEAST = 16 << 20
"""Bytes of GPU memory below which a holder is not worth a line."""
LEAST_RAM = 1 << 30
OLLAMA_PROGRAMS = ("ollama", "llama-server", "ollama_llama_se")


def process_name(pid: int) -> str:
    """The program's name without its arguments, which may hold secrets; empty for one that is gone."""
    try:
        return visible(psutil.Process(pid).name())
    except psutil.Error:
        return ""


def holders(machine: Machine) -> list[str]:
    """A sentence for each program and each Ollama model that holds memory here, most first for each GPU.

    What the driver cannot name or count is said so. Another host's Ollama holds nothing of this box.
    """
    several = len(machine.gpu.gpus) > 1
    lines = [line for gpu in machine.gpu.gpus for line in _on_gpu(gpu, several)]
    return [*lines, *_in_ollama(machine)]


def ram_holders(least: int = LEAST_RAM, most: int = 3) -> list[str]:
    """A sentence for each of the programs that hold most of the RAM, this one left out.

    Resident bytes, memory shared between programs included; below `least` bytes a program is left out.
    """
    found = []
    for process in psutil.process_iter(["name", "memory_info"]):
        memory = process.info["memory_info"]
        if memory is not None and memory.rss >= least and process.pid != os.getpid():
            found.append((memory.rss, process.pid, str(process.info["name"] or "")))
    found.sort(reverse=True)
    return [
        f"{_who(visible(name), pid)} holds {human_bytes(size)} of RAM." for size, pid, name in found[:most]
    ]


def in_use(machine: Machine) -> list[str]:
    """Sentences about who holds memory that training could use; those of the RAM where it trains in RAM."""
    shared = any(gpu.unified for gpu in machine.gpu.gpus)
    return holders(machine) + (ram_holders() if machine.device == "cpu" or shared else [])


def _on_gpu(gpu: Gpu, several: bool) -> Iterator[str]:
    place = f"GPU {gpu.index}" if several else "the GPU"
    if gpu.unified:
        place += " (the computer's own memory)"
    for process in gpu.processes:
        if process.memory is not None and process.memory < LEAST:
            continue
        size = "an unknown part" if process.memory is None else human_bytes(process.memory)
        yield f"{_who(process.name, process.pid)} holds {size} of {place}."
    if not gpu.processes_known and gpu.total - gpu.free >= LEAST:
        held = human_bytes(gpu.total - gpu.free)
        yield f"{held} of {place} are taken; the driver does not tell here by which programs."


def _who(name: str, pid: int) -> str:
    if not name:
        return f"A program outside of what can be seen from here (process {pid})"
    if name in OLLAMA_PROGRAMS:
        return f"Ollama's {one_line(name, 24)} (process {pid})"
    return f"{one_line(name, 32)} (process {pid})"


def _in_ollama(machine: Machine) -> Iterator[str]:
    if not machine.ollama.local:
        return
    for model in machine.ollama.loaded:
        ram = model.size - model.vram
        parts = [f"{human_bytes(model.vram)} of GPU memory"] if model.vram >= LEAST else []
        parts += [f"{human_bytes(ram)} of RAM"] if ram >= LEAST or not parts else []
        yield f"Ollama keeps {one_line(model.name, 40)} loaded: {' and '.join(parts)}."
